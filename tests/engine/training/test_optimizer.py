"""Schedule, optimisers, and checkpoints that are whole or not there."""

import errno
import os
import resource
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from engine.runtime.devices import choose_device, choose_precision, make_autocast, place
from engine.runtime.errors import DiskError, InputError
from engine.runtime.files import write_whole
from engine.training.state import LearningRateSchedule, make_optimizer
from engine.weights.checkpoints import load_checkpoint, save_checkpoint
from networks import build_network
from networks.base import InputSizes


def test_warmup_rises_to_the_peak_and_the_cosine_falls_to_zero():
    schedule = LearningRateSchedule("warmup_cosine", 1e-4, warmup_iter=10, max_iter=110)
    rates = [schedule(iteration) for iteration in range(110)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[0] == pytest.approx(1e-4 / 11)
    assert max(rates) == rates[10] == 1e-4
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx(0.5e-4)
    assert 0 < rates[-1] < 1e-7


@pytest.mark.parametrize("schedule", [("constant", 1e-4, 10, 110), ("warmup_cosine", 1e-4, 0, 1)])
def test_rate_without_warmup(schedule):
    assert LearningRateSchedule(*schedule)(0) == 1e-4


def test_adamw_is_that_of_the_paper():
    (group,) = make_optimizer("AdamW", nn.Linear(2, 2), 1e-4, 0.08).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 0.08)


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_every_optimiser_steps(name):
    network = nn.Linear(2, 2)
    before = network.weight.clone()
    optimizer = make_optimizer(name, network, 1e-4, 0.08)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert type(optimizer).__name__ == name
    assert not torch.equal(network.weight, before)


@contextmanager
def little_space(size):
    """Files of this process cannot grow beyond ``size`` bytes, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:  # pytest's own log is a file, too
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"model": {"weight": torch.ones(2)}})
    expected = f"{path}: cannot be written .File too large., expected a disk with space"
    with little_space(2000), pytest.raises(InputError, match=expected):
        save_checkpoint(path, {"model": {"weight": torch.ones(2000)}})
    assert torch.equal(load_checkpoint(path, "--resume")["model"]["weight"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_becomes_read_only_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = tmp_path / "last.pth"
    write_whole(path, lambda file: file.write(b"old"))
    with monkeypatch.context() as patch:
        for module, name in ((os, "replace"), (os, "unlink")):
            patch.setattr(module, name, fail)
        with pytest.raises(DiskError, match="Read-only file system"):
            write_whole(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"


def test_other_mistakes_while_writing_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="inconsistent"):
        write_whole(tmp_path / "file", lambda file: torch.ones(2) @ torch.ones(3))
    assert not list(tmp_path.iterdir())


def test_cpu_is_taken_and_said_where_there_is_no_cuda(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("0").type == "cpu"
    assert capsys.readouterr().out.count("\n") == 1
    assert choose_device("cpu").type == "cpu"
    assert capsys.readouterr().out == ""


def test_device_numbers_beyond_the_machine_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match="--gpu: found 2"):
        choose_device("2")


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("off", torch.float32)])
def test_autocast_computes_in_the_precision_asked_for(amp, dtype):
    device = torch.device("cpu")
    with make_autocast(device, choose_precision(amp, device, (96, 96, 96), InputSizes(16)))():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(("amx", "side", "expected"), [(True, 48, torch.bfloat16), (True, 32, None), (False, 48, None)])
def test_auto_precision_of_a_cpu_follows_its_instructions_and_the_coarsest_grid(monkeypatch, amx, side, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    assert choose_precision("auto", torch.device("cpu"), (96, side, 96), InputSizes(16)) is expected


def test_bf16_on_grids_that_a_cpu_gets_wrong_is_refused():
    with pytest.raises(InputError, match=r"--amp: found bf16 .* expected at least 48 x 48 x 48, or off"):
        choose_precision("bf16", torch.device("cpu"), (96, 32, 96), InputSizes(16))
    assert choose_precision("bf16", torch.device("cuda"), (96, 32, 96), InputSizes(16)) is torch.bfloat16


def test_cpu_networks_are_placed_channels_last():
    network = place(nn.Conv3d(4, 4, 3), torch.device("cpu"))
    assert network.weight.is_contiguous(memory_format=torch.channels_last_3d)
    # With one input channel both layouts are contiguous, and only the strides tell PyTorch which is meant.
    assert place(nn.Conv3d(1, 4, 3), torch.device("cpu")).weight.stride() == (27, 1, 9, 3, 1)


def test_rep_optimizer_scales_the_updates_of_its_network_only():
    """With a gradient of one everywhere a step of SGD moves each weight by what its mask says."""
    torch.manual_seed(0)
    moved = {}
    for name in ("REPOPT", "REP3D_NONE"):
        network = build_network(name, 1, 2, feat_size=(4, 4, 4, 4), depths=(1, 1, 1, 1), kernel_size=7)
        kernel = network.encoder.stages[0][0].dwconv.weight
        before = kernel.detach().clone()
        optimizer = make_optimizer("SGD", network, 0.1, 0)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved[name] = (before - kernel.detach())[0, 0]
    ratio = moved["REPOPT"] / moved["REP3D_NONE"]
    expected = torch.ones(7, 7, 7)
    expected[2:5, 2:5, 2:5] = 2
    torch.testing.assert_close(ratio, expected, rtol=1e-3, atol=1e-3)


def test_frozen_parameters_are_left_to_no_optimiser():
    network = build_network("TransBTS", 1, 2, (16, 16, 16), embed_dim=8, num_layers=1, mlp_dim=8)
    (group,) = make_optimizer("AdamW", network, 1e-4, 0.08).param_groups
    assert len(group["params"]) == sum(parameter.requires_grad for parameter in network.parameters())
    assert len(group["params"]) < len(list(network.parameters()))
