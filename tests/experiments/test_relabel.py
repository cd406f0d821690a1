"""The dataset of the fine-tuning experiment: hippocampi cut into head, body and tail."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import assert_one_line, write_nifti
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from engine.runtime.errors import run
from experiments.finetuning import relabel


def hippocampus():
    """Label map in RAS: anterior 1 and posterior 2, from the 4th plane to the 15th."""
    label = np.zeros((6, 20, 5), np.uint8)
    label[2:4, 3:9, 1:4], label[1:5, 9:15, 2] = 2, 1
    return label


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "ASR", "SRP"])
def test_thirds_have_equal_lengths_from_front_to_back_in_any_orientation(axcodes):
    label = hippocampus()
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axcodes))
    affine = inv_ornt_aff(turn, label.shape)
    cut = relabel.cut_into_thirds(nib.orientations.apply_orientation(label, turn), affine)
    parts = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(cut, affine)).dataobj)
    assert np.array_equal(parts > 0, label > 0)
    for part, planes in ((3, range(3, 7)), (2, range(7, 11)), (1, range(11, 15))):
        assert set(np.nonzero(parts == part)[1]) == set(planes)


def test_lengths_that_three_does_not_divide_differ_by_one():
    label = np.ones((1, 8, 1), np.uint8)
    cut = relabel.cut_into_thirds(label, np.eye(4))
    assert np.bincount(cut.ravel()).tolist() == [0, 2, 3, 3]
    assert not relabel.cut_into_thirds(0 * label, np.eye(4)).any()


@pytest.fixture
def root(tmp_path):
    for folder in ("imagesTr", "labelsTr", "imagesVal", "labelsVal"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for part, name in (("Tr", "a"), ("Val", "b")):
        write_nifti(tmp_path / "data" / f"images{part}" / f"{name}.nii.gz", np.ones((6, 20, 5), np.float32))
        write_nifti(tmp_path / "data" / f"labels{part}" / f"{name}.nii.gz", hippocampus())
    return tmp_path / "data"


def command(root, output):
    return run(relabel.main, relabel.parse_args(["--root", str(root), "--output", str(output)]))


def test_the_command_links_images_and_writes_labels_on_their_grid(root, tmp_path, capsys):
    assert command(root, tmp_path / "thirds") == 0
    assert "2 cases" in capsys.readouterr().out
    for name in ("a", "b"):
        image, label = (nib.load(tmp_path / "thirds" / f"{kind}Tr" / f"{name}.nii.gz") for kind in ("images", "labels"))
        assert np.array_equal(image.affine, label.affine)
        assert set(np.unique(label.dataobj)) == {0, 1, 2, 3}


def test_nothing_is_replaced_and_bad_folders_are_one_line(root, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert_one_line((command(root, tmp_path / "mine"), *capsys.readouterr()), "exists, expected a new name")
    missing = tmp_path / "missing"
    assert_one_line((command(missing, tmp_path / "new"), *capsys.readouterr()), f"--root: {missing} not found")
    for folder in ("labelsTr", "labelsVal"):
        shutil.rmtree(root / folder)
    assert_one_line((command(root, tmp_path / "new"), *capsys.readouterr()), "--root: found no label")
    assert not (tmp_path / "new").exists()
