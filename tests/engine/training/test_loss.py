"""The loss ignores voxels of unknown class, and is MONAI's DiceCELoss otherwise."""

import pytest
import torch
from monai.losses import DiceCELoss

from engine.data.labels import IGNORED_INDEX
from engine.training.loss import KnownDiceCELoss, make_loss


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
