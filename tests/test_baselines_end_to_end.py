"""Networks other than Rep3D under the same two commands, starts from other weights, and unsuitable crops."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SMALL, train_arguments

from engine.training import step as training_step
from networks import NETWORKS

# One network for each difference that matters to the scripts: folded kernels, scaled updates, heads without a gradient,
# batch and instance normalisation, a crop size that is fixed at construction, widths without a flag, deep supervision.
SMALL_NETWORKS = {
    "3DUXNET_LRBM": SMALL,
    "REPUXNET": SMALL,
    "REPOPT": SMALL,
    "STUNet_S": ["--roi_size", "32", "32", "64", "--feat_size", "4", "4", "8", "8", "8", "8", "--gpu", "cpu"],
    "ResEncUNet": ["--roi_size", "32", "32", "64", "--feat_size", *["8"] * 6, "--gpu", "cpu"],
    "MedNeXt_S": ["--roi_size", "32", "32", "16", "--kernel_size", "3", "--gpu", "cpu", "--deep_supervision"],
    "TransBTS": ["--roi_size", "32", "32", "16", "--gpu", "cpu"],
    "UNet3D": ["--roi_size", "32", "32", "16", "--gpu", "cpu"],
}


def arguments(root, output, name, *more):
    data = ("--root", root, "--output", output, "--dataset", root / "boxes.json", "--num_workers", "0")
    return [*data, "--network", name, *SMALL_NETWORKS[name], "--max_iter", "4", "--eval_step", "4", *more]


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_train_and_predict(boxes, tmp_path, train, predict, name):
    status, out, err = train(*arguments(boxes, tmp_path / "run", name, "--lr", "1e-3"))
    assert (status, f"{name}: " in out) == (0, True), err
    weights = tmp_path / "run" / "best_metric_model.pth"
    common = ("--root", boxes, "--trained_weights", weights, "--gpu", "cpu", "--num_workers", "0")
    assert predict(*common, "--output", tmp_path / "out")[0] == 0
    image, prediction = (
        nib.load(path) for path in (boxes / "imagesVal/box_8.nii.gz", tmp_path / "out/box_8_seg.nii.gz")
    )
    assert prediction.shape == image.shape
    assert set(np.unique(np.asarray(prediction.dataobj))) <= {0, 1, 2}


def test_rep_optimizer_resumes_to_the_same_weights(boxes, tmp_path, train, monkeypatch):
    def weights(name):
        return torch.load(tmp_path / name / "last_checkpoint.pth", weights_only=True)["model"]

    def step_until_interrupted(state, *rest):
        if state.iteration == 6:
            raise KeyboardInterrupt
        return train_step(state, *rest)

    train_step = training_step.train_step
    more = ("--max_iter", "8", "--lr", "0.01")
    assert train(*arguments(boxes, tmp_path / "whole", "REPOPT", *more))[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(training_step, "train_step", step_until_interrupted)
        assert train(*arguments(boxes, tmp_path / "cut", "REPOPT", *more))[0] == 130
    assert train(*arguments(boxes, tmp_path / "cut", "REPOPT", *more, "--resume"))[0] == 0
    assert all(torch.equal(value, weights("cut")[key]) for key, value in weights("whole").items())


def test_rep_optimizer_needs_an_optimiser_that_it_supports(boxes, tmp_path, train):
    status, _, err = train(*arguments(boxes, tmp_path / "run", "REPOPT", "--optim", "Adam"))
    assert (status, err.count("\n")) == (2, 1)
    assert "--optim: found Adam, expected AdamW or SGD" in err


def test_the_error_of_an_unknown_network_lists_the_known_ones(boxes, tmp_path, train):
    status, _, err = train(*train_arguments(boxes, tmp_path / "run", "--network", "3DUNET"))
    assert status == 2
    assert all(f"'{name}'" in err for name in NETWORKS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SwinUNETR", "three sides divisible by 32"),
        ("UNETR", "three sides divisible by 16"),
        ("nnFormer", "sides divisible by 16, 32, 32"),
        ("UNesT", "three sides divisible by 32"),
        ("STUNet_S", "three sides divisible by 32"),
    ],
)
def test_a_crop_size_that_does_not_suit_the_network(boxes, tmp_path, train, name, expected):
    data = ("--root", boxes, "--output", tmp_path / "run", "--dataset", boxes / "boxes.json", "--gpu", "cpu")
    status, _, err = train(*data, "--network", name, "--roi_size", "40", "48", "48")
    assert (status, err.count("\n")) == (2, 1)
    assert f"--network {name}: roi_size: found 40 x 48 x 48, expected {expected}" in err
    assert not (tmp_path / "run" / "last_checkpoint.pth").exists()


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [("UNETR", "--kernel_size", "5"), ("TransBTS", "--feat_size", "8"), ("UNet3D", "--kernel_size", "3")],
)
def test_a_flag_that_the_network_does_not_have(boxes, tmp_path, train, name, flag, value):
    data = ("--root", boxes, "--output", tmp_path / "run", "--dataset", boxes / "boxes.json", "--gpu", "cpu")
    status, _, err = train(*data, "--network", name, flag, value)
    assert (status, err.count("\n")) == (2, 1)
    assert f"{name}: found argument {flag.removeprefix('--')}, expected some of" in err


def test_another_window_size_for_a_network_with_a_fixed_size(boxes, tmp_path, train, predict):
    assert train(*arguments(boxes, tmp_path / "run", "TransBTS", "--max_iter", "1"))[0] == 0
    weights = ("--trained_weights", tmp_path / "run" / "best_metric_model.pth", "--gpu", "cpu")
    status, _, err = predict("--root", boxes, "--output", tmp_path / "out", *weights, "--roi_size", "32", "32", "32")
    assert (status, err.count("\n")) == (2, 1)
    assert "--roi_size: found 32 x 32 x 32, expected 32 x 32 x 16, the size the network was built for" in err


def test_fine_tuning_to_other_classes_and_channels(boxes, tmp_path, trained, train, predict):
    """From one channel and three classes, with parameter names of DistributedDataParallel, to two channels and four."""
    model = torch.load(trained / "best_metric_model.pth", weights_only=True)["model"]
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.items()}}, tmp_path / "released.pth")
    description = json.loads((boxes / "boxes.json").read_text())
    description |= {"channels": ["T1", "T2"], "labels": {"background": 0, "left": 1, "right": 2, "rest": 3}}
    (boxes / "boxes.json").write_text(json.dumps(description))
    for path in [*boxes.glob("imagesTr/*"), *boxes.glob("imagesVal/*")]:
        image = nib.load(path)
        voxels = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.stack([voxels, voxels], axis=-1), image.affine), path)
    pretrain = (
        "--pretrain",
        "True",
        "--pretrained_weights",
        tmp_path / "released.pth",
        "--max_iter",
        "1",
        "--lr",
        "1e-12",
    )
    status, out, err = train(*train_arguments(boxes, tmp_path / "run", *pretrain))
    assert status == 0, err
    assert "--pretrained_weights: " in out
    assert "tensors loaded, skipped 2 (out.conv.conv.bias, out.conv.conv.weight)" in out
    assert "other number of classes, head not loaded" in out
    assert "other number of channels, rep3d.downsample_layers.0.0.weight averaged and repeated" in out
    tuned = torch.load(tmp_path / "run" / "last_checkpoint.pth", weights_only=True)["model"]
    stem = "rep3d.downsample_layers.0.0.weight"
    torch.testing.assert_close(tuned[stem], model[stem].expand(-1, 2, -1, -1, -1), atol=1e-6, rtol=0)
    weights = ("--trained_weights", tmp_path / "released.pth", "--dataset", boxes / "boxes.json", *SMALL)
    status, _, err = predict("--root", boxes, "--output", tmp_path / "out", *weights)
    assert (status, err.count("\n")) == (2, 1)
    assert "--trained_weights: " in err
    assert "does not fit the network" in err


def test_weights_of_another_network_are_refused_with_counts(boxes, tmp_path, trained, train, predict):
    weights = trained / "best_metric_model.pth"
    pretrain = ("--pretrain", "True", "--pretrained_weights", weights)
    status, _, err = train(*arguments(boxes, tmp_path / "run", "UNet3D", *pretrain))
    assert (status, err.count("\n")) == (2, 1)
    assert "--pretrained_weights: " in err
    assert "0 of them known and 0 of another shape" in err
    common = ("--root", boxes, "--output", tmp_path / "out", "--trained_weights", weights, "--gpu", "cpu")
    for other in ("3DUXNET", "UNet3D"):
        status, _, err = predict(*common, "--network", other)
        assert (status, err.count("\n")) == (2, 1)
        assert "does not fit the network: found " in err
