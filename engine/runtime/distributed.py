"""One run on many devices: torchrun starts a process a device, and these functions say what is whose.

Without torchrun there is one process, number 0 of 1, and every function is its trivial case. Nothing is kept here:
whether there are others is torch.distributed's to know.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.runtime.devices import choose_device, read_later
from engine.runtime.errors import SECONDS_TO_STOP, InputError

# A process may wait for the others as long as a large dataset takes to be read; where one dies torchrun ends the rest.
PATIENCE = timedelta(hours=12)
OTHER_IS_GONE = ("closed by peer", "reset by peer")  # in gloo's errors; NCCL waits
Item = TypeVar("Item")


@contextmanager
def join_processes(gpu: str) -> Iterator[torch.device]:
    """Join the other processes of torchrun for the length of a block, and yield the device to work on.

    CUDA devices exchange tensors by NCCL, CPUs by gloo. Only process 0 prints. After an error the group stays: taking
    it down needs every process, and torchrun ends the others once this one is gone.

    Args:
        gpu: of ``--gpu``.
    Raises:
        InputError: no such device, or fewer devices than processes.
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
        # Gradients and weights differ in the strides of axes of length 1, which mean nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        try:
            device = _choose_own_device(gpu, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
            yield device
            dist.destroy_process_group()
        except Exception as error:
            # What stops all of them process 0 tells, and what stopped another one that one does.
            if rank > 0 or any(text in str(error) for text in OTHER_IS_GONE):
                time.sleep(SECONDS_TO_STOP)
            raise


def _choose_own_device(gpu: str, local_rank: int, local_processes: int) -> torch.device:
    """The device of one of this machine's processes."""
    if gpu not in ("0", "cpu"):
        raise InputError(f"--gpu: found {gpu} under torchrun, expected none (process n takes device n) or cpu")
    if gpu == "cpu" or not torch.cuda.is_available():
        return choose_device(gpu)
    if (devices := torch.cuda.device_count()) < local_processes:
        raise InputError(f"--nproc_per_node: found {local_processes}, expected {devices}, the CUDA devices, or fewer")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)  # NCCL gathers objects on the current device
    return device


def process_rank() -> int:
    """This process's number; 0 reports and writes what there is one of."""
    return dist.get_rank() if dist.is_initialized() else 0


def process_count() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of what all have: every ``process_count()``-th, which may be none."""
    return items[process_rank() :: process_count()]


def gather(part: Sequence[Item]) -> list[Item]:
    """The inverse of ``shard``: from each process's results for its part those for the whole, in order, for everybody.

    Args:
        part: objects that can be pickled, small ones: they travel.
    """
    if process_count() == 1:
        return list(part)
    parts: list[Any] = [None] * process_count()
    dist.all_gather_object(parts, list(part))
    return [parts[number % len(parts)][number // len(parts)] for number in range(sum(map(len, parts)))]


def barrier() -> None:
    """Return when every process has come here: what each made of its part is there for all."""
    gather([])


class _Sum(torch.autograd.Function):
    """Sum over the processes. Each process's value is in the sums of all, so their gradients add up as well."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor that every process has one of; differentiable, without waiting for a CUDA device."""
    return value if process_count() == 1 else _Sum.apply(value) / process_count()


class AnyProcess:
    """Whether any process says yes, told to all of them at the same call.

    Alone at once; together one call later, so that nobody waits for a device.

    Args:
        device: what the processes exchange tensors of.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.answer: Callable[[], list[float]] = lambda: [0.0]

    def __call__(self, yes: bool) -> bool:
        """The answer; every process has to call this as often as the others."""
        if process_count() == 1:
            return yes
        (share,) = self.answer()
        self.answer = read_later(mean_over_processes(torch.full((1,), float(yes), device=self.device)))
        return share > 0


def parallelise(network: nn.Module) -> nn.Module:
    """The network for training forwards, whose backward averages the gradients over the processes.

    Everything else (saving, evaluation) takes the bare network, which shares its parameters. Buffers differ between
    processes until ``share_buffers``: no training forward reads them.
    """
    if process_count() == 1:
        return network
    parallel = DistributedDataParallel(network)
    parallel.broadcast_buffers = False  # PyTorch 2.13 has another argument for it; the attribute is in every version
    return parallel


def share_buffers(network: nn.Module) -> None:
    """Give every process the buffers of process 0: without ``synchronise_batch_norm`` running statistics are its own.

    To be called before evaluating or saving, so that all evaluate the network that is saved, and a resumed run, which
    reads the same buffers everywhere, takes the course of one that was not interrupted.
    """
    if process_count() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def synchronise_batch_norm(network: nn.Module) -> None:
    """Have every batch normalisation follow the batches of all the processes together; parameters and keys stay."""
    if process_count() == 1:
        return
    if next(network.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.__class__ = SyncBatchNorm3d


class SyncBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation over the batches of all the processes, for CPUs: torch.nn.SyncBatchNorm refuses them.

    The batches have to be of one shape. Evaluation mode is BatchNorm3d's. Computes in the precision of its parameters.

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
        # One after the other: a difference of mean squares would cancel.
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
