"""Each invalid volume is reported in one line that names the file, with exit status 2, and training does not start."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import assert_one_line, train_arguments, write_nifti

from engine.data import dataset_checks


def damage_image(change):
    """Rewrite the first validation image with changed voxels and affine."""

    def apply(root):
        path = root / "imagesVal" / "box_8.nii.gz"
        image = nib.load(path)
        voxels, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
        write_nifti(path, voxels, affine)

    return apply


def damage_label(change):
    """Rewrite the first training label with changed voxels."""

    def apply(root):
        path = root / "labelsTr" / "box_0.nii.gz"
        write_nifti(path, change(np.asarray(nib.load(path).dataobj).copy()))

    return apply


def put(value):
    def change(voxels, affine):
        voxels[3, 4, 5] = value
        return voxels, affine

    return change


def shift(voxels, affine):
    affine[0, 3] += 5
    return voxels, affine


def flatten_affine(root):
    path = root / "imagesVal" / "box_8.nii.gz"
    image = nib.load(path)
    image.header["srow_z"] = 0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)


def truncate(root):
    path = root / "imagesTr" / "box_1.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])


def empty(folder):
    def apply(root):
        for path in (root / folder).iterdir():
            path.unlink()

    return apply


def remove(folder):
    def apply(root):
        empty(folder)(root)
        (root / folder).rmdir()

    return apply


def label_with(value, dtype):
    def change(voxels):
        changed = voxels.astype(dtype)
        changed[0, 0, 0] = value
        return changed

    return damage_label(change)


def rewrite_header(**fields):
    """Change fields of the headers of the first validation image and its label, which stays on the same grid."""

    def apply(root):
        for folder in ("imagesVal", "labelsVal"):
            path = root / folder / "box_8.nii.gz"
            content = bytearray(gzip.decompress(path.read_bytes()))
            header = np.frombuffer(content, nib.Nifti1Header.template_dtype, 1)
            for name, value in fields.items():
                header[name] = value
            path.write_bytes(gzip.compress(content))

    return apply


def cut_uncompressed(root):
    path = root / "imagesTr" / "box_1.nii.gz"
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes())[:-1])
    path.unlink()


def link_into_training(root):
    for kind in ("images", "labels"):
        (root / f"{kind}Tr" / "other.nii.gz").symlink_to(root / f"{kind}Val" / "box_9.nii.gz")


def copy_into_training(root):
    for kind in ("images", "labels"):
        image = nib.load(root / f"{kind}Val" / "box_9.nii.gz")
        nib.save(image, root / f"{kind}Tr" / "other.nii")


BROKEN_HEADERS = {
    "missing root": (shutil.rmtree, ("boxes", "imagesTr", "not found", "expected")),
    "missing folder": (remove("labelsVal"), ("labelsVal", "not found", "expected")),
    "empty folder": (empty("imagesTr"), ("imagesTr", "no volume", "expected")),
    "image without label": (lambda root: (root / "labelsTr" / "box_2.nii.gz").unlink(), ("box_2", "without a label")),
    "label without image": (lambda root: (root / "imagesVal" / "box_9.nii.gz").unlink(), ("box_9", "without an image")),
    "two files of one id": (
        lambda root: nib.save(nib.load(root / "imagesTr" / "box_0.nii.gz"), root / "imagesTr" / "box_0.nii"),
        ("box_0", "twice"),
    ),
    "shape mismatch": (damage_image(lambda v, a: (v[:-1], a)), ("labelsVal/box_8", "36 x 28 x 18", "35 x 28 x 18")),
    "affine mismatch": (damage_image(shift), ("labelsVal/box_8", "5 mm", "same affine")),
    "singular affine": (flatten_affine, ("imagesVal/box_8", "affine")),
    "not NIfTI": (
        lambda root: (root / "imagesTr" / "box_1.nii.gz").write_bytes(b"hello"),
        ("imagesTr/box_1", "cannot be read"),
    ),
    "4D": (
        damage_image(lambda v, a: (np.stack([v, v], -1), a)),
        ("imagesVal/box_8", "found 2 channels"),
    ),
    "2D": (
        damage_image(lambda v, a: (v[..., 0], a)),
        ("imagesVal/box_8", "2D", "expected a 3D"),
    ),
    "complex voxels": (damage_image(lambda v, a: (v.astype(np.complex64), a)), ("imagesVal/box_8", "complex64")),
    "cut off": (cut_uncompressed, ("imagesTr/box_1.nii", "72927 bytes", "expected the 72928")),
    "far too coarse": (
        rewrite_header(srow_x=(1e3, 0, 0, 0), srow_y=(0, 1e3, 0, 0), srow_z=(0, 0, 1e3, 0)),
        ("imagesVal/box_8", "1000 x 1000 x 1000 mm", "expected at most"),
    ),
    "a validation case in training": (link_into_training, ("imagesTr/other", "imagesVal/box_9", "two splits")),
}

BROKEN_VOXELS = {
    "truncated": (truncate, ("imagesTr/box_1", "cannot be read", "expected a whole NIfTI")),
    "NaN": (damage_image(put(np.nan)), ("imagesVal/box_8", "found 1 NaN voxel, expected")),
    "infinite": (damage_image(put(np.inf)), ("imagesVal/box_8", "found 1 infinite voxel, expected")),
    "undeclared class": (label_with(7, np.uint8), ("labelsTr/box_0", "values 7", "from 0 to 2")),
    "a class that uint8 would wrap": (label_with(257, np.int16), ("labelsTr/box_0", "values 257", "from 0 to 2")),
    "negative class": (label_with(-1, np.int16), ("labelsTr/box_0", "values -1", "from 0 to 2")),
    "fractional label": (label_with(1.5, np.float32), ("labelsTr/box_0", "values 1.5", "whole numbers")),
    "NaN label": (label_with(np.nan, np.float32), ("labelsTr/box_0", "values nan")),
}


@pytest.mark.parametrize(("damage", "parts"), BROKEN_HEADERS.values(), ids=BROKEN_HEADERS)
def test_problems_in_headers_are_found_before_anything_is_written(boxes, tmp_path, train, damage, parts):
    description = shutil.move(boxes / "boxes.json", tmp_path)
    damage(boxes)
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", "--dataset", description)), *parts)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("damage", "parts"),
    [*BROKEN_VOXELS.values(), (copy_into_training, ("imagesTr/other.nii", "imagesVal/box_9", "two splits"))],
    ids=[*BROKEN_VOXELS, "a copy of a validation case in training"],
)
def test_full_check_finds_problems_in_voxels_before_training(boxes, tmp_path, train, damage, parts):
    damage(boxes)
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", "--full_check")), *parts)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("sampled", [2, 0])
@pytest.mark.parametrize(("damage", "parts"), BROKEN_VOXELS.values(), ids=BROKEN_VOXELS)
def test_broken_voxels_are_one_line_without_it(boxes, tmp_path, train, monkeypatch, damage, parts, sampled):
    """Found among the cases that the start samples, or else when they are read."""
    monkeypatch.setattr(dataset_checks, "SAMPLED", sampled)
    damage(boxes)
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out")), *parts)
    assert any((tmp_path / "out").iterdir()) == (sampled == 0)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("cache", ["--cache_rate", "--cache_dir"])
def test_broken_voxels_are_one_line_from_any_process_and_cache(boxes, tmp_path, train, monkeypatch, cache, workers):
    monkeypatch.setattr(dataset_checks, "SAMPLED", 0)
    truncate(boxes)
    where = (cache, tmp_path / "cache" if cache == "--cache_dir" else "0", "--num_workers", workers)
    arguments = train_arguments(boxes, tmp_path / "out", *where)
    assert_one_line(train(*arguments), "imagesTr/box_1", "cannot be read", "expected a whole NIfTI")


def test_every_broken_case_has_its_line(boxes, tmp_path, train):
    truncate(boxes)
    label_with(7, np.uint8)(boxes)
    damage_image(put(np.nan))(boxes)
    status, _, err = train(*train_arguments(boxes, tmp_path / "out", "--full_check"))
    assert status == 2
    found = [line.split(": ")[1] for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    expected = ["labelsTr/box_0.nii.gz", "imagesTr/box_1.nii.gz", "imagesVal/box_8.nii.gz"]
    assert found == [str(boxes / name) for name in expected]


def test_every_unpaired_case_has_its_line(boxes, tmp_path, train):
    (boxes / "labelsTr" / "box_2.nii.gz").unlink()
    (boxes / "imagesVal" / "box_9.nii.gz").unlink()
    status, _, err = train(*train_arguments(boxes, tmp_path / "out"))
    assert status == 2
    assert ["box_2 without a label" in err, "box_9 without an image" in err] == [True, True]


def test_float_labels_that_hold_whole_numbers_are_fine(boxes, tmp_path, train):
    damage_label(lambda voxels: voxels.astype(np.float32))(boxes)
    assert train(*train_arguments(boxes, tmp_path / "out"))[0] == 0


@pytest.mark.parametrize("change", ["shape", "affine", "count"])
def test_channels_that_do_not_fit_each_other(boxes, tmp_path, train, change):
    description = json.loads((boxes / "boxes.json").read_text()) | {"channels": ["T1", "T2"]}
    (boxes / "boxes.json").write_text(json.dumps(description))
    for path in [*boxes.glob("imagesTr/*"), *boxes.glob("imagesVal/*")]:
        image = nib.load(path)
        voxels, affine = np.asarray(image.dataobj), image.affine
        path.unlink()
        if change == "count":
            write_nifti(path, np.stack([voxels] * 3, axis=-1))
            continue
        write_nifti(path.with_name(path.name.replace(".nii", "_0000.nii")), voxels)
        other = voxels[:-1] if change == "shape" else voxels
        moved = affine + np.eye(4)[:, [3, 0, 1, 2]] * 4 if change == "affine" else affine
        write_nifti(path.with_name(path.name.replace(".nii", "_0001.nii")), other, moved)
    status, _, err = train(*train_arguments(boxes, tmp_path / "out"))
    expected = {
        "shape": "35 x 28 x 18",
        "affine": "same affine",
        "count": "found 3 channels (shape 36 x 28 x 18 x 3), expected 2 channels",
    }
    assert status == 2
    assert err.count(expected[change]) == 5  # one line per case
