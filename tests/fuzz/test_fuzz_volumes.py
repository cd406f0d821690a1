"""Check, training and prediction report each damaged volume in one line; prediction continues with the others."""

import gzip
import math

import nibabel as nib
import numpy as np
from conftest import train_arguments
from fuzzing import copies, end_well, examples, predict_arguments
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import from_dtype

from engine.data.datasets import DatasetDescription
from engine.data.header_checks import LARGEST_GRID, read_header

FORMATS = {
    "NIfTI-1": nib.Nifti1Header(endianness="<"),
    "NIfTI-1, big-endian": nib.Nifti1Header(endianness=">"),
    "NIfTI-2": nib.Nifti2Header(endianness="<"),
}
CODES = (-1, 0, 1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304)
MILLIMETRES = (0, 1, -1, 2, 1e-5, 5e5, 1e9)
GEOMETRY = ("pixdim", "srow_x", "srow_y", "srow_z", "quatern_b", "sform_code", "qform_code")
QUICK = 2**18  # voxels; larger grids up to LARGEST_GRID are valid, but take too long in a test


def field_values(kind):
    """Draw values of a header field: arbitrary ones, and more often meaningful ones."""
    if kind.kind == "S":
        return from_dtype(kind)
    meaningful = MILLIMETRES if kind.kind == "f" else CODES
    return st.sampled_from(meaningful).map(lambda value: np.asarray(value).astype(kind)[()]) | from_dtype(kind)


def header_edits(template):
    """Draw one number or text of a header, and its new value."""
    names = [name for name in template.names if name not in ("db_name", "descrip", "aux_file", "intent_name")]

    def edit(name):
        field = template[name]
        return st.tuples(st.just(name), st.integers(0, math.prod(field.shape) - 1), field_values(field.base))

    return (st.sampled_from(names) | st.sampled_from(GEOMETRY)).flatmap(edit)


@st.composite
def damaged_headers(draw):
    """Draw the format of a header, edits of fields and bytes, the number of axes, and the file's ending."""
    form = draw(st.sampled_from(list(FORMATS)))
    edits = draw(st.lists(header_edits(FORMATS[form].template_dtype), max_size=3))
    flips = draw(st.lists(st.tuples(st.integers(0, 539), st.integers(0, 255)), max_size=0 if edits else 3))
    return form, edits, flips, draw(st.sampled_from((3, 3, 3, 2, 4))), draw(st.sampled_from((".nii", ".nii.gz")))


def write_damaged(source, target, damage):
    """Write the volume ``source`` in another format and with the damage, in place of ``target``."""
    form, edits, flips, axes, ending = damage
    original = nib.load(source)
    voxels = np.asarray(original.dataobj)
    voxels = {2: voxels[..., 0], 3: voxels, 4: voxels[..., None].repeat(2, axis=3)}[axes]
    kind = nib.Nifti2Image if form == "NIfTI-2" else nib.Nifti1Image
    fresh = FORMATS[form].copy()
    fresh.set_data_dtype(voxels.dtype)
    content = bytearray(kind(voxels, original.affine, fresh).to_bytes())
    header = np.frombuffer(content, FORMATS[form].structarr.dtype, 1)
    for name, place, value in edits:
        header[name].reshape(-1)[place] = value
    for place, value in flips:
        content[place] = value
    target.unlink()
    path = target.with_name(target.name.removesuffix(".nii.gz") + ending)
    path.write_bytes(gzip.compress(content, 1) if ending == ".nii.gz" else content)
    return path


def assume_quick(path, root):
    """Discard volumes with a valid header that are too large for a test."""
    description = DatasetDescription.read(root / "boxes.json")
    header = read_header(str(path), 1, description.spacing)
    if not header.problems:
        size = math.prod(header.grid.turn_to_ras().resampled_shape(description.spacing))
        assume(not QUICK < size <= LARGEST_GRID)


def assert_memory_was_enough(result):
    assert "out of memory" not in result.err, result.err


@examples(40)
@given(damage=damaged_headers(), label_too=st.booleans(), headers_only=st.booleans())
def test_headers_through_the_check(box_template, damage, label_too, headers_only):
    with copies(boxes=box_template) as folder:
        root = folder / "boxes"
        for kind in ("images", "labels")[: 1 + label_too]:
            path = root / f"{kind}Tr" / "box_0.nii.gz"
            assume_quick(write_damaged(path, path, damage), root)
        arguments = ("--root", root, "--dataset", root / "boxes.json", *["--headers_only"] * headers_only)
        assert_memory_was_enough(end_well("tools/check_data.py", *arguments))


@examples(5)
@given(damage=damaged_headers())
def test_headers_through_prediction(box_template, trained, damage):
    with copies(boxes=box_template) as folder:
        root, output = folder / "boxes", folder / "predictions"
        path = root / "imagesVal" / "box_8.nii.gz"
        assume_quick(write_damaged(path, path, damage), root)
        assert_memory_was_enough(end_well("test_seg.py", *predict_arguments(root, output, trained), statuses=(0, 1)))
        assert (output / "box_9_seg.nii.gz").exists()


@examples(3)
@given(damage=damaged_headers(), label_too=st.booleans())
def test_headers_through_training(box_template, damage, label_too):
    with copies(boxes=box_template) as folder:
        root = folder / "boxes"
        for kind in ("images", "labels")[: 1 + label_too]:
            path = root / f"{kind}Tr" / "box_0.nii.gz"
            assume_quick(write_damaged(path, path, damage), root)
        assert_memory_was_enough(end_well("main_train.py", *train_arguments(root, folder / "run", "--max_iter", "1")))


def cut(path, where, _):
    content = path.read_bytes()
    path.write_bytes(content[: where % len(content)])


def flip(path, where, byte):
    content = bytearray(path.read_bytes())
    content[where % len(content)] ^= byte
    path.write_bytes(content)


def cut_inside(path, where, _):
    """Write a complete gzip file of a truncated volume."""
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[: where % len(content)], 1))


def flip_inside(path, where, byte):
    """Write a complete gzip file of a volume with a wrong byte, mostly in the header."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[where % (400 if where % 4 else len(content))] ^= byte
    path.write_bytes(gzip.compress(content, 1))


def become_other(path, where, byte):
    contents = (b"", bytes([byte]) * 1000, b"<html>", gzip.compress(b""), b"\x1f\x8b", path.read_bytes() * 2, b"\n")
    path.write_bytes(contents[where % len(contents)])


def become_folder(path, *_):
    path.unlink()
    path.mkdir()


def dangle(path, *_):
    path.unlink()
    path.symlink_to("nowhere.nii.gz")


def circle(path, *_):
    path.unlink()
    path.symlink_to(path.name)


def lose_compression(path, *_):
    path.write_bytes(gzip.decompress(path.read_bytes()))


def get_strange_name(path, where, _):
    """Give the image and its label a strange id."""
    names = ("\x01", "a\nb", "\udcff", "*[", " ", "ü" * 100, "--gpu", "%s{0}", ".nii", "a_0000")
    part = path.parent.name.removeprefix("images").removeprefix("labels")
    for folder in (f"images{part}", f"labels{part}"):
        path = path.parents[1] / folder / path.name
        path.rename(path.with_name(f"{names[where % len(names)]}.nii.gz"))


DAMAGES = (
    *(cut, flip, cut_inside, flip_inside, become_other, become_folder, dangle, circle, lose_compression),
    get_strange_name,
)
file_damages = st.lists(
    st.tuples(
        st.sampled_from(["imagesTr/box_0", "imagesVal/box_8", "labelsTr/box_0", "labelsVal/box_8"]),
        st.sampled_from(DAMAGES),
        st.integers(0, 10**5),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda damage: damage[0],
)


def apply_all(damages, root):
    for name, damage, where, byte in damages:
        path = root / f"{name}.nii.gz"
        if path.exists():  # another damage may have renamed it
            damage(path, where, byte)
        if path.is_file():
            assume_quick(path, root)


@examples(20)
@given(damages=file_damages, headers_only=st.booleans(), json=st.booleans())
def test_files_through_the_check(box_template, damages, headers_only, json):
    with copies(boxes=box_template) as folder:
        root = folder / "boxes"
        apply_all(damages, root)
        flags = [*["--headers_only"] * headers_only, *["--json"] * json]
        assert_memory_was_enough(
            end_well("tools/check_data.py", "--root", root, "--dataset", root / "boxes.json", *flags)
        )


@examples(5)
@given(damages=file_damages, preview=st.booleans())
def test_files_through_prediction(box_template, trained, damages, preview):
    with copies(boxes=box_template) as folder:
        root, output = folder / "boxes", folder / "predictions"
        apply_all(damages, root)
        arguments = predict_arguments(root, output, trained, *["--preview"] * preview)
        assert_memory_was_enough(end_well("test_seg.py", *arguments, statuses=(0, 1, 2)))


@examples(5)
@given(
    damages=file_damages,
    flags=st.sampled_from([("--cache_rate", "0"), ("--cache_rate", "1"), ("--cache_dir", "cache"), ("--full_check",)]),
    workers=st.integers(0, 1),
)
def test_files_through_training(box_template, damages, flags, workers):
    with copies(boxes=box_template) as folder:
        root = folder / "boxes"
        apply_all(damages, root)
        more = ("--max_iter", "1", "--num_workers", workers, *flags)
        assert_memory_was_enough(end_well("main_train.py", *train_arguments(root, folder / "run", *more)))
