"""The loss ignores voxels of unknown class, is MONAI's DiceCELoss otherwise, and has a mean over several grids."""

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss

from engine.data.labels import IGNORED_INDEX
from engine.training.loss import KnownDiceCELoss, make_loss, pick_nearest


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(2, 3, 6, 5, 4, dtype=torch.float64), torch.randint(3, (2, 1, 6, 5, 4), dtype=torch.uint8)


def test_without_ignored_voxels_it_is_that_of_monai(batch):
    assert isinstance(make_loss(with_ignored=False), DiceCELoss)
    expected = make_loss(with_ignored=False)(*batch)
    torch.testing.assert_close(make_loss(with_ignored=True)(*batch), expected)


def test_it_is_that_of_the_known_voxels_alone(batch):
    """As if the others were cut off."""
    logits, label = batch
    label[:, :, 4:] = IGNORED_INDEX
    torch.testing.assert_close(KnownDiceCELoss()(logits, label), make_loss(False)(logits[:, :, :4], label[:, :, :4]))


def test_ignored_voxels_have_no_gradient(batch):
    logits, label = batch[0].requires_grad_(), batch[1]
    label[0, 0, :3] = IGNORED_INDEX
    KnownDiceCELoss()(logits, label).backward()
    ignored = (label == IGNORED_INDEX).expand_as(logits)
    assert torch.equal(logits.grad[ignored], torch.zeros(int(ignored.sum()), dtype=logits.dtype))
    assert (logits.grad[~ignored] != 0).all()


def test_a_batch_without_known_voxels_has_no_loss(batch):
    logits = batch[0].requires_grad_()
    loss = KnownDiceCELoss()(logits, torch.full_like(batch[1], IGNORED_INDEX))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 2, 2), (1, 2, 4), (3, 8, 5)])
def test_coarse_labels_are_the_nearest(factors):
    torch.manual_seed(0)
    size = (3, 2, 4)
    label = torch.randint(200, (2, 1, *(side * factor for side, factor in zip(size, factors, strict=True))))
    expected = F.interpolate(label.double(), size, mode="nearest-exact").long()
    assert torch.equal(pick_nearest(label, size), expected)


@pytest.mark.parametrize("with_ignored", [False, True])
def test_grids_count_half_as_much_from_one_to_the_next(with_ignored):
    torch.manual_seed(0)
    label = torch.randint(3, (2, 1, 8, 8, 16), dtype=torch.uint8)
    if with_ignored:
        label[:, :, 5:] = IGNORED_INDEX
    sizes = [(8, 8, 16), (4, 4, 8), (2, 2, 4)]
    logits = [torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    one, many = make_loss(with_ignored), make_loss(with_ignored, deep_supervision=True)
    losses = [one(grid, pick_nearest(label, size)) for grid, size in zip(logits, sizes, strict=True)]
    total = many(logits, label)
    torch.testing.assert_close(total, (4 * losses[0] + 2 * losses[1] + losses[2]) / 7)
    total.backward()
    assert all((grid.grad != 0).any() for grid in logits)
    torch.testing.assert_close(many(logits[:1], label), losses[0])
