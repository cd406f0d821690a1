"""Distributed runs: torchrun starts one process per device, and these functions shard, gather and synchronise work.

Without torchrun there is a single process of rank 0 and world size 1, and every function is trivial. This module keeps
no state: torch.distributed knows the process group.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.runtime.devices import choose_device, read_later
from engine.runtime.errors import SECONDS_TO_STOP, InputError
from engine.runtime.stop_requests import Poll, no_requests

# Long enough to read a large dataset while other processes wait; if one process dies, torchrun ends the rest.
PATIENCE = timedelta(hours=12)
OTHER_IS_GONE = ("closed by peer", "reset by peer")  # in errors of gloo; NCCL waits instead
Item = TypeVar("Item")


@contextmanager
def join_processes(gpu: str, poll: Poll = no_requests) -> Iterator[torch.device]:
    """Join torchrun's process group for the duration of a block, and yield the device of this process.

    CUDA devices communicate through NCCL, CPUs through gloo. Only rank 0 prints. After an error the group is not
    destroyed: that needs every process, and torchrun ends the others once this one has ended.

    Args:
        gpu: value of ``--gpu``.
        poll: called while torchrun ends this process because another one has ended, be it after a request to stop.
    Raises:
        InputError: the device does not exist, or there are fewer devices than processes.
    """
    if not dist.is_torchelastic_launched():
        yield choose_device(gpu)
        return
    rank = int(os.environ["RANK"])
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere if rank else sys.stdout),
        warnings.catch_warnings(),
    ):
        # Gradients and weights may differ in the strides of axes of length 1, which is harmless.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        try:
            device = _choose_own_device(gpu, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
            yield device
            dist.destroy_process_group()
        except Exception as error:
            # Rank 0 reports an error that all processes share; any other is reported by the process that raised it.
            if rank > 0 or any(text in str(error) for text in OTHER_IS_GONE):
                _wait_to_be_ended(poll)
            raise


def _wait_to_be_ended(poll: Poll) -> None:
    """Wait while torchrun ends this process, by a signal that may be a request to stop."""
    end = time.monotonic() + SECONDS_TO_STOP
    while time.monotonic() < end:
        poll()
        time.sleep(0.1)


def _choose_own_device(gpu: str, local_rank: int, local_processes: int) -> torch.device:
    """Choose the device of one of the processes on this machine."""
    if gpu not in ("0", "cpu"):
        raise InputError(f"--gpu: found {gpu} under torchrun, expected none (process n uses device n) or cpu")
    if gpu == "cpu" or not torch.cuda.is_available():
        return choose_device(gpu)
    if (devices := torch.cuda.device_count()) < local_processes:
        raise InputError(f"--nproc_per_node: found {local_processes}, expected at most {devices}, one per CUDA device")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)  # NCCL gathers objects on the current device
    return device


def process_rank() -> int:
    """Return the rank of this process; rank 0 prints, and writes the files that exist once per run."""
    return dist.get_rank() if dist.is_initialized() else 0


def process_count() -> int:
    """Return the world size, the number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """Return this process's shard of a list that all have: every ``process_count()``-th item, possibly none."""
    return items[process_rank() :: process_count()]


def gather(part: Sequence[Item]) -> list[Item]:
    """Gather the results of all shards in the original order, in every process; the inverse of ``shard``.

    Args:
        part: results for this process's shard, small picklable objects, since they are sent to all processes.
    """
    if process_count() == 1:
        return list(part)
    parts: list[Any] = [None] * process_count()
    dist.all_gather_object(parts, list(part))
    return [parts[number % len(parts)][number // len(parts)] for number in range(sum(map(len, parts)))]


def barrier() -> None:
    """Wait until every process has called this, so that what each has written is available to all."""
    gather([])


class _Sum(torch.autograd.Function):
    """All-reduced sum. Each process's value enters the sums of all processes, so its gradients are summed as well."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def mean_over_processes(value: Tensor) -> Tensor:
    """Average a tensor over the processes; differentiable, and without a host sync on CUDA devices."""
    return value if process_count() == 1 else _Sum.apply(value) / process_count()


class AnyProcess:
    """Logical "or" of a flag over all processes; all of them receive the answer at the same call.

    A single process receives it at once, several processes one call later, so that none waits for a device.

    Args:
        device: device of the tensors that the processes exchange.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.answer: Callable[[], list[float]] = lambda: [0.0]

    def __call__(self, yes: bool) -> bool:
        """Return the answer; every process has to call this equally often."""
        if process_count() == 1:
            return yes
        (share,) = self.answer()
        self.answer = read_later(mean_over_processes(torch.full((1,), float(yes), device=self.device)))
        return share > 0


def parallelise(network: nn.Module) -> nn.Module:
    """Wrap a network for the forward passes of training; its backward averages gradients over the processes.

    Everything else (saving, evaluation) uses the bare network, which shares the parameters. Buffers differ between
    processes until ``share_buffers``: no forward pass in training mode reads them.
    """
    if process_count() == 1:
        return network
    parallel = DistributedDataParallel(network)
    parallel.broadcast_buffers = False  # the argument has another name from PyTorch 2.13 on, the attribute does not
    return parallel


def averaging_gradients(network: nn.Module, yes: bool) -> AbstractContextManager[None]:
    """Return a context for forward and backward passes in which gradients are averaged over the processes, or not yet.

    Args:
        network: result of ``parallelise``.
        yes: whether the backward pass averages what has been added to the gradients since they were last zero.
    """
    return nullcontext() if yes or not isinstance(network, DistributedDataParallel) else network.no_sync()


def share_buffers(network: nn.Module) -> None:
    """Broadcast the buffers of rank 0: without ``synchronise_batch_norm`` each process has its own running statistics.

    Call it before evaluating or saving. Then all processes evaluate the network that is saved, and a resumed run, which
    loads the same buffers in every process, continues exactly as an uninterrupted one.
    """
    if process_count() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def synchronise_batch_norm(network: nn.Module) -> None:
    """Make every batch normalisation use the batches of all processes; parameters and state-dict keys do not change."""
    if process_count() == 1:
        return
    if next(network.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.__class__ = SyncBatchNorm3d


class SyncBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation over the batches of all processes, for CPUs, which torch.nn.SyncBatchNorm does not support.

    The batches of all processes must have the same shape. Evaluation mode is that of BatchNorm3d. Computes in the
    precision of its parameters.

    Shape: (N, C, D, H, W) -> (N, C, D, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        values = x.to(self.weight.dtype)
        # Mean first, variance second: the difference of the mean square and the squared mean would lose precision.
        mean = mean_over_processes(values.mean((0, 2, 3, 4), keepdim=True))
        centred = values - mean
        variance = mean_over_processes(centred.square().mean((0, 2, 3, 4), keepdim=True))
        with torch.no_grad():
            voxels = process_count() * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * (voxels / (voxels - 1)), self.momentum)
            self.num_batches_tracked += 1
        scale, offset = (parameter.view(1, -1, 1, 1, 1) for parameter in (self.weight, self.bias))
        return (centred * (scale * (variance + self.eps).rsqrt()) + offset).to(x.dtype)
