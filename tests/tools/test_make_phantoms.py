"""The phantom dataset: reproducible, anatomically ordered, geometrically varied, with one-line errors."""

import subprocess
import sys
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from tools.make_phantoms import make_dataset, make_phantom

REPOSITORY = Path(__file__).parents[2]
SCALE = 3.0
CASES = range(1, 9)
SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, GALL_BLADDER, LIVER, STOMACH, AORTA, POSTCAVA, PANCREAS = 1, 2, 3, 4, 6, 7, 8, 9, 10
DRAWN = {SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, GALL_BLADDER, LIVER, STOMACH, AORTA, POSTCAVA, PANCREAS}


def voxels(image: nib.Nifti1Image) -> np.ndarray:
    """Return the stored voxels in their own type."""
    return np.asarray(image.dataobj)


def centroid(labels: nib.Nifti1Image, label: int) -> np.ndarray:
    """Return the centroid of one class in world mm (x left, y anterior, z superior)."""
    return nib.affines.apply_affine(labels.affine, np.argwhere(voxels(labels) == label).mean(axis=0))


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, from the repository root."""
    command = [sys.executable, "-m", "tools.make_phantoms", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def phantoms() -> list[tuple[nib.Nifti1Image, nib.Nifti1Image]]:
    return [make_phantom(0, case, SCALE) for case in CASES]


def test_same_seed_gives_the_same_voxels():
    for first, second in zip(make_phantom(5, 2, SCALE), make_phantom(5, 2, SCALE), strict=True):
        np.testing.assert_array_equal(voxels(first), voxels(second))
        np.testing.assert_array_equal(first.affine, second.affine)


@pytest.mark.parametrize("other", [(6, 2), (5, 7)])  # case 7 has the orientation of case 2
def test_seed_and_case_change_the_patient(other):
    labels, other_labels = make_phantom(5, 2, SCALE)[1], make_phantom(*other, SCALE)[1]
    assert not np.allclose(centroid(labels, LIVER), centroid(other_labels, LIVER), atol=1)
    assert not np.array_equal(voxels(labels), voxels(other_labels))


def test_scale_changes_the_grid_but_not_the_patient():
    fine, coarse = make_phantom(0, 1, 2.0)[1], make_phantom(0, 1, 4.0)[1]
    np.testing.assert_allclose(coarse.header.get_zooms(), np.multiply(2, fine.header.get_zooms()), rtol=1e-5)
    distance = np.linalg.norm(
        (centroid(fine, LIVER) - centroid(fine, SPLEEN)) - (centroid(coarse, LIVER) - centroid(coarse, SPLEEN))
    )
    assert distance < 8  # mm: under a voxel of the coarse grid


def test_image_and_labels_share_one_grid(phantoms):
    for image, labels in phantoms:
        assert image.shape == labels.shape
        np.testing.assert_array_equal(image.affine, labels.affine)
        assert image.get_data_dtype() == np.int16
        assert labels.get_data_dtype() == np.uint8
        for volume in (image, labels):
            assert volume.header["sform_code"] == volume.header["qform_code"] == 1
            np.testing.assert_allclose(volume.get_qform(), volume.get_sform(), atol=1e-3)
            assert volume.header.get_xyzt_units()[0] == "mm"


def test_geometry_varies_between_cases(phantoms):
    codes = {"".join(nib.aff2axcodes(image.affine)) for image, _ in phantoms}
    assert {"RAS", "LPS", "LAS"} < codes
    assert any(code[2] not in "SI" for code in codes), "no case has its slices along another array axis than the last"
    assert len({image.header.get_zooms() for image, _ in phantoms}) == len(phantoms)
    for image, _ in phantoms:
        assert max(image.header.get_zooms()) > 1.05 * min(image.header.get_zooms())
        assert np.abs(image.affine[:3, 3]).min() > 1


def test_exactly_the_drawn_organs_are_present(phantoms):
    for _, labels in phantoms:
        classes, counts = np.unique(voxels(labels), return_counts=True)
        assert set(classes.tolist()) == DRAWN | {0}
        assert counts.min() >= 10


def test_hounsfield_units_are_those_of_late_arterial_ct():
    for case in CASES:
        image, labels = (voxels(volume) for volume in make_phantom(0, case, 2.0))
        assert image.min() >= -1024
        assert 300 < image.max() < 1000  # bone
        mean = {label: image[labels == label].mean() for label in DRAWN}
        assert mean[AORTA] > max(mean[other] for other in DRAWN - {AORTA}) + 10
        assert min(mean[RIGHT_KIDNEY], mean[LEFT_KIDNEY]) > mean[LIVER] + 40
        assert mean[SPLEEN] > mean[LIVER] + 20
        assert min(mean[LIVER], mean[PANCREAS]) > 55 > mean[GALL_BLADDER] + 20  # 50 HU is muscle
        # The torso's own fat and muscle, away from organs: each has a peak in the background's histogram.
        background = image[labels == 0]
        assert np.mean(np.abs(background + 1000) < 60) > 0.2
        assert np.mean(np.abs(background + 100) < 40) > 0.1
        assert np.mean(np.abs(background - 50) < 40) > 0.03


def test_the_core_of_a_kidney_is_darker_than_its_cortex():
    image, labels = (voxels(volume) for volume in make_phantom(0, 1, 1.0))
    kidney = labels == RIGHT_KIDNEY
    depth = distance_transform_edt(kidney)
    assert image[depth > 0.8 * depth.max()].mean() < image[kidney & (depth <= 2)].mean() - 10


def test_world_coordinates_are_anatomically_correct(phantoms):
    for _, labels in phantoms:
        centre = nib.affines.apply_affine(labels.affine, (np.array(labels.shape) - 1) / 2)
        assert centroid(labels, SPLEEN)[0] < 0 < centroid(labels, LIVER)[0]  # +x is the patient's right
        assert centroid(labels, AORTA)[0] < centroid(labels, POSTCAVA)[0] < centroid(labels, RIGHT_KIDNEY)[0]
        assert centroid(labels, LEFT_KIDNEY)[0] < centroid(labels, AORTA)[0]
        assert centroid(labels, AORTA)[1] < centre[1] < centroid(labels, GALL_BLADDER)[1]
        assert centroid(labels, LEFT_KIDNEY)[2] < centroid(labels, SPLEEN)[2]


def test_a_case_does_not_depend_on_the_size_of_the_dataset(tmp_path):
    make_dataset(tmp_path / "small", 3, 1, 0, SCALE)
    make_dataset(tmp_path / "large", 6, 2, 0, SCALE)
    for folder in ("imagesTr", "labelsTr"):
        small, large = (nib.load(tmp_path / root / folder / "phantom_003.nii.gz") for root in ("small", "large"))
        np.testing.assert_array_equal(voxels(small), voxels(large))
        np.testing.assert_array_equal(small.affine, large.affine)


def test_command_writes_the_layout_and_may_be_repeated(tmp_path):
    for _ in range(2):
        done = run_tool("--root", tmp_path, "--train", 2, "--val", 1, "--scale", SCALE)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"Wrote 2 training and 1 validation cases to {tmp_path}\n"
    for kind in ("images", "labels"):
        assert sorted(p.name for p in (tmp_path / f"{kind}Tr").iterdir()) == [
            "phantom_001.nii.gz",
            "phantom_002.nii.gz",
        ]
        assert [p.name for p in (tmp_path / f"{kind}Val").iterdir()] == ["phantom_003.nii.gz"]
    np.testing.assert_array_equal(
        voxels(nib.load(tmp_path / "imagesVal" / "phantom_003.nii.gz")), voxels(make_phantom(0, 3, SCALE)[0])
    )


def assert_one_line_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Assert exit status 2 and a single line on stderr with all `parts`."""
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--train", "0"), ("--val", "-1"), ("--seed", "-1"), ("--scale", "0"), ("--scale", "nan"), ("--train", "few")],
)
def test_bad_value_is_named_in_one_line(tmp_path, flag, value):
    root = tmp_path / "data"
    assert_one_line_error(run_tool("--root", root, flag, value), flag, value)
    assert not root.exists()


def test_missing_root_is_named_in_one_line():
    assert_one_line_error(run_tool("--train", 1), "--root")


def test_unwritable_root_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert_one_line_error(run_tool("--root", tmp_path / "file"), "--root", str(tmp_path / "file"), "expected")


def test_foreign_files_are_kept(tmp_path):
    stray = tmp_path / "imagesTr" / "amos_0001.nii.gz"
    stray.parent.mkdir()
    stray.write_bytes(b"a real scan")
    assert_one_line_error(run_tool("--root", tmp_path), "--root", stray.name, "expected")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [stray]


def test_an_archive_has_the_same_phantoms_and_the_files_of_macos(tmp_path):
    path = tmp_path / "data" / "Task99_Phantoms.tar"
    done = run_tool("--archive", path, "--train", 2, "--val", 1, "--scale", SCALE)
    assert (done.returncode, done.stdout) == (0, f"Wrote 2 training and 1 test cases to {path}\n")
    with tarfile.open(path) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
        archive.extractall(tmp_path, filter="data")
    volumes = ["imagesTr/phantom_001", "imagesTr/phantom_002", "imagesTs/phantom_003"]
    volumes += ["labelsTr/phantom_001", "labelsTr/phantom_002"]
    expected = {"dataset.json", *(f"{volume}.nii.gz" for volume in volumes)}
    assert {name for name in names if "._" not in name} == expected
    assert {name.replace("._", "") for name in names if "._" in name} == expected
    image, labels = make_phantom(0, 2, SCALE)
    for folder, volume in (("imagesTr", image), ("labelsTr", labels)):
        found = nib.load(tmp_path / "Task99_Phantoms" / folder / "phantom_002.nii.gz")
        np.testing.assert_array_equal(voxels(found), voxels(volume))
    before = path.read_bytes()
    assert_one_line_error(run_tool("--archive", path, "--scale", SCALE), f"--archive: found {path}, expected")
    assert path.read_bytes() == before
