"""Shards, gathering, gradients and batch statistics in two processes that communicate by gloo."""

import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from engine.runtime import distributed
from engine.runtime.distributed import (
    SyncBatchNorm3d,
    averaging_gradients,
    barrier,
    gather,
    join_processes,
    mean_over_processes,
    parallelise,
    process_count,
    process_rank,
    shard,
    share_buffers,
    synchronise_batch_norm,
)
from engine.runtime.errors import InputError, Stopped
from engine.runtime.stop_requests import StopRequests

PROCESSES = 2
LENGTHS = range(6)


def make_batch():
    """Draw crops (N, C, D, H, W), far from zero, where cancellation would show, and factors of the outputs."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2 * PROCESSES, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    return image * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1) + 100, torch.randn(image.shape, generator=generator)


def make_network():
    torch.manual_seed(1)
    norm = nn.BatchNorm3d(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Sequential(norm), nn.Conv3d(3, 3, 1)).double()


def step(network, forward, image, factors):
    """Take a step; return output, gradients and state."""
    image.requires_grad_()
    output = forward(image)
    (output * factors).mean().backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in network.named_parameters()}
    return {"output": output.detach(), "image": image.grad, **gradients, **network.state_dict()}


def add_up(forward, image, factors):
    """Take a step over two parts of a batch; return its gradients after each part."""
    gradients = []
    for part, (crops, weights) in enumerate(zip(image.chunk(2), factors.chunk(2), strict=True)):
        with averaging_gradients(forward, yes=part == 1):
            (forward(crops) * weights).mean().backward()
        gradients.append([parameter.grad.clone() for parameter in forward.parameters()])
    return gradients


def worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    torch.set_num_threads(1)
    image, factors = (tensor.chunk(PROCESSES)[rank] for tensor in make_batch())
    synchronised, alone = make_network(), make_network()
    synchronise_batch_norm(synchronised)
    results = {
        "process": (process_rank(), process_count()),
        "gathered": [gather(shard(list(range(length)))) for length in LENGTHS],
        "shards": [shard(list(range(length))) for length in LENGTHS],
        "types": [type(module).__name__ for module in synchronised.modules()],
        "step": step(synchronised, parallelise(synchronised), image.clone(), factors),
        "evaluated": synchronised.eval()(image),
        "parts": add_up(parallelise(make_network().eval()), image, factors),
        "mean": mean_over_processes(torch.tensor(float(rank))),
    }
    if rank == 0:
        time.sleep(1)
        Path(f"{folder}/made by 0").touch()
    barrier()
    results["waited"] = Path(f"{folder}/made by 0").exists()
    alone(image)
    results["own"] = {name: buffer.clone() for name, buffer in alone.named_buffers()}
    share_buffers(alone)
    results["shared"] = dict(alone.named_buffers())
    torch.save(results, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of each of the two processes."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(worker, (str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(PROCESSES)]


def test_processes_have_their_rank_and_world_size(results):
    assert [result["process"] for result in results] == [(0, 2), (1, 2)]


def test_gather_inverts_shard_in_every_process(results):
    for length in LENGTHS:
        parts = [result["shards"][length] for result in results]
        assert sorted([*parts[0], *parts[1]]) == list(range(length))
        assert abs(len(parts[0]) - len(parts[1])) <= 1
        assert all(result["gathered"][length] == list(range(length)) for result in results)


def test_processes_wait_for_each_other(results):
    assert all(result["waited"] for result in results)


def test_means_are_over_processes(results):
    assert [result["mean"].item() for result in results] == [0.5, 0.5]


def test_a_synchronised_step_equals_one_process_with_the_whole_batch(results):
    image, factors = make_batch()
    network = make_network()
    whole = step(network, network, image, factors)
    steps = [result["step"] for result in results]
    assert {"gradient of 1.weight", "0.0.running_var"} < set(whole)
    for part in steps:
        assert list(part) == list(whole)
    for name, expected in whole.items():
        for rank, part in enumerate(steps):
            if name == "output":
                found, wanted = part[name], expected.chunk(PROCESSES)[rank]
            elif name == "image":  # its loss is a mean over half as many outputs
                found, wanted = part[name] / PROCESSES, expected.chunk(PROCESSES)[rank]
            else:
                found, wanted = part[name], expected
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: name + text)


def test_gradients_of_several_parts_are_averaged_with_the_last(results):
    network = make_network().eval()
    image, factors = make_batch()
    (network(image) * factors).mean().backward()
    whole = [2 * parameter.grad for parameter in network.parameters()]  # the sum of two parts, a mean over processes
    first, second = (result["parts"] for result in results)
    assert not any(torch.equal(one, two) for one, two in zip(first[0], second[0], strict=True))
    for parts in (first, second):
        torch.testing.assert_close(parts[1], whole, rtol=1e-9, atol=1e-12)


def test_synchronised_normalisation_evaluates_like_one_process(results):
    image, factors = make_batch()
    network = make_network()
    step(network, network, image.clone(), factors)
    parts = torch.cat([result["evaluated"] for result in results])
    torch.testing.assert_close(parts, network.eval()(image), rtol=1e-9, atol=1e-9)


def test_only_the_normalisation_changes(results):
    names = [type(module).__name__ for module in make_network().modules()]
    assert results[0]["types"] == [name.replace("BatchNorm3d", "SyncBatchNorm3d") for name in names]


def test_buffers_become_those_of_process_0(results):
    first, second = results
    assert not torch.equal(first["own"]["0.0.running_mean"], second["own"]["0.0.running_mean"])
    for name, buffer in first["own"].items():
        assert torch.equal(first["shared"][name], buffer)
        assert torch.equal(second["shared"][name], buffer)


def test_low_precision_input_is_normalised_in_the_precision_of_the_parameters():
    norm, native = SyncBatchNorm3d(3), nn.BatchNorm3d(3)
    image = (make_batch()[0] - 100).bfloat16()
    output = norm(image)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, native(image.float()).bfloat16())
    torch.testing.assert_close(norm.running_var, native.running_var)


def test_one_process_is_the_trivial_case():
    network = make_network()
    synchronise_batch_norm(network)
    share_buffers(network)
    assert type(network[0][0]) is nn.BatchNorm3d
    assert parallelise(network) is network
    assert (process_rank(), process_count()) == (0, 1)
    assert gather(shard([3, 1, 2])) == [3, 1, 2]
    assert mean_over_processes(torch.tensor(3.0)) == 3


@pytest.fixture
def _second_of_two(monkeypatch):
    """Set the environment that torchrun gives the second of two processes on a machine."""
    numbers = {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    monkeypatch.setattr(distributed, "SECONDS_TO_STOP", 0.05)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    for name, value in {"TORCHELASTIC_RUN_ID": "some run", **numbers}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_second_of_two")
def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--nproc_per_node: found 2, expected at most 1, one per"), join_processes("0"):
        pass


@pytest.mark.usefixtures("_second_of_two")
def test_device_number_is_refused_under_torchrun():
    with pytest.raises(InputError, match="--gpu: found 3 under torchrun, expected"), join_processes("3"):
        pass


@pytest.mark.usefixtures("_second_of_two")
def test_only_the_first_process_prints(capsys):
    with join_processes("cpu") as device:
        assert device == torch.device("cpu")
        print("nobody sees this")
    print("everybody sees this")
    assert capsys.readouterr().out == "everybody sees this\n"


@pytest.mark.usefixtures("_second_of_two")
@pytest.mark.parametrize(
    ("rank", "error", "waits"),
    [
        ("0", InputError("--lr: found"), False),
        ("1", InputError("--lr: found"), True),
        ("0", RuntimeError("closed by peer"), True),
    ],
)
def test_a_process_that_fails_because_of_another_waits_to_be_ended(monkeypatch, rank, error, waits):
    monkeypatch.setenv("RANK", rank)
    with (
        patch.object(distributed.time, "sleep") as sleep,
        pytest.raises(type(error), match=str(error)),
        join_processes("cpu"),
    ):
        raise error
    assert sleep.called == waits


@pytest.mark.usefixtures("_second_of_two")
@pytest.mark.parametrize("error", [InputError("--lr: found"), RuntimeError("closed by peer")])
@pytest.mark.parametrize("delay", [1e-6, 0.05])
def test_a_process_that_waits_to_be_ended_stops_on_request(monkeypatch, error, delay):
    """Otherwise it would report the error, too, once it has waited."""
    monkeypatch.setattr(distributed, "SECONDS_TO_STOP", 60)
    with (
        StopRequests(delay / 3600) as stop,
        pytest.raises(Stopped),
        join_processes("cpu", stop.raise_if_requested),
    ):
        raise error
