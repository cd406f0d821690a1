"""State of a training run: progress, checkpoints and resuming."""

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from engine.data.datasets import DatasetDescription
from engine.data.splits import TRAINING, VALIDATION, Split
from engine.runtime.arguments import format_value
from engine.runtime.devices import PRECISIONS, amp_name, choose_precision, to_device
from engine.runtime.distributed import process_count, synchronise_batch_norm
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.files import BEST, LAST, PREVIOUS
from engine.runtime.recipe_arguments import EXTENSIONS
from engine.training.finetuning import FreezableEncoder
from engine.training.optimizer import make_optimizer, match_memory_layout
from engine.training.start import StartWeights
from engine.training.step import Learner
from engine.weights.checkpoints import NetworkConfig, complete_overrides, load_last_good, save_checkpoint, split_of
from engine.weights.load_weights import load_weights
from networks import names_with
from networks.base import SegmentationNetwork

# Flags that a resumed run must have in common with the run that it continues.
MUST_MATCH = (
    *("network", "feat_size", "kernel_size", "network_args", "roi_size", "crop_sample", "sync_batchnorm", "max_iter"),
    *("fix_affine", "optim", "lr", "mask_lr_factor", "weight_decay", "lr_schedule", "warmup_iter", "seed"),
    *("overlap", "val_cases"),  # with others, the Dice of the best evaluation could not be compared
    *EXTENSIONS,
)
NEWER_FLAGS = {
    "mask_lr_factor": 1.0,
    "fix_affine": False,
    "val_cases": None,
    **EXTENSIONS,
}  # flags that older checkpoints lack, and what they amounted to then
NEEDED_TO_RESUME = {"optimizer", "scaler", "progress", "args", "processes", "precision", "description"}


@dataclass
class Progress:
    """Progress of a run.

    Args:
        iteration: iterations done.
        awaits_evaluation: whether the evaluation after the last iteration is still to be done.
        best_dice: mean Dice of the best evaluation.
        best_iteration: iteration of the best evaluation.
        skipped: steps that changed nothing because loss or gradients were not finite.
        skipped_in_a_row: number of such steps without interruption up to the last iteration.
        scalars: numbers logged for the last iteration.
        training_s: seconds of the iterations, waiting for data included.
        validation_s: seconds of the evaluations.
    """

    iteration: int = 0
    awaits_evaluation: bool = False
    best_dice: float = -math.inf
    best_iteration: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    training_s: float = 0.0
    validation_s: float = 0.0

    @property
    def validation_share(self) -> float:
        """Share of the run's time that was spent on evaluations; 0 before any."""
        return self.validation_s / max(self.training_s + self.validation_s, 1e-9)

    @property
    def first_logged(self) -> int:
        """First step that a resumed run logs; entries of the previous run from this step on are discarded.

        If an evaluation is pending it is the last iteration: the evaluation may have been logged, but was not saved.
        """
        return self.iteration + (not self.awaits_evaluation)

    def check(self) -> None:
        """Raise TypeError or ValueError if a value, read from a file, has the wrong type or is out of range."""
        counts = (self.iteration, self.best_iteration, self.skipped, self.skipped_in_a_row)
        if min(map(operator.index, counts)) < 0:
            raise ValueError(f"counts: found {counts}, expected numbers from 0")
        for value in (self.best_dice, self.training_s, self.validation_s, *self.scalars.values()):
            math.isnan(value)  # a TypeError unless it is a number


class TrainingState(Learner):
    """Network, average of its weights, optimiser, gradient scaler and progress of a run.

    Random state is not part of it: every draw is a function of the seed and the iteration (``engine.data.loading``).

    Args:
        flags: flags of main_train and their values.
        config: configuration of the network.
        description: description of the dataset.
        split: ids of the training and validation cases.
        device: device to train on.
    """

    def __init__(
        self,
        flags: dict[str, Any],
        config: NetworkConfig,
        description: DatasetDescription,
        split: Split,
        device: torch.device,
    ) -> None:
        self.flags, self.config, self.description, self.split = flags, config, description, split
        network = config.build()
        if flags["deep_supervision"]:
            enable_deep_supervision(network, flags["network"])
        network = to_device(network, device)
        if flags["checkpointing"]:
            enable_checkpointing(network, flags["network"])
        if flags["sync_batchnorm"]:
            synchronise_batch_norm(network)
        precision = choose_precision(flags["amp"], device, config.roi_size, network.input_sizes)
        self.anew: frozenset[str] = frozenset()  # names of parameters that start otherwise than in a file
        optimizer = self._make_optimizer(network)
        super().__init__(network, optimizer, precision, flags["compile"], flags["accumulate"], flags["ema"])
        self.encoder = FreezableEncoder(network) if flags["freeze_encoder"] else None
        self.progress = Progress()

    def _make_optimizer(self, network: SegmentationNetwork) -> Optimizer:
        rates = {name: self.flags[name] for name in ("lr", "weight_decay", "mask_lr_factor", "layer_decay")}
        return make_optimizer(self.flags["optim"], network, **rates, anew=self.anew)

    @property
    def iteration(self) -> int:
        """Number of iterations done."""
        return self.progress.iteration

    def start_from(self, weights: StartWeights) -> None:
        """Load the weights of ``--pretrained_weights``; what they do not fill learns at the full rate.

        Raises:
            InputError: they do not fit, or they leave something in an encoder that is to be frozen.
        """
        anew = weights.load_into(self.network).anew
        weights.compare_data(self.description)
        if self.encoder is not None:
            self.encoder.check_filled(anew)
        self._set_anew(anew)
        if self.average is not None:
            self.average.start_from(self.network)

    def _set_anew(self, names: Iterable[str]) -> None:
        """Give the full rate to the parameters of these names; the optimiser starts without moments."""
        self.anew = frozenset(names)
        if self.flags["layer_decay"] != 1:
            self.optimizer = self._make_optimizer(self.network)

    def begin_step(self) -> None:
        """Freeze the encoder for the first ``--freeze_encoder`` iterations and thaw it then; call it before a step."""
        if self.encoder is not None and self.encoder.set_frozen(self.iteration < self.flags["freeze_encoder"]):
            self.wrap()

    def save(self, folder: Path) -> None:
        """Write everything that ``restore`` needs; the previous checkpoint is kept as ``PREVIOUS``."""
        average = self.average
        trained = {"trained_model": self.network.state_dict(), "averaged": average.updates} if average else {}
        save_checkpoint(
            folder / LAST,
            {
                **self._identity(),
                **trained,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "progress": asdict(self.progress),
                "args": self.flags,
                "processes": process_count(),
                "precision": str(self.precision),
                "anew": sorted(self.anew),
            },
            keep=folder / PREVIOUS,
        )

    def save_weights(self, path: Path) -> None:
        """Write the weights, and all that prediction with them needs."""
        save_checkpoint(path, self._identity())

    def keep_best(self, dice: float, folder: Path) -> None:
        """Write the weights, and all that prediction with them needs, if the mean Dice is the best so far.

        NaN is never the best; the weights of the first evaluation are kept until there is a Dice.
        """
        progress = self.progress
        better = dice > progress.best_dice
        if better or progress.best_iteration == 0:
            progress.best_iteration = self.iteration
            progress.best_dice = dice if better else progress.best_dice
            save_checkpoint(folder / BEST, {**self._identity(), "best_dice": progress.best_dice})

    def check_weights(self) -> None:
        """Raise InputError if a weight is not finite: a finite step may overflow it.

        The average of finite weights is finite.
        """
        weights = [value for value in self.network.state_dict().values() if value.is_floating_point()]
        if not torch.stack([value.isfinite().all() for value in weights]).all():
            raise InputError(
                f"--lr: found weights that are not finite at iteration {self.iteration}, expected numbers; {LAST} "
                "holds the last good weights: start from them with a lower --lr or with --amp off"
            )

    def _identity(self) -> dict[str, Any]:
        return {
            "model": self.evaluated_network.state_dict(),
            "config": self.config.to_plain(),
            "description": self.description.to_json(),
            "split": self.split.to_plain(),
            "iteration": self.iteration,
        }

    def restore(self, folder: Path) -> None:
        """Resume the run saved in ``folder``.

        Raises:
            InputError: there is no such run, or it does not match this one.
        """
        flag, path = "--resume", folder / LAST
        content = load_last_good(folder, flag)
        if not set(content) >= NEEDED_TO_RESUME:
            raise InputError(f"{flag}: {path} holds no complete training state, expected a last_checkpoint.pth")
        try:
            self._check_same_run(content, path)
            load_weights(self.evaluated_network, content, f"{flag}: {path}", strict=True)
            if self.average is not None:
                load_weights(self.network, {"model": content["trained_model"]}, f"{flag}: {path}", strict=True)
                self.average.updates.copy_(content["averaged"])
            self._set_anew(content.get("anew", ()))
            self.optimizer.load_state_dict(content["optimizer"])
            match_memory_layout(self.optimizer)
            self.scaler.load_state_dict(content["scaler"])
            self.progress = Progress(**content["progress"])
            self.progress.check()
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError, RuntimeError) as error:
            raise InputError(f"{flag}: {path} holds no training state of this version, expected one") from error

    def _check_same_run(self, content: dict[str, Any], path: Path) -> None:
        differing = differing_flags(self.flags, content)
        if differing:
            weights = f"--pretrain True --pretrained_weights {path}"
            new = f"a new run, in another --output, starts from its weights with {weights}"
            differing[-1] += f"; {new}"
        raise_problems(differing)
        found, saved = (
            processes * arguments["batch_size"]
            for processes, arguments in ((process_count(), self.flags), (content["processes"], content["args"]))
        )
        if found != saved:  # the processes share one batch
            raise InputError(
                f"--batch_size: found {found} in all processes together, expected {saved} as in the run to resume"
            )
        if not self.flags["sync_batchnorm"] and process_count() != content["processes"]:
            expected = f"{content['processes']} as in the run to resume, where each process normalises its own batches"
            raise InputError(f"--nproc_per_node: found {process_count()} processes, expected {expected}")
        if content["precision"] != str(self.precision):
            names = {str(dtype): name for name, dtype in PRECISIONS.items()}
            saved = names.get(content["precision"], content["precision"])
            raise InputError(f"--amp: found {amp_name(self.precision)}, expected {saved} as in the run to resume")
        found, saved = self.description.to_json(), content["description"]
        if found != saved:
            other = ", ".join(
                sorted(name for name in found.keys() | saved.keys() if found.get(name) != saved.get(name))
            )
            raise InputError(
                f"--dataset: found {found['name']} with another {other}, expected that of the run to resume"
            )
        found = self.split.to_plain()
        saved = {VALIDATION: found[VALIDATION], **split_of(content)}  # earlier versions did not keep these ids
        for part in (TRAINING, VALIDATION):
            if found[part] != saved[part]:
                flag = "--root" if self.flags["split"] is None else "--split"
                raise InputError(f"{flag}: found other {part} cases, expected those of the run to resume")


def differing_flags(flags: Mapping[str, Any], content: dict[str, Any]) -> list[str]:
    """Return a line for each flag that differs from that of a run to resume, and must not.

    Args:
        flags: flags of main_train and their values.
        content: last checkpoint of the run.
    """
    arguments = complete_overrides(content["args"].get("network_args") or {}, content)
    saved = {**NEWER_FLAGS, **content["args"], "network_args": arguments or None}
    return [
        f"--{name}: found {format_value(flags[name])}, expected {format_value(saved.get(name))} as in the run to resume"
        for name in MUST_MATCH
        if saved.get(name) != flags[name]
    ]


def enable_checkpointing(network: SegmentationNetwork, name: str) -> None:
    """Recompute the network's activations in the backward pass instead of keeping them."""
    try:
        network.enable_checkpointing()
    except ValueError as error:
        raise InputError(
            f"--checkpointing: found --network {name}, expected a network that supports it ({error})"
        ) from error


def enable_deep_supervision(network: SegmentationNetwork, name: str) -> None:
    """Make the network return the logits of several grids in training mode."""
    try:
        network.enable_deep_supervision()
    except ValueError as error:
        able = ", ".join(names_with("enable_deep_supervision"))
        raise InputError(f"--deep_supervision: found --network {name} ({error}), expected one of {able}") from error
