"""The moving average of the weights holds for every network."""

import copy

import pytest
import torch
from smallest import build_narrow

from engine.training.average import WeightAverage
from networks import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_averaged_tensor_by_tensor_and_once(name):
    """Some networks have a tensor under two names, and frozen parameters."""
    torch.manual_seed(0)
    network = build_narrow(name)
    start = copy.deepcopy(network.state_dict())
    average = WeightAverage(network, 0.9)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor += torch.randn_like(tensor) if tensor.is_floating_point() else 1
    average.update(network, torch.tensor(False))
    found, live = average.network.state_dict(), network.state_dict()
    assert found.keys() == live.keys() == start.keys()
    for key, value in found.items():
        expected = 0.1 * start[key] + 0.9 * live[key] if value.is_floating_point() else live[key]
        torch.testing.assert_close(value, expected)
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
