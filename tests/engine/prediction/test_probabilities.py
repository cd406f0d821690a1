"""Probabilities on both grids: they give the label map again, up to near-ties, and NumPy reads the file."""

import io

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import DESCRIPTION
from monai.data import MetaTensor
from monai.transforms import Spacingd
from test_inversion import CLASSES, GEOMETRIES, invert_whole, make_case, make_logits

from engine.data.cases import make_case as make_files
from engine.data.datasets import DatasetDescription
from engine.prediction.inversion import to_native_labels
from engine.prediction.probabilities import estimate_bytes, native_probabilities, write_npz

ROUNDING = 2.5e-4  # of float16, below 1
NEAR_TIE = 2 * ROUNDING


@pytest.mark.parametrize("name", GEOMETRIES)
def test_native_probabilities_give_the_label_map(tmp_path, name):
    image, transforms = make_case(tmp_path, *GEOMETRIES[name])
    logits = make_logits(image)
    labels = to_native_labels(logits, image, transforms)
    found = torch.stack(list(native_probabilities(logits, image, transforms)))
    assert found.shape == (CLASSES, *labels.shape)
    assert torch.allclose(found.sum(dim=0), torch.tensor(1.0), atol=1e-5)
    two = found.topk(2, dim=0).values
    tied = two[0] - two[1] < 1e-4
    outside = invert_whole(logits, image, transforms).sum(dim=0) < 1e-3
    assert torch.equal(found.argmax(dim=0)[~(tied | outside)], labels.long()[~(tied | outside)])
    assert tied.float().mean() < 1e-3
    assert torch.equal(found[:, outside][0], torch.ones(int(outside.sum())))


@pytest.mark.parametrize("name", ["oblique", "coarser grid"])
def test_inside_the_crop_they_are_monais(tmp_path, name):
    image, transforms = make_case(tmp_path, *GEOMETRIES[name])
    logits = make_logits(image)
    expected = invert_whole(logits, image, transforms)
    found = torch.stack(list(native_probabilities(logits, image, transforms)))
    inside = (expected.sum(dim=0) - 1).abs() < 1e-4
    assert inside.float().mean() > 0.1
    assert torch.allclose(found[:, inside], expected[:, inside], atol=2e-4)


@pytest.mark.parametrize("name", ["oblique", "sheared"])
def test_logits_that_are_not_finite_are_refused(tmp_path, name):
    image, transforms = make_case(tmp_path, *GEOMETRIES[name])
    logits = make_logits(image)
    logits[2, 4, 5, 6] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        list(native_probabilities(logits, image, transforms))


def test_the_file_is_one_that_numpy_reads_and_always_the_same():
    volumes = torch.rand(3, 5, 6, 7).unbind()
    contents = []
    for _ in range(2):
        file = io.BytesIO()
        write_npz(file, (3, 5, 6, 7), volumes, {"values": np.array([0, 1, 300])})
        contents.append(file.getvalue())
    assert contents[0] == contents[1]
    with np.load(io.BytesIO(contents[0])) as arrays:
        assert arrays["values"].tolist() == [0, 1, 300]
        assert arrays["probabilities"].dtype == np.float16
        assert np.abs(arrays["probabilities"] - torch.stack(volumes).numpy()).max() <= ROUNDING


def test_classes_are_computed_while_they_are_written():
    alive = []

    def volumes():
        for number in range(4):
            alive.append(number)
            yield torch.zeros(50, 50, 50)
            sizes.append(file.tell())

    file, sizes = io.BytesIO(), []
    write_npz(file, (4, 50, 50, 50), volumes(), {})
    assert sizes == sorted(sizes)
    assert alive == [0, 1, 2, 3]


def test_the_size_is_estimated_from_headers(tmp_path):
    shape, affine, spacing, _ = GEOMETRIES["finer grid"]
    make_case(tmp_path, shape, affine, spacing)
    description = DatasetDescription.from_json(DESCRIPTION | {"spacing": [1, 1, 1]}, "test")
    nan = nib.Nifti1Image(np.ones(shape, np.float32), None)
    nan.header.set_sform(np.full((4, 4), np.nan), 1)
    (tmp_path / "nan.nii").write_bytes(nan.to_bytes())
    cases = [make_files(name, str(tmp_path / f"{name}.nii.gz")) for name in ("image", "none")]
    cases.append(make_files("nan", str(tmp_path / "nan.nii")))
    size = 3 * 2  # classes, bytes
    assert estimate_bytes(cases, "native", description) == np.prod(shape) * size
    resampled = Spacingd("image", (1, 1, 1))({"image": MetaTensor(torch.ones(1, *shape), affine=affine)})["image"]
    assert estimate_bytes(cases, "network", description) == resampled.numel() * size
