"""Rep3D folded for deployment: the same output, and checkpoints that load into either form."""

import copy

import pytest
import torch
from tiny_rep3d import MASKS, every_mask, randomise, relative_error, tiny_rep3d
from torch import nn

from networks.Rep3D import compute_distance_prior, rep3d_block

MASK_AT_START = compute_distance_prior(5)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# Folding


@every_mask
@pytest.mark.parametrize("fuse_norm", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_folding_changes_no_output(mask, fuse_norm, dtype, tolerance):
    network = randomise(tiny_rep3d(**mask)).to(dtype).eval()
    folded = copy.deepcopy(network).switch_to_deploy(fuse_norm=fuse_norm)
    norms = {type(module.norm) for module in folded.modules() if isinstance(module, rep3d_block)}
    assert norms == {nn.Identity if fuse_norm else nn.BatchNorm3d}
    x = torch.randn(1, 1, 32, 48, 16, dtype=dtype)
    assert relative_error(folded(x), network(x)) < tolerance


@every_mask
def test_folding_twice_is_folding_once(mask):
    network = randomise(tiny_rep3d(**mask)).double().switch_to_deploy()
    state = copy.deepcopy(network.state_dict())
    network.switch_to_deploy()
    assert state.keys() == network.state_dict().keys() == tiny_rep3d(deploy=True).state_dict().keys()
    assert not any("lrbm" in name for name in state)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert {value.dtype for name, value in state.items() if "num_batches" not in name} == {torch.float64}


def test_norm_can_be_fused_after_folding_and_only_once():
    block = randomise(rep3d_block(4, ks=7)).eval()
    fused = copy.deepcopy(block).switch_to_deploy().switch_to_deploy(fuse_norm=True).switch_to_deploy(fuse_norm=True)
    x = torch.randn(1, 4, 8, 8, 8)
    assert relative_error(fused(x), block(x)) < 1e-5


@pytest.mark.parametrize("make", [lambda: rep3d_block(4, ks=5), tiny_rep3d], ids=["block", "network"])
def test_norm_is_not_fused_in_training_mode(make):
    module = make()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="evaluation mode"):
        module.switch_to_deploy(fuse_norm=True)
    assert module.state_dict().keys() == before.keys()


# Checkpoints


@every_mask
@pytest.mark.parametrize("fold_first", [False, True], ids=["training checkpoint", "folded checkpoint"])
def test_checkpoint_loads_into_a_deployed_network(mask, fold_first):
    of_prior = {} if mask == MASKS["none"] else {"beta": 2.0}
    network = randomise(tiny_rep3d(**mask, **of_prior)).eval()
    x = torch.randn(1, 1, 32, 32, 16)
    expected = network(x)
    checkpoint = (network.switch_to_deploy() if fold_first else network).state_dict()
    keys = list(checkpoint)
    deployed = tiny_rep3d(**mask, deploy=True).eval()
    deployed.load_state_dict(checkpoint, strict=True)
    assert list(checkpoint) == keys, "loading changed the caller's checkpoint"
    assert relative_error(deployed(x), expected) < 1e-6


@pytest.mark.parametrize("mask", [MASKS[name] for name in MASKS if name != "none"])
def test_folded_checkpoint_loads_into_a_training_network_and_convolves_the_same(mask):
    deployed, network = randomise(tiny_rep3d(**mask, deploy=True)).eval(), tiny_rep3d(**mask).eval()
    network.load_state_dict(deployed.state_dict(), strict=True)
    block, plain = network.rep3d.stages[1][0], deployed.rep3d.stages[1][0]
    assert torch.equal(block.lrbm(), MASK_AT_START.expand_as(block.lrbm()))
    assert not torch.equal(block.dwconv.weight, plain.dwconv.weight)
    x = torch.randn(1, 1, 32, 32, 16)
    assert relative_error(network(x), deployed(x)) < 1e-6


@every_mask
def test_training_checkpoint_loads_into_a_training_network(mask):
    network, other = randomise(tiny_rep3d(**mask)).eval(), tiny_rep3d(**mask).eval()
    other.load_state_dict(network.state_dict(), strict=True)
    x = torch.randn(1, 1, 32, 32, 16)
    assert torch.equal(other(x), network(x))


def test_a_mask_of_another_kind_is_folded_with_its_own_padding_and_floor():
    """A state_dict shows both, so that a block of another network can compute the mask."""
    block = randomise(rep3d_block(4, ks=7, correction="additive", generator_padding="replicate", mask_floor=0.2))
    state, other = block.state_dict(), rep3d_block(4, ks=7, mask="none")
    assert other.has_other_mask(state, "")
    other.fold_stored_mask(state, "")
    torch.testing.assert_close(state["dwconv.weight"], block.get_equivalent_kernel())
    assert (block.lrbm() == 0.2).any()
