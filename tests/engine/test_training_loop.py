"""One optimiser step: what it waits for, and what a loss that is not finite leaves behind."""

import copy

import pytest
import torch
from conftest import train_arguments
from monai.losses import DiceCELoss
from torch.utils._python_dispatch import TorchDispatchMode

import main_train
from engine import training_loop
from engine.checkpoints import NetworkConfig
from engine.description import DatasetDescription
from engine.devices import make_autocast
from engine.errors import InputError
from engine.training import TrainingState
from engine.training_loop import check_finite, train_step

CPU = torch.device("cpu")
CRITERION = DiceCELoss(to_onehot_y=True, softmax=True)


class CountReads(TorchDispatchMode):
    """Counts the operations that bring a value to the host; on a GPU each would wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def make_state(box_template, tmp_path):
    def make(*more):
        torch.manual_seed(0)
        words = train_arguments(box_template, tmp_path, *more)
        args = main_train.parse_args([str(word) for word in words])
        description = DatasetDescription.read(box_template / "boxes.json")
        return TrainingState(args, NetworkConfig.from_flags(args, description), description, ["case"], CPU)

    return make


def step(state, image):
    label = torch.randint(3, image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return train_step(state, CRITERION, image, label, 1e-2, make_autocast(CPU, state.precision))


def test_a_step_reads_nothing_back(make_state):
    state = make_state()
    image = torch.randn(1, 1, 32, 32, 16)
    step(state, image)  # the first one may set things up
    with CountReads() as reads:
        loss = step(state, image)
        assert reads.count == 0
        loss.item()
        assert reads.count == 1


@pytest.mark.parametrize("more", [("--optim", name) for name in ("AdamW", "Adam", "SGD")] + [("--network", "REPOPT")])
def test_a_loss_that_is_not_finite_changes_no_weight(make_state, more):
    state = make_state(*more)
    image = torch.randn(1, 1, 32, 32, 16)
    assert step(state, image).isfinite()
    before = copy.deepcopy((dict(state.network.named_parameters()), state.optimizer.state_dict()["state"]))
    assert not step(state, torch.full_like(image, torch.nan)).isfinite()
    parameters, moments = dict(state.network.named_parameters()), state.optimizer.state_dict()["state"]
    assert all(torch.equal(before[0][name], value) for name, value in parameters.items())
    assert all(torch.equal(before[1][key][name], value) for key in moments for name, value in moments[key].items())
    norms = [module for module in state.network.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    for norm in norms:
        norm.reset_running_stats()  # these the forward has changed
    assert step(state, image).isfinite()
    assert not torch.equal(before[0]["out.conv.conv.weight"], parameters["out.conv.conv.weight"])


def test_a_loss_that_is_not_finite_in_another_process_changes_no_weight(make_state, monkeypatch):
    state = make_state()
    before = copy.deepcopy(dict(state.network.named_parameters()))
    monkeypatch.setattr(training_loop, "mean_over_processes", lambda loss: loss + torch.nan)
    step(state, torch.randn(1, 1, 32, 32, 16))
    assert all(torch.equal(before[name], value) for name, value in state.network.named_parameters())


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_a_first_step_that_is_skipped_leaves_no_trace(make_state, name):
    """As with --amp fp16, whose scale starts too high."""
    skipped, other = make_state("--optim", name), make_state("--optim", name)
    image = torch.randn(1, 1, 32, 32, 16)
    step(skipped, torch.full_like(image, torch.nan))
    for norm in skipped.network.modules():
        if isinstance(norm, torch.nn.BatchNorm3d):
            norm.reset_running_stats()
    for state in (skipped, other):
        step(state, image)
    for one, two in zip(skipped.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(one, two)


def test_moments_saved_in_another_layout_are_those_of_the_same_weights(make_state, tmp_path):
    saved, resumed = make_state(), make_state()
    image = torch.randn(1, 1, 32, 32, 16)
    step(saved, image)
    laid_out = copy.deepcopy(saved.optimizer.state_dict())
    for moments in saved.optimizer.state.values():
        moments.update({name: value.contiguous() for name, value in moments.items()})  # as a GPU has them
    saved.save(tmp_path / "last.pth")
    saved.optimizer.load_state_dict(laid_out)
    resumed.restore(tmp_path / "last.pth")
    for state in (saved, resumed):
        step(state, image)
    for one, two in zip(saved.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, two)


def test_checkpointing_reaches_the_network(make_state):
    assert make_state("--checkpointing").network.checkpointing
    assert not make_state().network.checkpointing


def test_weights_that_are_not_finite_are_not_saved(make_state):
    state = make_state()
    check_finite(state)
    with torch.no_grad():
        next(state.network.parameters()).view(-1)[0] = torch.inf
    with pytest.raises(InputError, match="weights that are not finite at iteration 0"):
        check_finite(state)
