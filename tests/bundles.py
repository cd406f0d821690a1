"""A small network to export as a MONAI bundle, and the command that does it."""

import torch

from engine.data.datasets import DatasetDescription
from engine.runtime.errors import run
from engine.weights.checkpoints import NetworkConfig, save_checkpoint
from tools import export_bundle

# Two channels with different rules, classes with other values than their indices, NaN.
DESCRIPTION = {
    "name": "odd",
    "modality": "MRI",
    "labels": {"background": 0, "edema": 1, "core": 2, "enhancing": 4},
    "regions": {"tumour": ["edema", "core", "enhancing"]},
    "spacing": [1.0, 1.2, 1.5],
    "channels": {"FLAIR": "-flair", "ratio": "-ratio"},
    "intensity": {"FLAIR": {"zscore": True}, "ratio": {"window": [0.0, 2.0]}},
    "nan": "minimum",
}
ROI = (32, 32, 16)


def write_weights(folder):
    """Write a checkpoint of a random network, as trained: its masks are not folded."""
    description = DatasetDescription.from_json(DESCRIPTION, "odd.json")
    config = NetworkConfig.for_dataset(description, "REP3D", ROI, {"feat_size": [8, 8, 8, 8], "kernel_size": 5})
    torch.manual_seed(1)
    network = config.build()
    for parameter in network.parameters():  # so that every class wins somewhere
        parameter.data *= 1.5
    path = folder / "best_metric_model.pth"
    content = {"model": network.state_dict(), "config": config.to_plain(), "description": description.to_json()}
    save_checkpoint(path, content)
    return path


def export(capsys, *words):
    capsys.readouterr()
    try:
        status = run(export_bundle.main, export_bundle.parse_args([str(word) for word in words]))
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err
