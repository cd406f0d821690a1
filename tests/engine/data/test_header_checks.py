"""Header checks: every problem is one line that names the file, for any content of the header."""

import gzip
import tracemalloc
import warnings
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest
from conftest import DESCRIPTION, write_nifti
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.cases import make_case
from engine.data.datasets import DatasetDescription
from engine.data.header_checks import LARGEST_GRID, Grid, read_headers, review_headers

ONE = DatasetDescription.from_json(DESCRIPTION, "test")
TWO = DatasetDescription.from_json(DESCRIPTION | {"channels": ["T1", "T2"]}, "test")
SHAPE = (6, 5, 4)


def write(path, shape=SHAPE, affine=None, kind=np.float32):
    write_nifti(path, np.zeros(shape, kind), affine)
    return str(path)


def rewrite(path, **fields):
    """Change fields of the header of a file, compressed or not."""
    packed = path.suffix == ".gz"
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    header = np.frombuffer(content, nib.Nifti1Header.template_dtype, 1)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(content) if packed else content)


def check(*files_and_description):
    """Return the problems of an image, or of an image and its label."""
    *files, description = files_and_description
    return review_headers(read_headers(make_case("case", *files), description), description.fix_affine)[0]


def check_one(path, **fields):
    """Return the problems of an image after changes to its header."""
    write(path)
    rewrite(path, **fields)
    return check(str(path), ONE)


def diagonal(*spacing):
    return dict(zip(("srow_x", "srow_y", "srow_z"), np.diag([*spacing, 1])[:3], strict=True))


BAD_FIELDS = {
    "type without a meaning": ({"datatype": 3}, "cannot be read"),
    "colours": ({"datatype": 128, "bitpix": 24}, "expected real numbers"),
    "two dimensions": ({"dim": (2, 6, 5, 1, 1, 1, 1, 1)}, "found 2D of shape 6 x 5, expected a 3D volume"),
    "an empty axis": ({"dim": (3, 6, 0, 4, 1, 1, 1, 1)}, "found shape 6 x 0 x 4, expected voxels"),
    "a negative axis": ({"dim": (3, 6, -5, 4, 1, 1, 1, 1)}, "found shape 6 x -5 x 4, expected voxels"),
    "NaN in the affine": (diagonal(1, np.nan, 1), "holds nan, expected finite"),
    "an infinite affine": (diagonal(1, np.inf, 1), "holds inf, expected finite"),
    "far away": ({"srow_x": (1, 0, 0, 3e9)}, "holds 3e+09, expected finite numbers below 1e+09"),
    "flat": (diagonal(1, 1, 0), "voxels of 1 x 1 x 0 mm"),
    "tiny": (diagonal(1e-30, 1e-30, 1e-30), "voxels of 1e-30 x 1e-30 x 1e-30 mm, expected sides from 1e-06"),
    "parallel axes": ({"srow_x": (1, 1, 0, 0), "srow_y": (1, 1, 0, 0)}, "cannot be inverted"),
    "far too coarse": (
        diagonal(1e3, 1e3, 1e3),
        "about 1.2e+11 once they are resampled to 1 x 1 x 1 mm",
    ),
    "beyond any integer": (diagonal(1e6, 1e6, 1e6), "about 1.2e+20"),
    "missing voxels": ({"dim": (3, 6, 5, 5, 1, 1, 1, 1)}, "expected the 952 that its header declares"),
    "an offset beyond the end": ({"vox_offset": 1e9}, "expected the 1000000480 that its header declares"),
    "a slope without intercept": ({"scl_slope": 1, "scl_inter": np.inf}, "cannot be read"),
}


@pytest.mark.parametrize(("fields", "part"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_bad_field_is_one_line(tmp_path, fields, part):
    (line,) = check_one(tmp_path / "image.nii", **fields)
    assert line.startswith(f"{tmp_path}/image.nii: ")
    assert part in line


@pytest.mark.parametrize("slope", [0, np.nan, 2])
def test_valid_slopes_are_accepted(tmp_path, slope):
    assert check_one(tmp_path / "image.nii", scl_slope=slope) == []


def test_the_declared_size_is_within_the_compression_limit_of_deflate(tmp_path):
    path = tmp_path / "image.nii.gz"
    (line,) = check_one(path, dim=(3, 500, 500, 4, 1, 1, 1, 1))
    assert f"{1032 * path.stat().st_size} unpacked at most, expected the 4000352" in line
    path.write_bytes(gzip.compress(nib.Nifti1Image(np.zeros((200, 200, 200), np.float32), np.eye(4)).to_bytes()))
    assert path.stat().st_size < 4 * 200**3 / 900  # close to the maximum compression of deflate
    assert check(str(path), ONE) == []


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b\x08\x00 no more"])
@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_a_file_that_is_not_nifti_is_one_line(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    (line,) = check(str(tmp_path / name), ONE)
    assert line.startswith(f"{tmp_path / name}: cannot be read (")
    assert line.endswith("expected a whole NIfTI file")


def test_another_format_a_folder_and_a_broken_link_are_each_one_line(tmp_path):
    nib.save(nib.MGHImage(np.zeros(SHAPE, np.float32), np.eye(4)), tmp_path / "image.mgz")
    (tmp_path / "image.mgz").rename(tmp_path / "mgh.nii.gz")
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "link.nii").symlink_to("nowhere")
    for name in ("mgh.nii.gz", "folder.nii", "link.nii"):
        assert len(check(str(tmp_path / name), ONE)) == 1


def test_every_problem_of_every_file_is_reported(tmp_path):
    image, label = tmp_path / "image.nii", tmp_path / "label.nii"
    write(label, (6, 5, 9), kind=np.complex64)
    write(image)
    rewrite(image, datatype=32, dim=(3, 6, 5, 40, 1, 1, 1, 1))
    found = check(str(image), str(label), ONE)
    parts = [
        "image.nii: found voxels of",
        "image.nii: found 832 bytes",
        "label.nii: found voxels of",
        "found shape 6 x",
    ]
    assert [part in line for part, line in zip(parts, found, strict=True)] == [True] * 4


def test_channels_are_files_on_one_grid_or_one_4d_file(tmp_path):
    moved = np.eye(4) + np.eye(4)[:, [3, 0, 1, 2]] * 4
    same, other = write(tmp_path / "a.nii"), write(tmp_path / "b.nii", affine=moved)
    whole, more = write(tmp_path / "c.nii", (*SHAPE, 2)), write(tmp_path / "d.nii", (*SHAPE, 3))
    assert check([same, same], same, TWO) == []
    assert check(whole, same, TWO) == []
    assert "expected the same affine" in check([same, other], TWO)[0]
    assert "found 3 channels (shape 6 x 5 x 4 x 3), expected 2 channels, in this file" in check(more, TWO)[0]
    assert "found 2 channels (shape 6 x 5 x 4 x 2), expected a label map of one volume" in check(same, whole, ONE)[0]


@pytest.mark.parametrize(("share", "problems"), [(0.09, 0), (0.11, 1)])
def test_affines_may_differ_by_a_tenth_of_a_voxel_at_the_corners(tmp_path, share, problems):
    affine = np.diag([1, 1, 2.0, 1])
    other = affine.copy()
    other[2, 2] += share / (SHAPE[2] - 1)
    case = write(tmp_path / "a.nii", affine=affine), write(tmp_path / "b.nii", affine=other)
    assert len(check(*case, ONE)) == problems


def test_a_grid_with_more_voxels_than_int64_can_count(tmp_path):
    tiny = DatasetDescription.from_json(DESCRIPTION | {"spacing": [1e-9] * 3}, "test")
    image = write(tmp_path / "image.nii")
    rewrite(tmp_path / "image.nii", dim=(3, *[32767] * 3, 1, 1, 1, 1), **diagonal(1e6, 1e6, 1e6))
    size, resampling = check(image, tiny)
    assert "declares" in size
    assert f"expected at most {LARGEST_GRID}" in resampling


def test_the_largest_grid_is_accepted():
    side = round(LARGEST_GRID ** (1 / 3))
    assert Grid((side, side, side), np.eye(4)).resampled_shape((1, 1, 1)) == (side, side, side)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed")


@contextmanager
def limit_memory(count):
    """Assert that NumPy and Python allocate fewer than ``count`` bytes in a block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < count
    finally:
        tracemalloc.stop()


FIELDS = [nib.Nifti1Header.template_dtype.fields[name][:2] for name in nib.Nifti1Header.template_dtype.names]
STRANGE = st.sampled_from([np.nan, np.inf, -np.inf, 0, -1, 1e-30, 1e30, 3e9, 1])
CHANGES = st.one_of(
    st.tuples(st.integers(0, 539), st.binary(min_size=1, max_size=40)),
    st.builds(
        lambda field, value: (field[1], np.full(20, value, "<f4").tobytes()[: field[0].itemsize]),
        st.sampled_from(FIELDS),
        STRANGE,
    ),
)


@given(
    changes=st.lists(CHANGES, min_size=1, max_size=4),
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    packed=st.booleans(),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_header_raises_prints_or_uses_much_memory(folder, changes, kind, packed):
    path, label = folder / ("image.nii.gz" if packed else "image.nii"), folder / "label.nii"
    content = bytearray(kind(np.zeros(SHAPE, np.float32), np.eye(4)).to_bytes())
    for start, patch in changes:
        size = len(content)
        content[start : start + len(patch)] = patch
        del content[size:]
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    write(label)
    with warnings.catch_warnings(), limit_memory(50_000_000):
        warnings.simplefilter("error")
        found = check(str(path), str(label), ONE)
    assert all(line.count("\n") == 0 and line.startswith(str(folder)) for line in found)


def test_nibabels_own_warnings_are_not_printed(tmp_path, caplog):
    assert len(check_one(tmp_path / "image.nii", datatype=3, pixdim=(1, -1, 0, 1, 1, 1, 1, 1))) == 1
    assert not caplog.records
