"""Model card of a saved network: what the Hub shows, and what a reader needs to use the network."""

import json
from typing import Any

from . import __version__

TAGS = ("medical", "segmentation", "3d", "rep3d")


def write_card(settings: dict[str, Any], license: str) -> str:
    """Write the Markdown of a model card, with the front matter that the Hub reads.

    Args:
        settings: ``settings_of`` the network.
        license: licence of the weights.
    """
    config, description = settings["config"], settings.get("description")
    name = str((description or {}).get("name", ""))
    title = " ".join(f"{config['network']} for {name}".split() if name else [config["network"]])
    sides = " x ".join(map(str, config["roi_size"]))
    form = ", folded for prediction," if settings["deploy"] else ""
    tags = [f"- {tag}" for tag in TAGS]
    matter = [
        "library_name: rep3d",
        f"license: {json.dumps(license)}",
        "pipeline_tag: image-segmentation",
        "tags:",
        *tags,
    ]
    lines = [
        *("---", *matter, "---", "", f"# {title}", ""),
        f"A network for 3D segmentation{form} written by rep3d {__version__}.",
        *("Neither the training nor the accuracy is recorded here; whoever publishes the weights adds them.", ""),
        *("```python", "import rep3d", "", 'network = rep3d.from_pretrained("<this folder or repository>")', "```", ""),
        f"- Input: float32 (N, {config['in_chans']}, D, H, W), windows of {sides} voxels along the right-left,",
        "  anterior-posterior and inferior-superior axes, after the preprocessing below.",
        f"- Output: logits (N, {config['out_chans']}, D, H, W); a voxel's class is the channel of the largest.",
        *("", "## Dataset", "", *_describe(description)),
        *("", "## Network", "", "```json", json.dumps(config, indent=2), "```", ""),
    ]
    return "\n".join(lines)


def _describe(description: dict[str, Any] | None) -> list[str]:
    if description is None:
        return ["Spacing, intensities and classes are not recorded here."]
    return [
        "Volumes are resampled to `spacing` (mm), their intensities scaled by `intensity`. The output's channels are",
        "the background, then the other `labels` in the order of their values.",
        *("", "```json", json.dumps(description, indent=2), "```"),
    ]
