"""A step over several batches is one step over all their cases, whose memory is that of one."""

import copy

import pytest
import torch
from monai.losses import DiceCELoss

from engine.training.step import Learner, train_step
from networks import build_network

CRITERION = DiceCELoss(to_onehot_y=True, softmax=True)


def make_learner(accumulate):
    """Make the learner of a network with instance normalisation, in float64."""
    torch.manual_seed(0)
    network = build_network("UNet3D", 1, 3, (16, 16, 32), channels=(2, 2, 2, 2, 2)).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
    return Learner(network, optimizer, None, False, accumulate)


def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 1, 16, 16, 32, generator=generator, dtype=torch.float64)
    return image, torch.randint(3, image.shape, generator=generator)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_train_like_the_batch(parts):
    whole, divided = make_learner(1), make_learner(parts)
    for _ in range(2):
        losses = [train_step(learner, CRITERION, *batch(), 0.1).loss for learner in (whole, divided)]
    torch.testing.assert_close(*losses)
    for one, two in zip(whole.network.parameters(), divided.network.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_only_one_part_is_in_the_network_at_a_time():
    learner, sizes = make_learner(4), []
    learner.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    train_step(learner, CRITERION, *batch(), 0.1)
    assert sizes == [1] * 4


@pytest.mark.parametrize("bad", [0, 1])
def test_a_part_that_is_not_finite_skips_the_whole_step(make_state, bad):
    state = make_state("--accumulate", "2", "--ema", "0.5")
    image = torch.randn(2, 1, 32, 32, 16)
    label = torch.randint(3, image.shape, dtype=torch.uint8)
    assert not train_step(state, CRITERION, image, label, 1e-2).skipped
    networks = (state.network, state.evaluated_network)
    before = copy.deepcopy([network.state_dict() for network in networks])
    image[bad] = torch.nan
    assert train_step(state, CRITERION, image, label, 1e-2).skipped
    for network, weights in zip(networks, before, strict=True):
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert state.average.updates == 1
