"""Components of a bundle, as this repository's modules; tests of the export run them as a bundle's."""

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_nifti
from monai.inferers import sliding_window_inference

from engine.data.datasets import DATASETS, LabelValues
from engine.runtime.errors import InputError
from integrations.monai_bundle.scripts.inferer import WindowInferer
from integrations.monai_bundle.scripts.label_maps import SaveLabelsd, ToNativeLabelsd
from load_datasets_transforms import test_pipeline as prediction_pipeline
from networks import build_network


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("REP3D", 1, 3, (32, 32, 32), feat_size=(4, 4, 4, 4), kernel_size=5).eval()


def test_small_volumes_are_padded_with_their_minimum(network):
    volume = torch.rand(1, 1, 20, 40, 25) + 3
    inferer = WindowInferer((32, 32, 32), amp="off")
    with torch.inference_mode():
        found = inferer(volume, network)
        minimum = volume.min()
        expected = sliding_window_inference(volume - minimum, (32, 32, 32), 1, lambda x: network(x + minimum), 0.5)
        stock = sliding_window_inference(volume, (32, 32, 32), 1, network, 0.5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - stock).abs().max() > 1e-2


def test_volumes_are_predicted_one_by_one(network):
    with pytest.raises(ValueError, match="too many values"):
        WindowInferer((32, 32, 32))(torch.zeros(2, 1, 32, 32, 32), network)


def test_logits_that_are_not_finite_are_an_error_of_the_image(tmp_path):
    path = tmp_path / "case.nii.gz"
    write_nifti(path, np.random.default_rng(0).uniform(0, 200, (20, 20, 10)).astype(np.float32))
    pipeline = prediction_pipeline(DATASETS["amos"])
    data = pipeline({"image": str(path), "grid": str(path)})
    data["pred"] = torch.full((16, *data["image"].shape[1:]), torch.nan)
    with pytest.raises(InputError, match=r"case\.nii\.gz: found logits that are not finite"):
        ToNativeLabelsd(pipeline)(data)


def test_label_maps_have_the_values_of_the_dataset_and_the_header_of_the_image(tmp_path):
    affine = np.array([[0, -2.0, 0, 1], [1.5, 0, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])
    write_nifti(tmp_path / "case.nii.gz", np.zeros((4, 5, 6), np.float32), affine)
    classes = np.zeros((1, 4, 5, 6), np.uint8)
    classes[0, 0, 0] = 1
    classes[0, 1, 0] = 2
    save = SaveLabelsd(str(tmp_path / "labels" / "new"), LabelValues(((0,), (7, 8), (300,))))
    save({"id": "case", "grid": str(tmp_path / "case.nii.gz"), "pred": torch.from_numpy(classes)})
    (path,) = (tmp_path / "labels" / "new").iterdir()
    written = nib.load(path)
    assert path.name == "case_seg.nii.gz"
    np.testing.assert_array_equal(written.affine, affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.array([0, 7, 300])[classes[0]])
