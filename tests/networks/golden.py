"""Comparison with logits of the official implementations (goldens/), for weights and inputs drawn by state_dict key.

Each ``goldens/golden_<name>.npz`` was computed by the official code in float32 on a CPU in evaluation mode. It holds
``logits`` (every fifth voxel along each axis) and ``mean``, population ``std`` and ``shape`` of the whole output.
``state_dict_keys.json`` holds the official constructor arguments, input shape, and keys with their shapes.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "goldens"
OFFICIAL = json.loads((FOLDER / "state_dict_keys.json").read_text())
# Maximum RMS difference / std. Float32 and float64 differ by up to 2.8e-6, so a much looser bound would hide defects.
TOLERANCE, FFT_TOLERANCE = 5e-6, 1e-5


def draw(key, shape):
    """Draw standard normal values that depend only on the key."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))


def draw_weights(state_dict):
    """Draw all floating-point tensors: weights scaled by fan-in, norms near one, all else small. Integers stay."""
    return {key: _draw_tensor(key, value) if value.is_floating_point() else value for key, value in state_dict.items()}


def _draw_tensor(key, value):
    noise = draw(key, value.shape)
    if key.endswith("running_var"):
        return 1 + 0.1 * noise.abs()
    if key.endswith("running_mean"):
        return 0.1 * noise
    if value.dim() >= 2:
        return noise * (value.shape[0] / value.numel()) ** 0.5
    return 1 + 0.1 * noise if key.endswith("weight") else 0.1 * noise


def official_shapes(name):
    """Return the shapes of the official state_dict by key."""
    return {key: tuple(shape) for key, shape in OFFICIAL[name]["keys"].items()}


def assert_reproduces(name, network, tolerance=TOLERANCE):
    """Assert the official keys and shapes, and the official logits for weights and input drawn by key."""
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == official_shapes(name)
    network.load_state_dict(draw_weights(network.state_dict()))
    with torch.no_grad():
        logits = network.eval()(draw("input", OFFICIAL[name]["input"])).numpy()
    golden = np.load(FOLDER / f"golden_{name}.npz")
    assert logits.shape == tuple(golden["shape"])
    std = float(golden["std"])
    assert abs(logits.mean() - float(golden["mean"])) < tolerance * std
    assert abs(logits.std() - std) < tolerance * std
    difference = logits[..., ::5, ::5, ::5] - golden["logits"]
    assert np.sqrt(np.mean(difference**2)) < tolerance * std
