"""Measurement of training steps: seconds and peak memory."""

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
from torch import nn
from torch.optim import AdamW

from engine.runtime.devices import Layout, amp_name, make_autocast, to_device
from engine.runtime.errors import InputError, is_out_of_memory
from engine.runtime.memory import tune_process
from engine.training.loss import make_loss
from engine.training.optimizer import make_optimizer
from engine.training.step import Learner, train_step
from engine.weights.checkpoints import NetworkConfig
from networks.large_kernel_conv import DIRECT_COST

LR, WEIGHT_DECAY = 1e-4, 0.08  # defaults of main_train.py, with AdamW
USABLE_SHARE = 0.9  # share of the free memory to use; the rest is left to other processes
OUT_OF_MEMORY = "out of memory"
UNMEASURED: dict[str, Any] = dict.fromkeys(("step_s", "steps_s", "first_s", "peak_bytes"))


class NotMeasured(Exception):  # noqa: N818 - an outcome, not an error
    """Reason why a step has no measurement."""


@dataclass(frozen=True)
class Step:
    """Training step to measure, on an input (batch_size, in_chans, D, H, W) of the config's ``roi_size``.

    Args:
        config: configuration of the network.
        batch_size: samples per batch.
        device: device to train on.
        precision: precision of autocast, None for float32.
        published: True for the published code: direct convolutions, plain layout, optimiser and memory allocation.
        checkpointing: True for ``main_train.py --checkpointing``.
        compiled: True for ``main_train.py --compile``.
        layout: memory layout instead of the device's default (``engine.runtime.devices.to_device``).
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
    """Process that prepares a step and runs it on request; a context manager.

    Args:
        step: step to run.
        memory: limit of its memory on a CPU, bytes, so that an allocation fails before the machine runs out of memory.
    """

    def __init__(self, step: Step, memory: int) -> None:
        tune_process()  # sets environment variables that the new process reads when it starts
        spawn = multiprocessing.get_context("spawn")
        self._connection, other_end = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(step, memory, other_end), daemon=True)
        self._process.start()
        other_end.close()

    def run(self) -> tuple[float, int]:
        """Run the step; return its seconds and the peak bytes so far.

        Raises:
            NotMeasured: the process ran out of memory or ended.
        """
        try:
            self._connection.send(True)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:  # the process ended without an answer
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
        self._connection.close()  # makes the process end
        self._process.join()  # frees its memory for the next one


def measure_step(
    step: Step, repeats: int, limit_s: float = math.inf, long_s: float = math.inf, own_process: bool = False
) -> dict[str, Any]:
    """Measure median seconds and peak bytes of a step, or the reason why it cannot be measured.

    The first run is a warm-up, which may load kernels, tune or compile, and is reported separately.

    Args:
        step: step to measure.
        repeats: timed runs after the first.
        limit_s: no further run starts after so many seconds of timed runs; there is at least one.
        long_s: a first run of at least so many seconds counts, and is the only one.
        own_process: True to use a new process: on a CPU the peak of this process includes everything it did before.
    Returns: "step_s", "steps_s", "first_s", "peak_bytes" and "reason"; either "reason" or all others are None.
    """
    try:
        with _in_own_process(step) if own_process else _in_this_process(step) as run:
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
def _in_own_process(step: Step) -> Iterator[Callable[[], tuple[float, int]]]:
    with StepProcess(step, available_memory(step.device)) as process:
        yield process.run


@contextmanager
def _in_this_process(step: Step) -> Iterator[Callable[[], tuple[float, int]]]:
    """Run the step in this process, without the seconds that a new process needs to start."""
    if step.compiled:
        torch.compiler.reset()  # the compiler gives up on code after it has compiled it for eight networks
    gc.collect()  # frees the memory of the previous step
    if step.device.type == "cuda":
        torch.cuda.init()  # the statistics of an uninitialised device cannot be reset
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
    """Compute every convolution in the block by PyTorch's own code."""
    costs = dict(DIRECT_COST)
    DIRECT_COST.update(dict.fromkeys(DIRECT_COST, 0.0))
    try:
        yield
    finally:
        DIRECT_COST.update(costs)


def timed_step(step: Step) -> Callable[[], tuple[float, int]]:
    """Prepare a step; the returned function runs it and returns its seconds and the peak bytes so far."""
    take_step = prepare(step)

    def run() -> tuple[float, int]:
        start = time.perf_counter()
        take_step()
        return time.perf_counter() - start, _peak_bytes(step.device)

    return run


def available_memory(device: torch.device) -> int:
    """Return the bytes that a step may use: most of the free memory."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _proc_bytes("meminfo", "MemAvailable")
    return int(USABLE_SHARE * free)


def _serve(step: Step, memory: int, connection: Connection) -> None:
    """Serve in the new process: run a step for each message until the connection is closed."""
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
    except (EOFError, BrokenPipeError):  # the parent closed the connection
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        connection.send(describe_lack_of_memory(error))


def describe_lack_of_memory(error: BaseException) -> str:
    """Return the first line of the error of a failed allocation."""
    return f"{OUT_OF_MEMORY}: {str(error).partition(chr(10))[0]}"


def prepare(step: Step) -> Callable[[], None]:
    """Build network, optimiser and random data; the returned function runs a step, of main_train.py or as published."""
    torch.manual_seed(0)
    device, config = step.device, step.config
    with device:  # a network with a billion weights takes a CPU half a minute to initialise
        network = config.build().train()
    if step.checkpointing:
        network.enable_checkpointing()
    image = torch.randn(step.batch_size, config.in_chans, *config.roi_size, device=device)
    label = torch.randint(config.out_chans, (step.batch_size, 1, *config.roi_size), device=device, dtype=torch.uint8)
    criterion = make_loss(with_ignored=False)
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
    """Build a step of the published loop: AdamW without fusion, no check of the loss."""
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
    """Read a size from /proc; unlike that of getrusage, the peak of a process there does not include its parent's."""
    path = Path("/proc", file)
    if not path.exists():
        raise InputError(f"--gpu: found no {path}, expected Linux for a measurement on a CPU")
    return next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith(f"{key}:"))
