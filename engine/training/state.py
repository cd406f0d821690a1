"""What a training run consists of, how it is saved and taken up again, and the recipe's schedule and optimisers."""

import argparse
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, AdamW, Optimizer

from engine.data.datasets import DatasetDescription
from engine.runtime.devices import choose_precision, make_autocast, place
from engine.runtime.distributed import parallelise, process_count, synchronise_batch_norm
from engine.runtime.errors import InputError
from engine.runtime.files import BEST, LAST, PREVIOUS
from engine.training.rep_optimizer import scale_updates
from engine.weights.checkpoints import NetworkConfig, load_last_good, save_checkpoint
from engine.weights.load_weights import load_weights
from networks.base import SegmentationNetwork

# What decides the course of a run: a resumed run must have the same.
COURSE = (
    *("network", "feat_size", "kernel_size", "roi_size", "crop_sample", "sync_batchnorm", "max_iter", "optim", "lr"),
    *("weight_decay", "lr_schedule", "warmup_iter", "seed"),
)


NEEDED_TO_RESUME = {"optimizer", "scaler", "progress", "args", "processes", "cases", "precision", "description"}


@dataclass
class Progress:
    """How far a run is.

    Args:
        iteration: iterations done.
        awaits_evaluation: whether the last of them ends with an evaluation that has not been done.
        best_dice: mean Dice of the best evaluation.
        best_iteration: when that was.
        skipped: steps that changed nothing because loss or gradients were not finite.
        skipped_in_a_row: how many of them were the last ones.
        scalars: what was logged of the last iteration.
    """

    iteration: int = 0
    awaits_evaluation: bool = False
    best_dice: float = -math.inf
    best_iteration: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    scalars: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raise TypeError or ValueError where a value, read from a file, is none of these."""
        counts = (self.iteration, self.best_iteration, self.skipped, self.skipped_in_a_row)
        if min(map(operator.index, counts)) < 0:
            raise ValueError(f"counts: found {counts}, expected numbers from 0")
        for value in (self.best_dice, *self.scalars.values()):
            math.isnan(value)  # a TypeError unless it is a number


class TrainingState:
    """Network, optimiser, gradient scaler and progress of a run.

    Random state is not among it: every draw is a function of the seed and the iteration (``engine.data.loading``).

    Args:
        args: of main_train.
        config: of the network.
        description: of the dataset.
        cases: ids of the training cases, in order.
        device: to train on.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        config: NetworkConfig,
        description: DatasetDescription,
        cases: Sequence[str],
        device: torch.device,
    ) -> None:
        self.args, self.config, self.description, self.cases = vars(args), config, description, list(cases)
        self.device = device
        self.network = place(config.build(), device)
        if args.checkpointing:
            enable_checkpointing(self.network, args.network)
        if args.sync_batchnorm:
            synchronise_batch_norm(self.network)
        # The network as training calls it; the plain one is what is saved, validated and drawn.
        forward = parallelise(self.network)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(forward) if args.compile else forward
        self.precision = choose_precision(args.amp, device, config.roi_size, self.network.input_sizes)
        self.autocast = make_autocast(device, self.precision)
        self.optimizer = make_optimizer(args.optim, self.network, args.lr, args.weight_decay)
        # Passes values through unscaled unless gradients are in danger of underflow.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.progress = Progress()

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return self.progress.iteration

    def save(self, folder: Path) -> None:
        """Write everything that ``restore`` needs; the checkpoint before this one stays beside it."""
        save_checkpoint(
            folder / LAST,
            {
                **self._identity(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "progress": asdict(self.progress),
                "args": self.args,
                "processes": process_count(),
                "cases": self.cases,
                "precision": str(self.precision),
            },
            keep=folder / PREVIOUS,
        )

    def save_best(self, folder: Path) -> None:
        """Write the weights and what it takes to predict with them."""
        save_checkpoint(folder / BEST, {**self._identity(), "best_dice": self.progress.best_dice})

    def _identity(self) -> dict[str, Any]:
        return {
            "model": self.network.state_dict(),
            "config": self.config.to_plain(),
            "description": self.description.to_json(),
            "iteration": self.iteration,
        }

    def restore(self, folder: Path) -> None:
        """Take up the run saved in ``folder``; InputError where there is none or it is another run."""
        flag, path = "--resume", folder / LAST
        content = load_last_good(folder, flag)
        if not set(content) >= NEEDED_TO_RESUME:
            raise InputError(f"{flag}: {path} holds no whole training state, expected a last_checkpoint.pth")
        try:
            self._take_up(content, f"{flag}: {path}")
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError, RuntimeError) as error:
            raise InputError(f"{flag}: {path} is no training state of this version, expected one") from error

    def _take_up(self, content: dict[str, Any], source: str) -> None:
        for name in COURSE:
            if (saved := content["args"].get(name)) != self.args[name]:
                raise InputError(f"--{name}: found {self.args[name]}, expected {saved} as in the run to resume")
        found, saved = (
            processes * arguments["batch_size"]
            for processes, arguments in ((process_count(), self.args), (content["processes"], content["args"]))
        )
        if found != saved:  # several processes deal out the batch of one
            raise InputError(
                f"--batch_size: found {found} in all processes together, expected {saved} as in the run to resume"
            )
        if not self.args["sync_batchnorm"] and process_count() != content["processes"]:
            expected = f"{content['processes']} as in the run to resume, whose batches are normalised each by itself"
            raise InputError(f"--nproc_per_node: found {process_count()} processes, expected {expected}")
        if content["precision"] != str(self.precision):
            raise InputError(f"--amp: found {self.precision}, expected {content['precision']} as in the run to resume")
        if content["description"] != self.description.to_json():
            raise InputError(f"--dataset: found {self.description.name}, expected the dataset of the run to resume")
        if content["cases"] != self.cases:
            raise InputError("--root: found other training cases, expected those of the run to resume")
        load_weights(self.network, content, source, strict=True)
        self.optimizer.load_state_dict(content["optimizer"])
        lay_out_like_parameters(self.optimizer)
        self.scaler.load_state_dict(content["scaler"])
        self.progress = Progress(**content["progress"])
        self.progress.check()


def enable_checkpointing(network: SegmentationNetwork, name: str) -> None:
    """Let the network compute its activations a second time in the backward pass instead of keeping them."""
    try:
        network.enable_checkpointing()
    except ValueError as error:
        raise InputError(f"--checkpointing: found --network {name}, expected a network that can: {error}") from error


def make_optimizer(name: str, network: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """The optimiser ``name`` of ``--optim``; AdamW with betas (0.9, 0.999) and eps 1e-8, SGD with momentum 0.99.

    Fused: one kernel for all the parameters, which can skip a step on the device (``skip_step_where``). The updates of
    REPOPT's kernels are scaled; InputError for an optimiser that cannot.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "fused": True}
    if name == "SGD":
        optimizer: Optimizer = SGD(parameters, momentum=0.99, nesterov=True, **common)
        for parameter in parameters:  # PyTorch leaves it unset where a fused optimiser's first step is skipped
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    else:
        kind = {"AdamW": AdamW, "Adam": Adam}[name]
        optimizer = kind(parameters, betas=(0.9, 0.999), eps=1e-8, **common)
    try:
        scale_updates(optimizer, network)
    except ValueError as error:
        raise InputError(f"--optim: {error}") from error
    return optimizer


def lay_out_like_parameters(optimizer: Optimizer) -> None:
    """Give moments the memory layout of their parameters, which fused optimisers take for granted.

    A state that was saved on another kind of device may have another (see ``engine.runtime.devices.place``).
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def skip_step_where(bad: Tensor, optimizer: Optimizer) -> None:
    """Let the next step of a fused optimiser change nothing if ``bad`` (one boolean) is true, without reading it here.

    The attribute is the one by which ``torch.amp.GradScaler`` tells fused optimisers of infinite gradients; where a
    scaler is at work it overwrites it with its own finding, which is true whenever the loss is not finite.
    """
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]


def running_statistics(network: nn.Module) -> list[Tensor]:
    """What batch normalisations learn by looking, and would learn from a batch that is not finite."""
    norms = (module for module in network.modules() if isinstance(module, _BatchNorm))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def take_back_where(bad: Tensor, values: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Give tensors the values they had before if ``bad`` (one boolean) is true, without reading it here."""
    for value, old in zip(values, before, strict=True):
        value.copy_(torch.where(bad, old, value))


@dataclass(frozen=True)
class LearningRateSchedule:
    """The learning rate of each iteration: constant, or a linear warm-up followed by half a cosine down to 0.

    Args:
        kind: "warmup_cosine" or "constant".
        peak: highest rate.
        warmup_iter: iterations before the peak.
        max_iter: iterations in all.
    """

    kind: str
    peak: float
    warmup_iter: int
    max_iter: int

    def __call__(self, iteration: int) -> float:
        """The rate of an iteration, counted from 0."""
        if self.kind == "constant":
            return self.peak
        if iteration < self.warmup_iter:
            return self.peak * (iteration + 1) / (self.warmup_iter + 1)
        progress = (iteration - self.warmup_iter) / max(1, self.max_iter - self.warmup_iter)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))
