"""configs/metadata.json of a bundle, and the check of its structure.

Source of the fields: MONAI's bundle specification, https://monai.readthedocs.io/en/latest/mb_specification.html
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from engine.data.datasets import DatasetDescription
from engine.weights.checkpoints import NetworkConfig

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
# What `monai.bundle run` imports besides MONAI, PyTorch and NumPy, and what single networks import: those of
# requirements-optional.txt, which pip must install without their dependencies.
PACKAGES = ("nibabel", "pytorch-ignite", "fire", "einops")
PACKAGES_OF = {
    "ResEncUNet": ("dynamic-network-architectures",),
    "HyenaNDUNETR": ("nvsubquadratic", "omegaconf", "antlr4-python3-runtime", "pyyaml"),
}
MODALITIES = {"MRI": "MR", "": "n/a"}  # names of MONAI's specification for ours
PAPER = (
    "Lee, H. H., Liu, Q., Bao, S., Huo, Y., Landman, B. A.: Spatially-Adaptive Gradient Re-parameterization for 3D "
    "Large Kernel Optimization. ICML 2026."
)
# Fields and their types: those that the specification demands, and some that it leaves open and its readers look for.
FIELDS: dict[str, type] = {
    "schema": str,
    "version": str,
    "changelog": dict,
    "monai_version": str,
    "pytorch_version": str,
    "numpy_version": str,
    "required_packages_version": dict,
    "name": str,
    "task": str,
    "description": str,
    "authors": str,
    "copyright": str,
    "intended_use": str,
    "references": list,
    "network_data_format": dict,
}
TENSOR_FIELDS: dict[str, type] = {
    "type": str,
    "format": str,
    "modality": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}


def make_metadata(
    config: NetworkConfig, description: DatasetDescription, name: str, bundle_version: str, authors: str
) -> dict[str, Any]:
    """Describe a bundle and the network's input and output.

    Args:
        config: configuration of the network.
        description: description of the dataset.
        name: name of the bundle.
        bundle_version: version of the bundle.
        authors: who has trained the network.
    """
    shape = list(config.roi_size)
    tensor = {
        "type": "image",
        "modality": MODALITIES.get(description.modality, description.modality),
        "spatial_shape": shape,
        "dtype": "float32",
        "is_patch_data": True,
    }
    return {
        "schema": SCHEMA,
        "version": bundle_version,
        "changelog": {bundle_version: f"exported from a checkpoint of Rep3D's training on {description.name}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {package: version(package) for package in required_packages(config.network)},
        "supported_apps": {},
        "name": name,
        "task": f"Segmentation of 3D {description.modality or 'medical'} images: {', '.join(description.classes[1:])}",
        "description": f"{config.network}, trained on {description.name}; label maps on the grid of each image",
        "authors": authors,
        "copyright": f"Copyright of the weights: {authors}",
        "data_source": description.name,
        "data_type": "nibabel",
        "image_classes": ", ".join(description.channels),
        "label_classes": ", ".join(
            f"{values[0]} {name}" for name, values in zip(description.classes, description.labels.classes, strict=True)
        ),
        "pred_classes": f"{config.out_chans} channels of logits, the largest of which is the class",
        "intended_use": "Research. It is no medical device and not for diagnosis or treatment.",
        "references": [PAPER],
        "network_data_format": {
            "inputs": {
                "image": {
                    **tensor,
                    "format": "magnitude",
                    "num_channels": config.in_chans,
                    # z-scores have no range
                    "value_range": [] if None in description.windows else [0, 1],
                    "channel_def": {str(index): channel for index, channel in enumerate(description.channels)},
                }
            },
            "outputs": {
                "pred": {
                    **tensor,
                    "format": "labels",
                    "num_channels": config.out_chans,
                    "value_range": [],
                    "channel_def": {str(index): of_class for index, of_class in enumerate(description.classes)},
                }
            },
        },
    }


def required_packages(network: str) -> tuple[str, ...]:
    """List the packages that a bundle of a network needs besides MONAI, PyTorch and NumPy."""
    return PACKAGES + PACKAGES_OF.get(network, ())


def install_commands(network: str) -> str:
    """List the commands that install what a bundle of a network needs, a line each."""
    commands = [f'pip install "monai=={version("monai")}" {" ".join(PACKAGES)}']
    if packages := PACKAGES_OF.get(network):
        pinned = " ".join(f"{package}=={version(package)}" for package in packages)
        commands.append(f"pip install --no-deps {pinned}")
    return "\n".join(commands)


def check_metadata(metadata: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the structure of a bundle's metadata; MONAI's own check downloads the schema."""
    problems = _check_fields(metadata, FIELDS, "metadata")
    for side in ("inputs", "outputs"):
        tensors = metadata.get("network_data_format", {}).get(side, {})
        problems += [] if tensors else [f"network_data_format: found no {side}, expected a tensor"]
        for name, tensor in tensors.items():
            problems += _check_fields(tensor, TENSOR_FIELDS, name) or _check_tensor(tensor, name)
    return problems


def _check_fields(values: Mapping[str, Any], fields: Mapping[str, type], name: str) -> list[str]:
    return [
        f"{name}: found {type(values[field]).__name__ if field in values else 'nothing'} for {field}, "
        f"expected {kind.__name__}"
        for field, kind in fields.items()
        if not isinstance(values.get(field), kind)
    ]


def _check_tensor(tensor: Mapping[str, Any], name: str) -> list[str]:
    problems = []
    channels = [str(index) for index in range(tensor["num_channels"])]
    if list(tensor["channel_def"]) != channels:
        problems.append(f"{name}: found channel_def of {list(tensor['channel_def'])}, expected {channels}")
    if len(tensor["value_range"]) not in (0, 2):
        problems.append(f"{name}: found value_range {tensor['value_range']}, expected two numbers or none")
    if not all(isinstance(side, int) and side > 0 for side in tensor["spatial_shape"]):
        problems.append(f"{name}: found spatial_shape {tensor['spatial_shape']}, expected positive numbers")
    return problems
