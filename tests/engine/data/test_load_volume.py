"""Volumes are read as MONAI reads them; a broken one in a pipeline is one line that names the file."""

import pickle
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import DESCRIPTION, flip_a_bit, write_nifti
from monai.transforms import Compose, Lambda, LoadImaged

from engine.data.cases import find_training_cases
from engine.data.datasets import DatasetDescription, LabelValues
from engine.data.load_volume import LoadVolumed, Pipeline
from engine.runtime.errors import InputError, is_out_of_memory
from load_datasets_transforms import test_pipeline as prediction_pipeline
from load_datasets_transforms import training_pipelines

ZSCORE = DatasetDescription.from_json(DESCRIPTION, "test")


def pipelines():
    return training_pipelines(ZSCORE, (24, 16, 20), crop_sample=2)


@pytest.fixture
def cases(boxes):
    return find_training_cases(boxes, ZSCORE)[0]


def truncate(path):
    path.write_bytes(path.read_bytes()[:2000])


def add_nan(path):
    image = nib.load(path)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[0, 0, :2] = np.nan
    write_nifti(path, voxels, image.affine)


def mislabel(path):
    image = nib.load(path)
    write_nifti(path, np.asarray(image.dataobj).astype(np.int16) + 256, image.affine)


BROKEN = [
    ("image", truncate, "cannot be read (Compressed file ended before the end-of-stream marker was reached)"),
    ("image", flip_a_bit, "cannot be read (CRC check failed"),
    ("label", flip_a_bit, "cannot be read (CRC check failed"),
    ("image", Path.unlink, "cannot be read"),
    ("label", truncate, "cannot be read"),
    ("image", add_nan, "found 2 NaN voxels"),
    ("label", mislabel, "found label values 256 (15904 voxels), 257 (1120 voxels), 258 (1120 voxels), expected"),
]


@pytest.mark.parametrize(("key", "damage", "part"), BROKEN)
def test_a_broken_file_is_one_line(cases, key, damage, part):
    if damage is truncate and key == "label":  # noise, which gzip hardly compresses
        voxels = np.random.default_rng(0).integers(0, 3, (36, 28, 18), dtype=np.uint8)
        write_nifti(Path(cases[0][key]), voxels)
    damage(Path(cases[0][key]))
    for transforms in pipelines():
        with pytest.raises(InputError) as caught:
            transforms(dict(cases[0]))
        assert str(caught.value).startswith(f"{cases[0][key]}: {part}")
        assert "\n" not in str(caught.value)


def load_volumed(*keys):
    return LoadVolumed(keys or ["image"], LabelValues.consecutive(3), nan_is_minimum=False, fix_affine=False)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_the_sform_places_a_volume(tmp_path, kind):
    """Even if pixdim contradicts it; MONAI's own reader would use the qform."""
    image = kind(np.random.default_rng(0).random((12, 10, 8), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    image.header["pixdim"][1:4] = 1, 1, 5
    nib.save(image, tmp_path / "image.nii.gz")
    assert np.array_equal(nib.load(tmp_path / "image.nii.gz").affine, np.diag([2.0, 2.0, 2.0, 1.0]))
    volume = load_volumed()({"image": str(tmp_path / "image.nii.gz")})["image"]
    assert np.array_equal(volume.affine, np.diag([2.0, 2.0, 2.0, 1.0]))
    transforms = prediction_pipeline(ZSCORE)
    resampled = transforms({"id": "case", "image": str(tmp_path / "image.nii.gz")})["image"]
    assert resampled.shape[1:] == (23, 19, 15)  # from 2 mm to 1


def test_the_broken_one_of_several_channels_is_named(tmp_path):
    paths = [str(tmp_path / f"case_000{number}.nii.gz") for number in range(3)]
    for path in paths:
        write_nifti(Path(path), np.random.default_rng(0).random((20, 20, 20)).astype(np.float32))
    load = load_volumed()
    assert load({"image": paths})["image"].shape == (3, 20, 20, 20)
    truncate(Path(paths[1]))
    with pytest.raises(InputError, match=rf"^{re.escape(paths[1])}: cannot be read"):
        load({"image": paths})


def test_volumes_equal_those_of_monai(cases):
    keys = ["image", "label"]
    ours, theirs = load_volumed(*keys)(dict(cases[0])), LoadImaged(keys, ensure_channel_first=True)(dict(cases[0]))
    assert ours.keys() == theirs.keys()
    for key in keys:
        assert torch.equal(ours[key], theirs[key])
        assert ours[key].meta.keys() == theirs[key].meta.keys()
        assert torch.equal(ours[key].affine, theirs[key].affine)


def fail_with(error):
    def fail(_):
        raise error

    return Lambda(fail)


def test_a_pipeline_unwraps_only_input_errors():
    nested = Pipeline([Compose([fail_with(InputError("a: found b, expected c"))])])
    with pytest.raises(InputError, match=r"^a: found b, expected c$") as caught:
        nested({})
    assert caught.value.__suppress_context__
    for error in (KeyError("ours"), MemoryError("9 GiB")):
        with pytest.raises(RuntimeError, match="applying transform") as wrapped:
            Pipeline([fail_with(error)])({})
        assert is_out_of_memory(wrapped.value) == isinstance(error, MemoryError)


def test_lack_of_memory_while_reading_is_still_recognised(cases, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("monai.data.NibabelReader.get_data", fail)
    with pytest.raises(RuntimeError) as caught:
        pipelines()[1](dict(cases[0]))
    assert is_out_of_memory(caught.value)


def test_a_pipeline_can_be_composed_split_and_pickled_like_compose(cases):
    _, validation = pipelines()
    again = pickle.loads(pickle.dumps(validation))
    whole = validation(dict(cases[0]))
    half = validation(dict(cases[0]), end=2, threading=True)
    assert torch.equal(again(dict(cases[0]))["image"], whole["image"])
    assert torch.equal(validation(half, start=2)["image"], whole["image"])
    inverse = validation.inverse(whole)["image"]
    assert inverse.shape == (1, *nib.load(cases[0]["image"]).shape)
