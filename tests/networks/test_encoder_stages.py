"""The encoder of every network, stage by stage: complete, in order, and nothing of the decoder."""

import pytest
import torch
from smallest import build_narrow, smallest_input
from torch import nn

from networks import NETWORKS

every_network = pytest.mark.parametrize("name", NETWORKS)


def stage_of(network, name):
    """Return the only stage that a parameter or module belongs to; None for the decoder."""
    stages = [i for i, prefixes in enumerate(network.encoder_prefixes) if name.startswith(prefixes)]
    assert len(stages) < 2, name
    return stages[0] if stages else None


def build(name):
    """Build a network without weights; its deployed form, because masks have grids of their own."""
    with torch.device("meta"):
        return build_narrow(name, deploy=True)


@every_network
def test_every_parameter_is_in_one_stage_at_most_and_every_prefix_names_some(name):
    with torch.device("meta"):
        network = build_narrow(name)
    names = [key for key, parameter in network.named_parameters() if parameter.requires_grad]
    found = {key: stage_of(network, key) for key in names}
    assert len(network.encoder_prefixes) > 1
    for prefixes in network.encoder_prefixes:
        assert all(any(key.startswith(prefix) for key in names) for prefix in prefixes)
    assert {found[key] for key in names if key.startswith(network.head_prefixes)} == {None}


@every_network
def test_stages_run_from_the_image_to_the_coarsest_grid_and_before_the_decoder(name):
    """Grids are compared by their positions: voxels or tokens of a layer's output."""
    network, ran = build(name), []

    def record(key):
        return lambda module, _, output: ran.append((stage_of(network, key), output.numel() // len(module.weight)))

    for key, module in network.named_modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            module.register_forward_hook(record(f"{key}."))
    with torch.device("meta"):
        network(torch.zeros(1, 1, *smallest_input(name)))
    stages = [stage for stage, _ in ran if stage is not None]
    assert stages == sorted(stages)
    assert set(stages) == set(range(len(network.encoder_prefixes)))
    assert [stage for stage, _ in ran[: len(stages)]] == stages  # a stage left out would run among them
    grids = [min(positions for stage, positions in ran if stage == i) for i in sorted(set(stages))]
    assert grids == sorted(grids, reverse=True)
    assert grids[-1] == min(positions for _, positions in ran)
