"""Choice of device and autocast precision, and the memory layout of a network."""

import pytest
import torch
from torch import nn

from engine.runtime.devices import choose_device, choose_precision, make_autocast, to_device
from engine.runtime.errors import InputError
from networks.base import InputSizes


def test_without_cuda_the_cpu_is_used_and_reported(capsys, monkeypatch):
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
def test_auto_precision_on_a_cpu_depends_on_amx_and_the_coarsest_grid(monkeypatch, amx, side, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    assert choose_precision("auto", torch.device("cpu"), (96, side, 96), InputSizes(16)) is expected


def test_bf16_on_grids_that_a_cpu_gets_wrong_is_refused():
    with pytest.raises(InputError, match=r"--amp: found bf16 .* expected at least 48 x 48 x 48, or off"):
        choose_precision("bf16", torch.device("cpu"), (96, 32, 96), InputSizes(16))
    assert choose_precision("bf16", torch.device("cuda"), (96, 32, 96), InputSizes(16)) is torch.bfloat16


def test_predictions_have_no_gradients_that_a_cpu_gets_wrong(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    for amp in ("auto", "bf16"):
        found = choose_precision(amp, torch.device("cpu"), (96, 32, 96), InputSizes(16), gradients=False)
        assert found is torch.bfloat16


def test_cpu_networks_are_placed_channels_last():
    network = to_device(nn.Conv3d(4, 4, 3), torch.device("cpu"))
    assert network.weight.is_contiguous(memory_format=torch.channels_last_3d)
    # With one input channel both layouts are contiguous, and PyTorch decides by the strides.
    assert to_device(nn.Conv3d(1, 4, 3), torch.device("cpu")).weight.stride() == (27, 1, 9, 3, 1)
