"""Checkpointing reduces the memory of a training step and changes nothing else."""

import copy

import pytest
import torch

from networks import build_network

SMALL = {"feat_size": (4, 4, 8, 8), "kernel_size": 5}
NETWORKS = {
    "REP3D": ((32, 32, 32), SMALL),
    "REPUXNET": ((32, 32, 32), SMALL),
    "3DUXNET_LRBM": ((32, 32, 32), SMALL),
    "SwinUNETR": ((64, 32, 32), {"feature_size": 12, "num_heads": (1, 1, 2, 2)}),
}


def make_network(name):
    torch.manual_seed(0)
    roi_size, options = NETWORKS[name]
    return build_network(name, 1, 3, roi_size, **options), torch.randn(1, 1, *roi_size)


def held_bytes(network, x):
    """Return the bytes of activations that a forward keeps for its backward pass, and the logits."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    held = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage.nbytes(), tensor  # the tensor keeps its address in use
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = network(x)
    return sum(size for size, _ in held.values()), out


@pytest.mark.parametrize("name", NETWORKS)
def test_same_bits_with_less_memory(name):
    plain, x = make_network(name)
    frugal = copy.deepcopy(plain)
    frugal.enable_checkpointing()
    assert frugal.state_dict().keys() == plain.state_dict().keys()
    results = []
    for network in (plain, frugal):
        held, out = held_bytes(network.train(), x)
        out.square().mean().backward()
        gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
        results.append((held, {"logits": out.detach(), **gradients, **network.state_dict()}))
    (held, expected), (held_by_frugal, found) = results
    assert held_by_frugal < 0.7 * held
    assert all(torch.equal(found[key], value) for key, value in expected.items() if value is not None)


def test_without_gradients_nothing_is_wrapped(monkeypatch):
    network, x = make_network("REP3D")
    expected = network.eval()(x).detach()
    network.enable_checkpointing()
    monkeypatch.setattr("networks.large_kernel_unet.checkpoint", None)
    with torch.no_grad():
        assert torch.equal(network(x), expected)


def test_running_statistics_would_count_a_batch_twice():
    network = build_network("REP3D", 1, 3, norm_name="batch", **SMALL)
    with pytest.raises(ValueError, match=r"encoder1\.\S*norm1: found batch normalisation, expected"):
        network.enable_checkpointing()
    assert not network.checkpointing


def test_networks_without_checkpointing_refuse_it():
    with pytest.raises(ValueError, match="UNet3D keeps all its activations"):
        build_network("UNet3D", 1, 3).enable_checkpointing()
