"""Test of a bundle at its export: run as a user would, on a synthetic volume, it predicts what this repository does."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from engine.data.cases import Case, image_files, make_case
from engine.data.datasets import Window
from engine.data.labels import to_classes
from engine.data.nifti import open_volume, read_voxels
from engine.prediction.inversion import to_native_labels
from engine.prediction.probabilities import native_probabilities
from engine.prediction.sliding_window import SlidingWindow, predict_logits
from engine.runtime.devices import make_autocast, to_device
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.wording import count_of
from engine.weights.load_network import TrainedNetwork
from integrations.monai_bundle.configs import channel_endings
from integrations.monai_bundle.metadata import check_metadata
from integrations.monai_bundle.scripts.cases import label_path
from load_datasets_transforms import test_pipeline

NAME = "synthetic"
NEAR_TIE = 1e-4  # difference of two probabilities that rounding may reverse
SIDES = (1.75, 0.75, 0.75)  # of the volume, in windows: three overlapping ones along an axis, padding along the others
MODULES = {"ignite": "pytorch-ignite", "fire": "fire", "einops": "einops"}  # and the packages that they are in


@dataclass(frozen=True)
class Comparison:
    """Comparison of two label maps.

    Args:
        voxels: number of voxels.
        differing: those of different classes.
        near_ties: those whose two largest probabilities are nearly equal.
        wrong: those that differ and are no near-ties.
        classes: number of different classes that were predicted.
    """

    voxels: int
    differing: int
    near_ties: int
    wrong: int
    classes: int

    def __str__(self) -> str:
        voxels = f"{self.differing} of {self.voxels} voxels differ from test_seg.py"
        return f"{voxels}; {count_of(self.near_ties, 'near-tie')}; {count_of(self.classes, 'class')} predicted"


def check_packages() -> None:
    """Make sure that a bundle can be run here.

    Raises:
        InputError: one line per missing package.
    """
    missing = [package for module, package in MODULES.items() if importlib.util.find_spec(module) is None]
    reason = "is not installed, expected it for the test of the bundle: pip install"
    raise_problems([f"the package {package} {reason} {package}" for package in missing])


def self_test(bundle: Path, trained: TrainedNetwork, scratch: Path) -> Comparison:
    """Run a bundle in a process of its own on a synthetic volume, and compare the label map with our own.

    Args:
        bundle: folder of the bundle.
        trained: its network.
        scratch: empty folder for images and label maps.
    Raises:
        InputError: the bundle does not run, or predicts something else.
    """
    raise_problems(check_metadata(json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))))
    case = write_case(scratch / "images", trained)
    run_bundle(bundle, scratch / "images", scratch / "labels")
    path, (image, *_) = label_path(scratch / "labels", NAME), image_files(case)
    if not path.is_file():
        raise InputError("the bundle has written no label map in its test, expected one")
    if not np.array_equal(open_volume(str(path)).affine, open_volume(image).affine):
        raise InputError("the bundle's label map has another affine than the image in its test, expected the same")
    found, _ = to_classes(read_voxels(str(path)), trained.description.labels)
    comparison = compare(found, case, trained)
    if comparison.wrong:
        raise InputError(f"the bundle failed its test: {comparison}, expected differences in near-ties only")
    return comparison


def write_case(folder: Path, trained: TrainedNetwork) -> Case:
    """Write a synthetic image in LPS, in parts smaller than the window, whose minimum is not 0 after preprocessing."""
    description = trained.description
    rng = np.random.default_rng(0)
    spacing = np.array(description.spacing) * (1, 0.9, 1.1)
    sides = np.array(trained.config.roi_size) * SIDES * description.spacing / spacing
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1])
    affine[:3, 3] = 30, -20, 10
    folder.mkdir()
    paths = []
    for ending, window in zip(channel_endings(description), description.windows, strict=True):
        voxels = synthetic_channel(sides.astype(int), window, rng)
        if description.nan_is_minimum:
            voxels[0, :3, :3] = np.nan
        paths.append(str(folder / f"{NAME}{ending}.nii.gz"))
        nib.save(nib.Nifti1Image(voxels, affine), paths[-1])
    return make_case(NAME, paths if len(paths) > 1 else paths[0])


def synthetic_channel(
    shape: NDArray[np.integer], window: Window | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw blobs with noise, within the window and above its low end, or far from 0 for the z-score."""
    blobs = gaussian_filter(rng.normal(size=shape), 4)
    blobs = (blobs - blobs.min()) / np.ptp(blobs) + 0.03 * rng.random(shape)
    low, high = window or (100.0, 300.0)
    return (low + (high - low) * (0.1 + 0.85 * blobs)).astype(np.float32)


def run_bundle(bundle: Path, images: Path, output: Path) -> None:
    """Run a bundle on the CPU, in a Python that sees neither this repository nor the caller's variables.

    Raises:
        InputError: it fails; with the last line of what it has written.
    """
    flags = {"config_file": bundle / "configs" / "inference.json", "dataset_dir": images, "output_dir": output}
    settings = {"device": "cpu", "amp": "off", "num_workers": 0}
    words = [str(word) for name, value in {**flags, **settings}.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-I", "-B", "-m", "monai.bundle", "run", *words]  # -B: no __pycache__ in the bundle
    done = subprocess.run(command, cwd=images, capture_output=True, text=True)
    if done.returncode != 0:
        (line, *_) = reversed(done.stderr.splitlines() or [f"exit status {done.returncode}"])
        raise InputError(f"the bundle does not run in its test: {line}")


def compare(found: NDArray[np.uint8], case: Case, trained: TrainedNetwork) -> Comparison:
    """Compare a label map (X, Y, Z) with the prediction of ``test_seg.py`` in float32 on the CPU."""
    pipeline, device = test_pipeline(trained.description), torch.device("cpu")
    image = pipeline(case)["image"]
    window = SlidingWindow(trained.config.roi_size, 1, 0.5, device, make_autocast(device, None))
    logits = predict_logits(to_device(trained.network.eval(), device), image, window)
    expected = to_native_labels(logits, image, pipeline).numpy()
    best, second = torch.zeros(expected.shape), torch.zeros(expected.shape)
    for probability in native_probabilities(logits, image, pipeline):
        second = torch.maximum(second, torch.minimum(best, probability))
        best = torch.maximum(best, probability)
    near = (best - second < NEAR_TIE).numpy()
    differs = found != expected
    differing, near_ties, wrong = (int(np.count_nonzero(mask)) for mask in (differs, near, differs & ~near))
    return Comparison(expected.size, differing, near_ties, wrong, len(np.unique(expected)))
