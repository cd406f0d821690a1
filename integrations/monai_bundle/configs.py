"""configs/inference.json of a bundle."""

from collections.abc import Iterator
from typing import Any

from engine.data.datasets import DatasetDescription
from engine.runtime.errors import raise_problems
from engine.weights.checkpoints import NetworkConfig

# Ids for users to override, with the defaults of test_seg.py.
FLAGS: dict[str, Any] = {
    "dataset_dir": "images",
    "output_dir": "predictions",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "amp": "auto",
    "overlap": 0.5,
    "sw_batch_size": 4,
    "num_workers": 1,
}
EVALUATED = ("$", "@", "%")  # how text begins that MONAI evaluates, as code, a reference or the content of a file


def inference_config(config: NetworkConfig, description: DatasetDescription) -> dict[str, Any]:
    """Describe inference as ``test_seg.py`` does it with its default flags.

    The ids are those that MONAI and MONAI Label ask for. MONAI Label runs preprocessing, inferer and postprocessing and
    writes the result itself, so that is a separate id here.

    Args:
        config: configuration of the network.
        description: description of the dataset.
    """
    checked = {name: f"@{name}" for name in FLAGS if name != "dataset_dir"}  # reading the images checks that one
    return {
        "bundle_root": {"_target_": "scripts.paths.find_bundle"},
        **FLAGS,
        "network_def": {
            "_target_": "scripts.rep3d.build_network",
            "name": config.network,
            "in_chans": config.in_chans,
            "out_chans": config.out_chans,
            "roi_size": list(config.roi_size),
            "deploy": True,
            **config.overrides,
        },
        "network": "$@network_def.to(@device)",
        "labels": {
            "_target_": "scripts.engine.data.datasets.LabelValues",
            "classes": [list(values) for values in description.labels.classes],
        },
        "preprocessing": preprocessing(description),
        **images(description),
        **segmentation(config),
        "run": [
            {"_target_": "scripts.segmentation.check_settings", **checked},
            {"_target_": "scripts.segmentation.segment_images", "evaluator": "@evaluator", "dataset": "@dataset"},
        ],
    }


def images(description: DatasetDescription) -> dict[str, Any]:
    """Describe the images to segment, and the processes that load them."""
    return {
        "dataset": {
            "_target_": "Dataset",
            "data": {
                "_target_": "scripts.segmentation.list_images",
                "dataset_dir": "@dataset_dir",
                "output_dir": "@output_dir",
                "channels": len(description.channels),
                "endings": list(description.endings),
            },
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": "@num_workers",
            "prefetch_factor": "$1 if @num_workers else None",  # volumes are large
        },
    }


def segmentation(config: NetworkConfig) -> dict[str, Any]:
    """Describe the way from a loaded image to its label map in a file."""
    return {
        "inferer": {
            "_target_": "scripts.inferer.WindowInferer",
            "roi_size": list(config.roi_size),
            "sw_batch_size": "@sw_batch_size",
            "overlap": "@overlap",
            "amp": "@amp",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "scripts.label_maps.ToNativeLabelsd", "transforms": "@preprocessing"}],
        },
        "saving": {"_target_": "scripts.label_maps.SaveLabelsd", "output_dir": "@output_dir", "labels": "@labels"},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
                "strict": True,
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "$monai.transforms.Compose([@postprocessing, @saving])",
            "val_handlers": "@handlers",
        },
    }


def preprocessing(description: DatasetDescription) -> dict[str, Any]:
    """Describe the pipeline of ``load_datasets_transforms.test_pipeline``, whose transforms these are, and one more."""
    return {
        "_target_": "scripts.engine.data.load_volume.Pipeline",
        "transforms": [
            {
                "_target_": "scripts.engine.data.load_volume.LoadVolumed",
                "keys": ["image"],
                "labels": "@labels",
                "nan_is_minimum": description.nan_is_minimum,
                "fix_affine": False,
            },
            {"_target_": "scripts.meta_data.ForgetFiled"},
            {"_target_": "Orientationd", "keys": ["image"], "axcodes": "RAS", "labels": None},
            {
                "_target_": "Spacingd",
                "keys": ["image"],
                "pixdim": list(description.spacing),
                "mode": ["bilinear"],
                "dtype": "$np.float32",
            },
            {
                "_target_": "scripts.engine.data.intensity.ScaleChannelsd",
                "keys": ["image"],
                "windows": [window and list(window) for window in description.windows],
            },
            {
                "_target_": "CropForegroundd",
                "keys": ["image"],
                "source_key": "image",
                "select_fn": {"_target_": "scripts.engine.data.intensity.AboveMinimum"},
                "allow_smaller": True,
                "start_coord_key": None,
                "end_coord_key": None,
            },
            {"_target_": "EnsureTyped", "keys": ["image"], "dtype": "$np.float32"},
        ],
    }


def check_texts(config: NetworkConfig, description: DatasetDescription, source: str) -> None:
    """Make sure that MONAI takes the texts of a checkpoint for texts, which in a foreign one might be code.

    Raises:
        InputError: one line per other text.
    """
    expected = f"expected texts that do not begin with {', '.join(EVALUATED)}, which MONAI evaluates"
    parts = {"description of its dataset": description.to_json(), "arguments of its network": config.to_plain()}
    found = [(text, part) for part, values in parts.items() for text in _texts(values) if text.startswith(EVALUATED)]
    raise_problems([f"{source}: found {text!r} in the {part}, {expected}" for text, part in found])


def _texts(values: Any) -> Iterator[str]:
    """Yield every text in plain values, keys included."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for pair in values.items():
            yield from _texts(list(pair))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value)


def channel_endings(description: DatasetDescription) -> list[str]:
    """List what follows the id in the name of each channel's file; nothing if there is one file."""
    numbers = [f"_{channel:04d}" for channel in range(len(description.channels))]
    return list(description.endings) or (numbers if len(numbers) > 1 else [""])
