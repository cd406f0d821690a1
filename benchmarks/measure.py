"""Training steps measured: seconds and peak memory."""

import gc
import math
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.optim import AdamW

from engine.runtime.devices import Layout, amp_name, make_autocast, to_device
from engine.runtime.errors import InputError, is_out_of_memory
from engine.runtime.memory import tune_process
from engine.training.optimizer import make_optimizer
from engine.training.step import Learner, train_step
from engine.weights.checkpoints import NetworkConfig
from networks.large_kernel_conv import DIRECT_COST

LR, WEIGHT_DECAY = 1e-4, 0.08  # main_train's defaults, with AdamW
USABLE_SHARE = 0.9  # of the memory that is free; the rest is left to other processes
OUT_OF_MEMORY = "out of memory"
UNMEASURED: dict[str, Any] = dict.fromkeys(("step_s", "steps_s", "first_s", "peak_bytes"))


class NotMeasured(Exception):  # noqa: N818 - an outcome, not an error
    """Why a step has no measurement."""


@dataclass(frozen=True)
class Step:
    """A training step to measure, on an input (batch_size, in_chans, D, H, W) of the config's ``roi_size``.

    Args:
        config: of the network.
        batch_size: samples.
        device: to train on.
        precision: of autocast, None for float32.
        published: as the published code: direct convolutions, plain layout, optimiser and memory allocation.
        checkpointing: as ``main_train --checkpointing``.
        compiled: as ``main_train --compile``.
        layout: of kernels and activations, in place of the device's (``engine.runtime.devices.to_device``).
    """

    config: NetworkConfig
    batch_size: int
    device: torch.device
    precision: torch.dtype | None
    published: bool = False
    checkpointing: bool = False
    compiled: bool = False
    layout: Layout | None = None

    @property
    def autocast(self) -> str:
        """The name of the precision: bf16, fp16 or off."""
        return amp_name(self.precision)


class StepProcess:
    """A process that makes a step ready and runs it whenever it is asked to; a context manager.

    Args:
        step: what it runs.
        memory: bytes that it may take on a CPU, where an allocation that fails is better than a machine without memory.
    """

    def __init__(self, step: Step, memory: int) -> None:
        tune_process()  # variables that the new process reads when it starts
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(step, memory, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def run(self) -> tuple[float, int]:
        """Run the step: its seconds, and the peak bytes so far.

        Raises:
            NotMeasured: the process ran out of memory, or ended.
        """
        try:
            self._connection.send(True)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:  # it ended without an answer
            self._process.join()
            status = self._process.exitcode
            killed = status == -signal.SIGKILL
            raise NotMeasured(f"{OUT_OF_MEMORY}: killed" if killed else f"failed: exit status {status}") from error
        if isinstance(answer, str):
            raise NotMeasured(answer)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()  # the process finds nothing more to do
        self._process.join()  # the next one finds its memory free


def measure_step(
    step: Step, repeats: int, limit_s: float = math.inf, long_s: float = math.inf, own_process: bool = False
) -> dict[str, Any]:
    """Median seconds and peak bytes of a step, or the reason why it has none.

    The first run warms up: it may load kernels, tune or compile, and is reported apart.

    Args:
        step: to measure.
        repeats: timed runs after the first.
        limit_s: the timed runs end after so many seconds, of which there is one at least.
        long_s: a first run of at least so many seconds is the only one, and counts.
        own_process: not this one, whose peak on a CPU is that of everything it has done.
    Returns: "step_s", "steps_s", "first_s", "peak_bytes" and "reason"; the last or the others are None.
    """
    try:
        with _elsewhere(step) if own_process else _here(step) as run:
            first = run()
            runs = [first if first[0] >= long_s else run()]
            while first[0] < long_s and len(runs) < repeats and sum(seconds for seconds, _ in runs) < limit_s:
                runs.append(run())
    except NotMeasured as reason:
        return {**UNMEASURED, "reason": str(reason)}
    steps_s = [seconds for seconds, _ in runs]
    return {
        "step_s": median(steps_s),
        "steps_s": steps_s,
        "first_s": first[0],
        "peak_bytes": runs[-1][1],
        "reason": None,
    }


@contextmanager
def _elsewhere(step: Step) -> Iterator[Callable[[], tuple[float, int]]]:
    with StepProcess(step, available_memory(step.device)) as process:
        yield process.run


@contextmanager
def _here(step: Step) -> Iterator[Callable[[], tuple[float, int]]]:
    """The step in this process, which is spared the seconds that another takes to start."""
    if step.compiled:
        torch.compiler.reset()  # the compiler gives up on code that it has compiled for eight networks
    gc.collect()  # of the step before, whose memory this one may need
    if step.device.type == "cuda":
        torch.cuda.init()  # the statistics of an untouched device cannot be reset
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(step.device)
    try:
        with native_convolutions() if step.published else nullcontext():
            yield timed_step(step)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise NotMeasured(describe_lack_of_memory(error)) from None


@contextmanager
def native_convolutions() -> Iterator[None]:
    """Have PyTorch's own code compute every convolution inside."""
    costs = dict(DIRECT_COST)
    DIRECT_COST.update(dict.fromkeys(DIRECT_COST, 0.0))
    try:
        yield
    finally:
        DIRECT_COST.update(costs)


def timed_step(step: Step) -> Callable[[], tuple[float, int]]:
    """Make a step ready; the function returned runs it and returns its seconds and the peak bytes so far."""
    take_step = prepare(step)

    def run() -> tuple[float, int]:
        start = time.perf_counter()
        take_step()
        return time.perf_counter() - start, _peak_bytes(step.device)

    return run


def available_memory(device: torch.device) -> int:
    """Bytes that a step may take: most of what is free."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _proc_bytes("meminfo", "MemAvailable")
    return int(USABLE_SHARE * free)


def _serve(step: Step, memory: int, connection: Connection) -> None:
    """What the new process does: a step for each message, until there are no more."""
    if not step.published:
        tune_process()
    if step.device.type == "cpu":
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    try:
        with native_convolutions() if step.published else nullcontext():
            run = timed_step(step)
            while connection.recv():
                connection.send(run())
    except (EOFError, BrokenPipeError):  # nobody asks any more
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        connection.send(describe_lack_of_memory(error))


def describe_lack_of_memory(error: BaseException) -> str:
    """The first line of what PyTorch says of it."""
    return f"{OUT_OF_MEMORY}: {str(error).partition(chr(10))[0]}"


def prepare(step: Step) -> Callable[[], None]:
    """Build network, optimiser and random data; the function returned takes a step: main_train's, or the published."""
    torch.manual_seed(0)
    device, config = step.device, step.config
    with device:  # a network with a billion weights takes a CPU half a minute to initialise
        network = config.build().train()
    if step.checkpointing:
        network.enable_checkpointing()
    image = torch.randn(step.batch_size, config.in_chans, *config.roi_size, device=device)
    label = torch.randint(config.out_chans, (step.batch_size, 1, *config.roi_size), device=device, dtype=torch.uint8)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    if step.published:
        take_step = _published_step(network.to(device), make_autocast(device, step.precision), criterion)
    else:
        to_device(network, device, step.layout)
        learner = Learner(network, make_optimizer("AdamW", network, LR, WEIGHT_DECAY), step.precision, step.compiled)
        take_step = partial(train_step, learner, criterion, rate=LR)

    def run() -> None:
        take_step(image=image, label=label)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _published_step(
    network: nn.Module, autocast: Callable[[], torch.autocast], criterion: nn.Module
) -> Callable[..., object]:
    """The published loop's step: AdamW one parameter after the other, nothing checked."""
    optimizer = AdamW(network.parameters(), LR, weight_decay=WEIGHT_DECAY)

    def take_step(image: torch.Tensor, label: torch.Tensor) -> None:
        with autocast():
            logits = network(image)
        loss = criterion(logits.float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return take_step


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _proc_bytes("self/status", "VmHWM")


def _proc_bytes(file: str, key: str) -> int:
    """A size that Linux tells; unlike getrusage's, a process's peak there leaves out that of its parent."""
    path = Path("/proc", file)
    if not path.exists():
        raise InputError(f"--gpu: found no {path}, expected Linux to measure on a CPU")
    return next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith(f"{key}:"))
