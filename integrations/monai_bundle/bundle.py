"""Writing of a bundle's folder."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template

import torch

from engine.data.datasets import DatasetDescription
from engine.runtime.files import write_text, write_whole
from engine.runtime.versions import find_commit
from engine.weights.load_network import TrainedNetwork
from integrations.monai_bundle.code import ROOT, write_code
from integrations.monai_bundle.configs import channel_endings, inference_config
from integrations.monai_bundle.metadata import install_commands, make_metadata

FILES = Path(__file__).parent / "files"


@dataclass(frozen=True)
class About:
    """What a bundle says of itself and no checkpoint knows.

    Args:
        name: name of the bundle.
        version: its version.
        authors: who has trained the network.
        data_license: text of the licence of the training data; None if nobody has given it.
    """

    name: str
    version: str
    authors: str
    data_license: str | None


def write_bundle(folder: Path, trained: TrainedNetwork, about: About) -> None:
    """Write a bundle.

    Args:
        folder: its folder, which does not exist yet.
        trained: the network in its deployed form, with its configuration and dataset.
        about: its name, version and authors, and the licence of the training data.
    """
    for name in ("configs", "docs", "models"):
        (folder / name).mkdir(parents=True)
    metadata = make_metadata(trained.config, trained.description, about.name, about.version, about.authors)
    write_text(folder / "configs" / "metadata.json", json.dumps(metadata, indent=2) + "\n")
    config = inference_config(trained.config, trained.description)
    write_text(folder / "configs" / "inference.json", json.dumps(config, indent=2) + "\n")
    shutil.copy(FILES / "logging.conf", folder / "configs")
    shutil.copy(ROOT / "LICENSE", folder)
    write_code(folder)
    write_whole(folder / "models" / "model.pt", lambda file: torch.save(trained.network.state_dict(), file))
    write_text(folder / "docs" / "README.md", describe_bundle(trained, about))
    write_text(folder / "docs" / "data_license.txt", about.data_license or no_license(trained.description))


def describe_bundle(trained: TrainedNetwork, about: About) -> str:
    """Fill in the README of a bundle."""
    config, description = trained.config, trained.description
    rules = [f"{window[0]:g} to {window[1]:g}" if window else "z-score" for window in description.windows]
    classes = zip(description.classes, description.labels.classes, strict=True)
    return Template((FILES / "README.md").read_text(encoding="utf-8")).substitute(
        name=about.name,
        version=about.version,
        authors=about.authors,
        network=config.network,
        dataset=description.name,
        channels=", ".join(f"{name} ({rule})" for name, rule in zip(description.channels, rules, strict=True)),
        images=", ".join(f"`<case>{ending}.nii.gz`" for ending in channel_endings(description)),
        classes=", ".join(f"{values[0]} {name}" for name, values in classes),
        spacing=" x ".join(f"{side:g}" for side in description.spacing),
        window=" x ".join(map(str, config.roi_size)),
        parameters=f"{sum(parameter.numel() for parameter in trained.network.parameters()) / 1e6:.2f}",
        install=install_commands(config.network),
        commit=find_commit(),
    )


def no_license(description: DatasetDescription) -> str:
    """Say that nobody has given the licence of the training data."""
    return (
        f"The network was trained on {description.name}. The licence of these data was not stated when this bundle\n"
        "was exported. It may limit the use of the weights: look it up before you pass them on.\n"
    )
