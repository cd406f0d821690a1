"""The moving average of the weights: its numbers, what a skipped step leaves alone, and what is saved and resumed."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from engine.training.average import WeightAverage
from engine.training.start import StartWeights
from engine.training.step import train_step
from engine.weights.load_network import load_trained

DECAY = 0.3
STEPS = 6
NO, YES = torch.tensor(False), torch.tensor(True)


def jump(network):
    """Change every parameter and every floating-point buffer, and count as a batch normalisation does."""
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor += torch.randn_like(tensor)
            else:
                tensor += 1


def test_it_is_that_of_pytorch_with_a_growing_decay():
    def average(average, value, updates):
        decay = min(DECAY, updates.item() / (9 + updates.item()))  # PyTorch counts its copy of the start
        return decay * average + (1 - decay) * value

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)).double()
    found = WeightAverage(network, DECAY)
    expected = AveragedModel(network, avg_fn=average, use_buffers=True)
    expected.update_parameters(network)
    decays = []
    for update in range(STEPS):
        decays.append(min(DECAY, (1 + update) / (10 + update)))
        jump(network)
        found.update(network, NO)
        expected.update_parameters(network)
    assert decays[0] == 0.1
    assert decays[-1] == DECAY
    assert found.network.state_dict().pop("1.num_batches_tracked") == STEPS
    for one, two in zip(found.network.parameters(), expected.module.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)  # PyTorch's share is a float64, this one a float32
    torch.testing.assert_close(found.network[1].running_var, expected.module[1].running_var, rtol=1e-6, atol=1e-6)


def test_a_skipped_step_changes_nothing_and_is_not_counted():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    average = WeightAverage(network, 0.9)
    jump(network)
    average.update(network, NO)
    before = copy.deepcopy(average.network.state_dict())
    network[0].weight.data += 1
    average.update(network, YES)
    assert average.updates == 1
    assert all(torch.equal(before[name], value) for name, value in average.network.state_dict().items())


def step(state, image, scale=1.0):
    return train_step(state, lambda logits, _: scale * logits.square().mean(), image, image, 1e-2)


def test_a_resumed_average_goes_on_bit_by_bit(make_state, tmp_path):
    image = torch.randn(1, 1, 32, 32, 16)
    whole, cut, resumed = (make_state("--ema", "0.9") for _ in range(3))
    for state in (whole, cut):
        step(state, image)
        step(state, image, torch.nan)
        step(state, image)
    cut.save(tmp_path)
    resumed.restore(tmp_path)
    for state in (whole, resumed):
        step(state, image)
    assert whole.average.updates == resumed.average.updates == 3
    for name in ("network", "evaluated_network"):
        weights, others = (getattr(state, name).state_dict() for state in (whole, resumed))
        assert all(torch.equal(value, others[key]) for key, value in weights.items())
    key = "out.conv.conv.weight"
    assert not torch.equal(whole.network.state_dict()[key], whole.evaluated_network.state_dict()[key])


def test_files_hold_the_average_and_other_weights_start_it(make_state, tmp_path):
    state = make_state("--ema", "0.9")
    step(state, torch.randn(1, 1, 32, 32, 16))
    state.keep_best(0.5, tmp_path)
    state.save_weights(tmp_path / "weights_1.pth")
    state.save(tmp_path)
    average = state.evaluated_network.state_dict()
    for name in ("best_metric_model.pth", "weights_1.pth", "last_checkpoint.pth"):
        loaded = load_trained(tmp_path / name, "--trained_weights").network.state_dict()
        assert all(torch.equal(value, average[key]) for key, value in loaded.items())
    last = torch.load(tmp_path / "last_checkpoint.pth", weights_only=True)
    assert all(torch.equal(value, last["trained_model"][key]) for key, value in state.network.state_dict().items())
    other = make_state("--ema", "0.9")
    step(other, torch.randn(1, 1, 32, 32, 16))
    other.start_from(StartWeights("last_checkpoint.pth", last, ()))
    for network in (other.network, other.evaluated_network):
        assert all(torch.equal(value, average[key]) for key, value in network.state_dict().items())
    assert other.average.updates == 0
