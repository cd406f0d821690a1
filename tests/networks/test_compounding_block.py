"""The two published readings of the product: a stored kernel that is multiplied by the prior at every step."""

import copy

import pytest
import torch
from tiny_rep3d import relative_error, tiny_rep3d

from networks import build_network
from networks.large_kernel_conv import large_kernel_conv3d
from networks.Rep3D import compute_distance_prior
from networks.Rep3D.compounding_block import compounding_block

RATE = 0.1


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def step(block, x):
    optimizer = torch.optim.SGD([p for p in block.parameters() if p.requires_grad], RATE)
    optimizer.zero_grad()
    block(x).square().sum().backward()
    optimizer.step()


def test_a_step_is_the_stated_equation():
    """W <- P W - rate dL/d(P W)."""
    block = compounding_block(3, ks=5).double()
    block.norm, block.act = torch.nn.Identity(), torch.nn.Identity()
    x = torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)
    product = (block.dwconv.weight.detach() * block.prior).requires_grad_()
    large_kernel_conv3d(x, product).square().sum().backward()
    step(block, x)
    assert relative_error(block.dwconv.weight, product - RATE * product.grad) < 1e-12


def test_the_published_kernel_is_multiplied_and_not_trained():
    block = compounding_block(3, ks=5, trained=False).double()
    start = block.dwconv.weight.detach().clone()
    for _ in range(4):
        step(block, torch.randn(2, 3, 8, 8, 8, dtype=torch.float64))
    expected = start * compute_distance_prior(5).double() ** 4
    assert relative_error(block.dwconv.weight, expected) < 1e-6
    assert block.dwconv.weight.grad is None


@pytest.mark.parametrize("product", ["compounding", "published"])
def test_evaluation_multiplies_nothing_and_deploys_as_stored(product):
    network = tiny_rep3d(mask="fixed", product=product)
    x = torch.randn(2, 1, 32, 32, 16)
    network(x)
    state = copy.deepcopy(network.eval().state_dict())
    expected = network(x)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    deployed = tiny_rep3d(mask="fixed", product=product, deploy=True).eval()
    deployed.load_state_dict(state)
    torch.testing.assert_close(deployed(x), expected)
    torch.testing.assert_close(network.switch_to_deploy()(x), expected)


@pytest.mark.parametrize(("name", "more"), [("REP3D", {}), ("REP3D_NONE", {}), ("REP3D_FIXED", {"learn_beta": True})])
def test_it_needs_the_fixed_mask(name, more):
    with pytest.raises(ValueError, match=r"product: found published, expected a fixed mask"):
        build_network(name, 1, 2, product="published", **more)
