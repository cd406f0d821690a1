"""Transform pipelines: crops, intensities, spacing and augmentation."""

import argparse

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import DESCRIPTION, write_nifti
from monai.transforms import Compose, RandAffined, RandCropByPosNegLabeld, RandFlipd, RandShiftIntensityd

import main_train
from engine.data.augmentation import RandIsotropicAffineGrid
from engine.data.cache import cached_dataset
from engine.data.cases import find_training_cases, make_case
from engine.data.crops import CountCandidatesd, PadToSized
from engine.data.datasets import DATASETS, DatasetDescription, find_description
from engine.data.loading import training_loader
from load_datasets_transforms import (
    AboveMinimum,
    data_loader,
    data_transforms,
    training_pipelines,
)
from load_datasets_transforms import test_pipeline as prediction_pipeline


def describe(**changes):
    return DatasetDescription.from_json(DESCRIPTION | changes, "test")


def test_the_public_functions_accept_the_parsed_flags(boxes):
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
def test_crops_and_augmentation_equal_those_of_monai(boxes, intensity):
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


BEYOND = {"crop_balance": "classes", "foreground_share": 0.7, "augmentation": "strong", "mirror": ["RL", "IS"]}


def test_a_later_start_sees_the_same_batches_of_strongly_augmented_crops(boxes):
    description = find_description(str(boxes / "boxes.json"))
    training, _ = training_pipelines(description, (16, 16, 16), crop_sample=2, **BEYOND)
    cases, _ = find_training_cases(boxes, description)
    dataset = cached_dataset(cases, training, None, 1.0, num_workers=0)

    def batches(start, num_workers):
        return [batch["image"] for batch in training_loader(dataset, 1, 5, start, 8, num_workers)]

    whole, later = batches(0, num_workers=0), batches(4, num_workers=2)
    assert len(whole) == 8
    assert all(map(torch.equal, whole[4:], later))


def test_notebooks_without_the_newer_flags_have_the_recipe_of_the_paper(boxes):
    args = argparse.Namespace(root=boxes, dataset=str(boxes / "boxes.json"), roi_size=[16, 16, 16], crop_sample=2)
    training, _ = data_transforms(args)
    plain, _ = training_pipelines(find_description(args.dataset), args.roi_size, args.crop_sample)
    assert [type(step) for step in training.transforms] == [type(step) for step in plain.transforms]
    beyond, _ = data_transforms(argparse.Namespace(**vars(args), **BEYOND))
    assert not {RandShiftIntensityd, CountCandidatesd} & {type(step) for step in beyond.transforms}
    (crop,) = (step for step in beyond.transforms if isinstance(step, RandCropByPosNegLabeld))
    assert crop.cropper.pos_ratio == pytest.approx(0.7)
    assert [step.flipper.spatial_axis for step in beyond.transforms if isinstance(step, RandFlipd)] == [0, 2]


@pytest.mark.parametrize("wrong", [{"crop_balance": "class"}, {"augmentation": "Strong"}, {"mirror": ["LR"]}])
def test_unknown_options_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected voxels or classes|expected paper or strong|not in tuple"):
        training_pipelines(describe(), (16, 16, 16), 2, **wrong)


def test_mirroring_flips_image_and_label_along_its_axis(boxes):
    description = find_description(str(boxes / "boxes.json"))
    (case, *_), _ = find_training_cases(boxes, description)
    made = []
    for mirror in (None, ["AP"]):
        training, _ = training_pipelines(description, (16, 16, 16), crop_sample=8, mirror=mirror)
        training.set_random_state(0)
        made.append([torch.cat((crop["image"], crop["label"])) for crop in training(dict(case))])
    flipped = [torch.equal(crop, plain.flip(2)) for plain, crop in zip(*made, strict=True)]
    same = [torch.equal(crop, plain) for plain, crop in zip(*made, strict=True)]
    assert sum(flipped) + sum(same) == 8
    assert 0 < sum(flipped) < 8


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
