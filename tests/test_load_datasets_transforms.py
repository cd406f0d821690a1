"""Descriptions, pairing of cases and the transform pipelines."""

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import DESCRIPTION, write_nifti
from monai.transforms import Compose, RandAffined, RandCropByPosNegLabeld, RandShiftIntensityd

import main_train
from engine.data.augmentation import RandIsotropicAffineGrid
from engine.data.cases import find_cases, find_splits, find_test_cases, find_training_cases, make_case, pair_cases
from engine.data.crops import CountCandidatesd, PadToSized
from engine.data.datasets import DATASETS, DatasetDescription, find_description
from engine.runtime.errors import InputError
from load_datasets_transforms import (
    AboveMinimum,
    data_loader,
    data_transforms,
    training_pipelines,
)
from load_datasets_transforms import test_pipeline as prediction_pipeline

SEEDS = {  # the table of the paper's data preparation: spacing in mm, intensity window, classes
    "amos": ((1.5, 1.5, 2.0), (-125, 275), 16),
    "amos_mri": ((1.0, 1.0, 1.0), (0, 1000), 14),
    "kits": ((1.5, 1.5, 2.0), (-125, 275), 4),
    "pancreas": ((1.5, 1.5, 2.0), (-125, 275), 3),
    "hepatic": ((1.5, 1.5, 2.0), (0, 230), 3),
}


def describe(**changes):
    return DatasetDescription.from_json(DESCRIPTION | changes, "test")


def test_the_five_datasets_are_those_of_the_paper():
    found = {name: (made.spacing, made.window, len(made.classes)) for name, made in DATASETS.items()}
    assert found == SEEDS
    assert all(made.classes[0] == "background" for made in DATASETS.values())
    assert all(len(set(made.classes)) == len(made.classes) for made in DATASETS.values())


@pytest.mark.parametrize("name", DATASETS)
def test_description_survives_json(name):
    assert DatasetDescription.from_json(DATASETS[name].to_json(), name) == DATASETS[name]


def test_label_values_order_the_classes():
    labels = {"right": 2, "background": 0, "left": 1}
    assert describe(labels=labels).classes == ("background", "left", "right")


def test_dataset_by_name_and_path(boxes):
    assert find_description("kits") is DATASETS["kits"]
    made = find_description(str(boxes / "boxes.json"))
    assert made.window is None


def touch(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_cases_are_paired_by_id_not_by_order(tmp_path):
    images = touch(tmp_path / "images", "b.nii.gz", "a.nii", "._a.nii", "notes.txt")
    labels = touch(tmp_path / "labels", "a.nii.gz", "b.nii")
    cases = [(case["id"], case["image"], case["label"]) for case in pair_cases(images, labels)]
    assert cases == [
        ("a", str(images / "a.nii"), str(labels / "a.nii.gz")),
        ("b", str(images / "b.nii.gz"), str(labels / "b.nii")),
    ]


def ids(cases):
    return [case["id"] for case in cases]


def test_labels_tell_whether_numbers_are_channels_or_ids(tmp_path):
    amos = touch(tmp_path / "amos", "amos_0000.nii.gz", "amos_0001.nii.gz")
    assert ids(pair_cases(amos, amos)) == ids(pair_cases(amos, None)) == ["amos_0000", "amos_0001"]
    lone = touch(tmp_path / "lone", "amos_0000.nii.gz")
    assert ids(pair_cases(lone, lone)) == ids(pair_cases(lone, None)) == ["amos_0000"]
    assert ids(pair_cases(amos / "amos_0000.nii.gz", amos)) == ["amos_0000"]
    nnunet = touch(tmp_path / "nnunet", "a_0000.nii.gz", "b_0000.nii.gz")
    labels = touch(tmp_path / "labels", "a.nii.gz", "b.nii.gz")
    assert ids(pair_cases(nnunet, labels)) == ["a", "b"]
    assert pair_cases(nnunet, labels)[0]["image"] == str(nnunet / "a_0000.nii.gz")


def test_several_channels_are_files_of_their_own_or_one_4d_file(tmp_path):
    separate = touch(tmp_path / "separate", *(f"{case}_000{channel}.nii" for case in "ab" for channel in (0, 1)))
    cases = pair_cases(separate, None, channels=2)
    assert ids(cases) == ["a", "b"]
    assert cases[1]["image"] == [str(separate / "b_0000.nii"), str(separate / "b_0001.nii")]
    whole = touch(tmp_path / "whole", "a_0000.nii.gz", "a_0001.nii.gz")
    assert ids(pair_cases(whole, whole, channels=2)) == ["a_0000", "a_0001"]
    assert ids(pair_cases(touch(tmp_path / "plain", "a.nii", "b.nii"), None, channels=2)) == ["a", "b"]


def test_missing_channel_is_named(tmp_path):
    images = touch(tmp_path / "images", "a_0000.nii", "a_0001.nii", "b_0001.nii")
    with pytest.raises(InputError, match=r"b: found b_0001.nii, expected 2 files, b_0000 to b_0001"):
        pair_cases(images, None, channels=2)


def test_unpaired_ids_are_named(tmp_path):
    images = touch(tmp_path / "images", *(f"{number}.nii" for number in range(9)))
    labels = touch(tmp_path / "labels", "8.nii")
    with pytest.raises(InputError, match="found 0, 1, 2, 3, 4, 5, 6, 7 without a label"):
        pair_cases(images, labels)


def test_all_that_does_not_pair_is_told_and_the_rest_is_paired(tmp_path):
    images = touch(tmp_path / "images", "a.nii", "b.nii", "c.nii", "c.nii.gz", "d.nii")
    labels = touch(tmp_path / "labels", "c.nii", "d.nii", "e.nii", "e.nii.gz", "f.nii")
    cases, problems = find_cases(images, labels)
    assert ids(cases) == ["c", "d"]
    assert [problem.partition(", expected")[0] for problem in problems] == [
        f"{images}/c.nii.gz: found c twice",
        f"{labels}/e.nii.gz: found e twice",
        f"{images}: found a, b without a label in {labels}",
        f"{labels}: found e, f without an image in {images}",
    ]


def test_incomplete_channels_are_told_and_their_labels_are_not(tmp_path):
    names = ("a_0000", "a_0001", "b_0000", "c_0001", "c_0002", "d_0000", "d_0001")
    images = touch(tmp_path / "images", *(f"{name}.nii" for name in names))
    labels = touch(tmp_path / "labels", *(f"{name}.nii" for name in "abc"))
    cases, problems = find_cases(images, labels, channels=2)
    assert ids(cases) == ["a"]
    assert sorted(problem.partition(",")[0] for problem in problems) == [
        f"{images}: found d without a label in {labels}",
        "b: found b_0000.nii",
        "c: found c_0001.nii",
    ]


def test_images_are_cases_where_there_is_no_label(tmp_path):
    images = touch(tmp_path / "images", "a.nii")
    cases, problems = find_cases(images, tmp_path / "labels")
    assert ids(cases) == ["a"]
    assert problems == [f"{tmp_path}/labels: not found, expected a folder of .nii.gz or .nii files"]
    assert find_cases(tmp_path / "none", images)[0] == []


def test_problems_of_both_splits_are_told_at_once(boxes):
    for name in ("imagesTr/box_0", "labelsVal/box_9"):
        (boxes / f"{name}.nii.gz").unlink()
    with pytest.raises(InputError) as caught:
        find_training_cases(boxes, DATASETS["amos"])
    assert ["box_0" in line or "box_9" in line for line in str(caught.value).splitlines()] == [True, True]


def test_test_cases_are_found_where_there_are_any(boxes):
    amos = find_description("amos")
    assert list(find_splits(boxes, amos, test=True)[0]) == ["training", "validation"]
    (boxes / "imagesVal").rename(boxes / "imagesTs")
    splits, problems = find_splits(boxes, amos, test=True)
    assert [ids(cases) for cases in splits.values()] == [["box_0", "box_1", "box_2"], [], ["box_8", "box_9"]]
    assert "label" not in splits["test"][0]
    assert len(problems) == 1
    (boxes / "labelsVal").rename(boxes / "labelsTs")
    assert "label" in find_splits(boxes, amos, test=True)[0]["test"][0]


def test_the_public_functions_take_the_flags(boxes):
    flags = ["--root", boxes, "--output", "none", "--dataset", boxes / "boxes.json", "--roi_size", 16, 16, 16]
    args = main_train.parse_args(list(map(str, flags)))
    training, validation = data_loader(args)
    assert [len(training), len(validation)] == [3, 2]
    for transforms, case in zip(data_transforms(args), (training[0], validation[0]), strict=True):
        made = transforms(case)
        assert (
            [len(made), made[0]["image"].shape[1:]] == [2, (16, 16, 16)]
            if isinstance(made, list)
            else made["image"].ndim == 4
        )


def test_cases_remember_their_files_where_transforms_put_volumes(boxes):
    description = find_description(str(boxes / "boxes.json"))
    for case in find_test_cases(str(boxes), None, None, description):
        sample = prediction_pipeline(description)(case)
        assert sample["source"] == case["image"] == str(boxes / "imagesVal" / f"{case['id']}.nii.gz")
        assert sample["label"] == case["label"] == str(boxes / "labelsVal" / f"{case['id']}.nii.gz")


def test_training_crops_have_their_shapes_and_types(boxes):
    description = find_description(str(boxes / "boxes.json"))
    training, _ = training_pipelines(description, (16, 32, 48), crop_sample=2)
    (case, *_), _ = find_training_cases(boxes, description)
    training.set_random_state(0)
    crops = training(case)
    assert len(crops) == 2
    for crop in crops:
        assert crop["image"].shape == crop["label"].shape == (1, 16, 32, 48)
        assert (crop["image"].dtype, crop["label"].dtype) == (torch.float32, torch.uint8)
        assert set(crop["label"].unique().tolist()) <= {0, 1, 2}
    assert not torch.equal(crops[0]["image"], crops[1]["image"])


@pytest.mark.parametrize("intensity", [{"zscore": True}, {"window": [60, 200]}], ids=["zscore", "window"])
def test_crops_and_augmentation_are_monais(boxes, intensity):
    size, keys = (16, 32, 48), ["image", "label"]
    training, _ = training_pipelines(describe(intensity=intensity), size, crop_sample=2)
    deterministic = next(n for n, step in enumerate(training.transforms) if isinstance(step, CountCandidatesd))
    affine = RandAffined(keys, prob=1.0, spatial_size=size, mode=("bilinear", "nearest"))
    affine.rand_affine.rand_affine_grid = RandIsotropicAffineGrid(
        rotate_range=(0.0, 0.0, np.pi / 30), scale_range=(0.1, 0.1, 0.1)
    )
    image_key = "image" if "window" in intensity else None
    crop = RandCropByPosNegLabeld(keys, "label", size, num_samples=2, image_key=image_key)
    plain = Compose([*training.transforms[:deterministic], crop, RandShiftIntensityd("image", 0.1, prob=0.5), affine])
    (case, *_), _ = find_training_cases(boxes, DATASETS["amos"])
    for seed in range(4):
        for pipeline in (training, plain):
            pipeline.set_random_state(seed)
        for ours, theirs in zip(training(dict(case)), plain(dict(case)), strict=True):
            assert ours.keys() == theirs.keys() == {"id", "source", "image", "label"}
            assert torch.allclose(ours["image"], theirs["image"].as_tensor(), rtol=0, atol=1e-5)
            assert (ours["label"] != theirs["label"].as_tensor()).float().mean() < 1e-4


def test_small_volumes_are_padded_with_the_minimum_and_background(tmp_path):
    voxels = np.random.default_rng(0).normal(50, 10, (8, 9, 10)).astype(np.float32)
    write_nifti(tmp_path / "image.nii.gz", voxels)
    write_nifti(tmp_path / "label.nii.gz", np.ones((8, 9, 10), np.uint8))
    training, _ = training_pipelines(describe(), (16, 16, 16), crop_sample=2)
    padded = training(
        make_case("case", str(tmp_path / "image.nii.gz"), str(tmp_path / "label.nii.gz")), end=8, threading=True
    )
    assert padded["image"].shape == (1, 16, 16, 16)
    assert padded["image"][0, 0, 0, 0] == padded["image"].min() < -1
    assert padded["label"].sum() == 8 * 9 * 10


def test_window_and_zscore(tmp_path):
    voxels = np.linspace(-1000, 1000, 12**3, dtype=np.float32).reshape(12, 12, 12)
    write_nifti(tmp_path / "image.nii.gz", voxels)
    case = {"image": str(tmp_path / "image.nii.gz")}
    windowed = prediction_pipeline(describe(intensity={"window": [-125, 275]}))
    image = windowed(case)["image"]
    expected = np.clip((voxels + 125) / 400, 0, 1)
    assert np.allclose(np.sort(image[image > 0].numpy()), np.sort(expected[expected > 0]))
    assert image.min() == 0
    normalised = prediction_pipeline(describe())
    image = normalised(case)["image"]
    assert image.mean().item() == pytest.approx(0, abs=0.01)
    assert image.std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "AIL"])
def test_spacing_follows_the_patient_whatever_the_axis_order(tmp_path, codes):
    voxels = np.random.default_rng(0).random((10, 12, 14)).astype(np.float32)
    image = nib.Nifti1Image(voxels, np.diag([2.0, 3.0, 4.0, 1.0]))
    to = nib.orientations.axcodes2ornt(codes)
    nib.save(
        image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), to)), tmp_path / "i.nii"
    )
    transforms = prediction_pipeline(describe(spacing=[1.0, 1.5, 4.0]))
    out = transforms({"image": str(tmp_path / "i.nii")})["image"]
    assert nib.aff2axcodes(out.affine.numpy()) == ("R", "A", "S")
    assert out.shape[3] == 14  # the superior axis keeps its 4 mm
    assert np.allclose(out.pixdim, [1.0, 1.5, 4.0])


def test_augmentation_is_that_of_the_paper():
    training, _ = training_pipelines(DATASETS["amos"], (16, 16, 16), crop_sample=2)
    affine = next(step for step in training.transforms if isinstance(step, RandAffined)).rand_affine.rand_affine_grid
    affine.set_random_state(0)
    scales, angles = [], []
    for _ in range(200):
        affine.randomize()
        assert len(set(affine.scale_params)) == 1  # isotropic
        assert affine.rotate_params[:2] == [0, 0]
        scales.append(affine.scale_params[0])
        angles.append(affine.rotate_params[2])
    assert 0.9 <= min(scales) < 0.91
    assert 1.09 < max(scales) <= 1.1
    assert 0.9 * np.pi / 30 < max(np.abs(angles)) <= np.pi / 30


def test_training_and_validation_share_the_deterministic_part(boxes):
    description = find_description(str(boxes / "boxes.json"))
    training, validation = training_pipelines(description, (16, 16, 16), crop_sample=2)
    (case, *_), _ = find_training_cases(boxes, description)
    steps = len(validation.transforms)
    one, other = training(dict(case), end=steps, threading=True), validation(dict(case))
    assert torch.equal(one["image"], other["image"])
    assert torch.equal(one["label"], other["label"])


def test_constant_volume_keeps_its_voxels():
    assert AboveMinimum()(torch.full((1, 2, 2, 2), 7.0)).all()


def test_every_channel_has_its_own_minimum():
    image = torch.tensor([0.0, 1.0, 5.0, 5.0]).reshape(2, 1, 1, 2)
    assert AboveMinimum()(image).flatten().tolist() == [False, True, False, False]
    padded = PadToSized(["image"], (1, 1, 4))({"image": image})["image"]
    assert padded.flatten().tolist() == [0, 0, 1, 0, 5, 5, 5, 5]
