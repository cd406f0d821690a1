"""Checkpoints survive a full disk, and those of other programs can be read."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.runtime.errors import InputError
from engine.weights.checkpoints import load_checkpoint, save_checkpoint
from engine.weights.load_weights import load_weights
from networks import build_network, save_pretrained


@contextmanager
def limited_file_size(size):
    """Limit the files of this process to ``size`` bytes, so that writing fails like on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:  # pytest's own log is limited as well
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"model": {"weight": torch.ones(2)}})
    expected = f"{path}: cannot be written .File too large., expected a disk with space"
    with limited_file_size(2000), pytest.raises(InputError, match=expected):
        save_checkpoint(path, {"model": {"weight": torch.ones(2000)}})
    assert torch.equal(load_checkpoint(path, "--resume")["model"]["weight"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


def test_numpy_numbers_next_to_the_weights_are_read(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    options = {"depths": (1, 1, 1, 1), "feat_size": (4, 8, 12, 16), "kernel_size": 5}
    source, network = (build_network("3DUXNET", 1, 3, (32, 32, 16), **options) for _ in range(2))
    logging = {"dice": [np.float64(0.5), np.float32(0.25)], "epoch": np.int64(3)}
    torch.save({"network_weights": source.state_dict(), "logging": logging}, path)
    content = load_checkpoint(path, "--pretrained_weights")
    assert content["logging"] == logging
    load_weights(network, content, str(path), strict=True)
    for key, value in source.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


def test_a_file_of_save_pretrained_is_a_checkpoint(tmp_path):
    options = {"depths": (1, 1, 1, 1), "feat_size": (4, 8, 12, 16), "kernel_size": 5}
    network = build_network("REP3D", 2, 3, (32, 32, 16), **options)
    save_pretrained(network, tmp_path / "saved", {"name": "boxes"}, dtype=torch.bfloat16)
    content = load_checkpoint(tmp_path / "saved" / "model.safetensors", "--trained_weights")
    overrides = {**options, "depths": [1, 1, 1, 1], "feat_size": [4, 8, 12, 16]}
    sizes = {"in_chans": 2, "out_chans": 3, "roi_size": [32, 32, 16]}
    assert content["config"] == {"network": "REP3D", **sizes, "overrides": overrides}
    assert content["description"] == {"name": "boxes"}
    assert content["model"].keys() == network.state_dict().keys()
    for key, value in network.state_dict().items():
        assert content["model"][key].dtype == value.dtype
        torch.testing.assert_close(content["model"][key], value, rtol=2**-8, atol=1e-6)


def test_a_safetensors_file_of_another_program_holds_weights_only(tmp_path):
    save_file({"weight": torch.ones(3)}, tmp_path / "other.safetensors", {"format": "pt", "config": "unknown"})
    content = load_checkpoint(tmp_path / "other.safetensors", "--pretrained_weights")
    assert content.keys() == {"model"}
    assert torch.equal(content["model"]["weight"], torch.ones(3))
