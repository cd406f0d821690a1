"""Crops drawn from counts of candidates equal those of MONAI, which lists every voxel."""

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandCropByPosNegLabeld

from engine.data.crops import (
    BalancedCandidates,
    Candidates,
    CountCandidatesd,
    CountClassesd,
    PadToSized,
    RandCropByClassesd,
    RandCropByCountsd,
)
from engine.data.labels import IGNORED_INDEX

KEYS, SIZE, SAMPLES = ["image", "label"], (4, 3, 5), 12


def make_case(channels, labelled, seed=0, shape=(9, 7, 11)):
    """Draw noise around 0, and label a share of the voxels 1 or 2."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn((channels, *shape), generator=generator)
    chosen = torch.rand((1, *shape), generator=generator) < labelled
    label = chosen * torch.randint(1, 3, (1, *shape), generator=generator)
    return {"image": image, "label": label.to(torch.uint8)}


@pytest.mark.parametrize("image_key", [None, "image"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [SIZE, (12, 3, 13), (1, 1, 1), (9, 7, 11)])
@pytest.mark.parametrize("labelled", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.filterwarnings("ignore:Num foregrounds")
def test_crops_are_bit_equal_to_those_of_monai(image_key, channels, size, labelled):
    case = PadToSized(KEYS, size)(make_case(channels, labelled))
    ours = Compose([CountCandidatesd(image_key), RandCropByCountsd(KEYS, size, SAMPLES, image_key)])
    theirs = Compose([RandCropByPosNegLabeld(KEYS, "label", size, 1, 1, SAMPLES, image_key=image_key)])
    for seed in range(3):
        for transform in (ours, theirs):
            transform.set_random_state(seed)
        for crop, expected in zip(ours(dict(case)), theirs(dict(case)), strict=True):
            assert crop.keys() == expected.keys()
            assert crop["image"].meta["crop_center"] == expected["image"].meta["crop_center"]
            assert all(torch.equal(crop[key], expected[key]) for key in KEYS)


@pytest.mark.filterwarnings("ignore:Num foregrounds")
def test_a_volume_without_any_candidate_is_background_everywhere():
    case = make_case(1, 0.0) | {"image": torch.zeros(1, 9, 7, 11)}
    ours = Compose([CountCandidatesd("image"), RandCropByCountsd(KEYS, SIZE, SAMPLES, "image")])
    everywhere = Compose([RandCropByPosNegLabeld(KEYS, "label", SIZE, 1, 1, SAMPLES, image_key=None)])
    for transform in (ours, everywhere):
        transform.set_random_state(0)
    centres = [[crop["image"].meta["crop_center"] for crop in transform(case)] for transform in (ours, everywhere)]
    assert centres[0] == centres[1]
    assert len(set(map(str, centres[0]))) > 1


@pytest.mark.parametrize("image_key", [None, "image"])
@pytest.mark.parametrize("ignored", [0.5, 0.999])
def test_ignored_voxels_are_no_centres(image_key, ignored):
    case = make_case(1, 0.3)
    unknown = torch.rand(case["label"].shape, generator=torch.Generator().manual_seed(1)) < ignored
    case["label"][unknown] = IGNORED_INDEX
    size = (1, 1, 1)
    crops = Compose([CountCandidatesd(image_key), RandCropByCountsd(KEYS, size, 200, image_key)])
    crops.set_random_state(0)
    assert not any((crop["label"] == IGNORED_INDEX).any() for crop in crops(case))


@pytest.mark.filterwarnings("ignore:Num foregrounds")
def test_a_volume_of_ignored_voxels_is_background_everywhere():
    case = make_case(1, 0.0)
    case["label"][:] = IGNORED_INDEX
    for key in (None, "image"):
        crops = Compose([CountCandidatesd(key), RandCropByCountsd(KEYS, SIZE, SAMPLES, key)])
        crops.set_random_state(0)
        assert len({str(crop["image"].meta["crop_center"]) for crop in crops(dict(case))}) > 1


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_candidates_are_those_that_nonzero_lists(share):
    mask = torch.from_numpy(np.random.default_rng(1).random((30, 8)) < share)
    candidates = Candidates(mask.sum(1).cumsum(0), 8, lambda row: mask[row])
    assert [candidates[number] for number in range(len(candidates))] == mask.flatten().nonzero().flatten().tolist()


def centre_classes(case, classes=4, samples=200, share=1.0, image_key=None):
    """Draw crops of one voxel, balanced by class, and return the labels of the voxels."""
    crop = RandCropByClassesd(KEYS, (1, 1, 1), samples, image_key, share)
    crops = Compose([CountClassesd(image_key, classes), crop])
    crops.set_random_state(0)
    return np.array([int(made["label"]) for made in crops(dict(case))])


def test_every_class_of_a_case_is_equally_frequent():
    case = make_case(1, 0.9)
    rare = case["label"] == 2
    case["label"][rare] = 1
    case["label"][0, 3, 4, 5] = 3  # a single voxel; there is no 2
    found = centre_classes(case)
    assert set(found) == {1, 3}
    assert np.mean(found == 3) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("image_key", [None, "image"])
def test_the_share_of_foreground_holds_for_both_kinds_of_crops(image_key):
    case = make_case(1, 0.1)
    plain = Compose([CountCandidatesd(image_key), RandCropByCountsd(KEYS, (1, 1, 1), 200, image_key, 0.8)])
    plain.set_random_state(0)
    voxels = np.array([int(crop["label"]) for crop in plain(dict(case))])
    balanced = centre_classes(case, share=0.8, image_key=image_key)
    for found in (voxels, balanced):
        assert np.mean(found > 0) == pytest.approx(0.82 if image_key is None else 0.8, abs=0.07)


@pytest.mark.parametrize("ignored", [0.5, 1.0])
def test_ignored_voxels_are_no_class(ignored):
    case = make_case(1, 0.3)
    unknown = torch.rand(case["label"].shape, generator=torch.Generator().manual_seed(1)) < ignored
    case["label"][unknown] = IGNORED_INDEX
    # Without any known voxel every voxel is background.
    assert set(centre_classes(case)) == ({1, 2} if ignored < 1 else {IGNORED_INDEX})


def test_counts_of_classes_are_few_and_complete():
    case = make_case(1, 0.5)
    counts = CountClassesd(None, 4)(case)["foreground_counts"]
    assert counts.shape == (3, 9)
    assert counts[:, -1].tolist() == [int((case["label"] == index).sum()) for index in (1, 2, 3)]


def test_numbers_of_balanced_candidates_are_spread_over_all_voxels_of_a_class():
    masks = [torch.tensor([[0, 1, 1, 0, 1]], dtype=torch.bool), torch.zeros(1, 5, dtype=torch.bool)]
    parts = [Candidates(mask.sum(1).cumsum(0), 5, lambda row, mask=mask: mask[row]) for mask in [*masks, ~masks[0]]]
    balanced = BalancedCandidates(parts)
    share = BalancedCandidates.SHARE
    assert len(balanced) == 2 * share
    assert [balanced[number] for number in (0, share // 2, share - 1, share, 2 * share - 1)] == [1, 2, 4, 0, 3]
    assert len(BalancedCandidates(parts[1:2])) == 0


def test_large_enough_volumes_are_not_touched():
    case = make_case(2, 0.5)
    padded = PadToSized(KEYS, (9, 7, 5))(case)
    assert all(padded[key] is case[key] for key in KEYS)
