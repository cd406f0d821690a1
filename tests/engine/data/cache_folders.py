"""Helpers of the cache tests: transform pipelines, and listings of a cache folder."""

from conftest import DESCRIPTION

from engine.data.datasets import DatasetDescription
from load_datasets_transforms import training_pipelines

ZSCORE = DatasetDescription.from_json(DESCRIPTION, "test")
WINDOW = DatasetDescription.from_json(DESCRIPTION | {"intensity": {"window": [60, 200]}}, "test")


def pipelines(description=ZSCORE, roi_size=(24, 16, 20), **options):
    """Build the pipelines (training, validation); the crop is larger than the boxes along the last axis."""
    return training_pipelines(description, roi_size, crop_sample=2, **options)


def entries(folder):
    """List the entries of a cache; hidden files are partial ones."""
    return sorted(path for path in folder.glob("*/*") if path.is_dir() and not path.name.startswith("."))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
