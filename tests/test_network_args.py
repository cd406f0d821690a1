"""--network_args in both scripts: training, resuming, predicting, and mistakes in one line."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SMALL, assert_one_line, train_arguments, train_here

ARGUMENTS = ("--network_args", "beta=2", "generator_depth=3", "per_channel=true")


@pytest.fixture(scope="module")
def ablation(box_template, tmp_path_factory):
    """Output folder of a run with arguments of the constructor that have no flags of their own."""
    output = tmp_path_factory.mktemp("ablation")
    words = train_arguments(box_template, output, "--max_iter", "2", *ARGUMENTS)
    assert train_here(*words) == 0
    return output


@pytest.fixture
def predict_one(boxes, tmp_path, predict):
    """Predict one case: (exit status, stdout, stderr), label map or None."""

    def predict_one(weights, *more):
        output = tmp_path / "predictions"
        image = boxes / "imagesVal" / "box_8.nii.gz"
        common = ("--images", image, "--output", output, "--overwrite", "--gpu", "cpu", "--num_workers", "0")
        result = predict(*common, "--trained_weights", weights, *more)
        path = output / "box_8_seg.nii.gz"
        return result, np.asarray(nib.load(path).dataobj) if path.exists() else None

    return predict_one


def test_the_checkpoint_has_the_arguments(ablation):
    content = torch.load(ablation / "best_metric_model.pth", weights_only=True)
    expected = {"feat_size": [8] * 4, "kernel_size": 5, "beta": 2, "generator_depth": 3, "per_channel": True}
    assert content["config"]["overrides"] == expected
    weights = content["model"]
    assert weights["rep3d.stages.0.0.lrbm.prior"][2, 2, 3] == pytest.approx(2 / 3)  # beta / (distance + beta)
    # one map per channel of the block, and three convolutions with two normalisations and sigmoids between them
    assert weights["rep3d.stages.0.0.lrbm.generator.6.weight"].shape == (8, 1, 7, 7, 7)


def test_prediction_from_the_checkpoint_needs_no_flags(ablation, predict_one):
    (status, _, err), labels = predict_one(ablation / "best_metric_model.pth")
    assert status == 0, err
    assert labels.shape == (36, 28, 18)


def test_prediction_from_a_bare_state_dict_needs_the_flags(ablation, boxes, tmp_path, predict_one):
    checkpoint = ablation / "best_metric_model.pth"
    weights = tmp_path / "weights.pth"
    torch.save(torch.load(checkpoint, weights_only=True)["model"], weights)
    flags = ("--dataset", boxes / "boxes.json", *SMALL)
    assert_one_line(predict_one(weights, *flags)[0], "--trained_weights", weights)
    (status, _, err), labels = predict_one(weights, *flags, *ARGUMENTS)
    assert status == 0, err
    assert np.array_equal(labels, predict_one(checkpoint)[1])


@pytest.mark.parametrize("arguments", [(), ("--network_args", "beta=3", "generator_depth=3", "per_channel=true")])
def test_resuming_with_other_arguments_is_refused(ablation, boxes, train, arguments):
    result = train(*train_arguments(boxes, ablation, "--max_iter", "2", *arguments, "--resume"))
    assert_one_line(result, "--network_args", "expected beta=2", "as in the run to resume")


def test_resuming_with_the_same_arguments_in_another_order(ablation, boxes, tmp_path, train):
    output = shutil.copytree(ablation, tmp_path / "run")
    flags = ("--network_args", "per_channel=True", "generator_depth=3", "beta=2.0")
    status, _, err = train(*train_arguments(boxes, output, "--max_iter", "2", *flags, "--resume"))
    assert status == 0, err


MISTAKES = {
    "unknown name": (("dropout=0.5",), "found argument dropout, expected some of beta, correction, depths"),
    "text for a number": (("beta=two",), "beta: found 'two', expected a number"),
    "number for a boolean": (("per_channel=1",), "per_channel: found 1, expected true or false"),
    "one number for several": (("depths=2",), "depths: found 2, expected a list of whole numbers"),
    "too few numbers": (("depths=2,2",), "depths: found (2, 2), expected 4 positive numbers"),
    "out of range": (("beta=-1",), "beta: found -1, expected a finite positive number"),
    "no equals sign": (("beta",), "found 'beta', expected NAME=VALUE"),
    "no name": (("=2",), "found '=2', expected NAME=VALUE"),
    "twice": (("beta=1", "beta=2"), "found beta twice, expected it once"),
    "also a flag": (("kernel_size=7",), "found kernel_size, expected it once, as --kernel_size"),
    "also a flag, by the constructor's name": (("ks=7",), "found ks, expected it once, as --kernel_size"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(boxes, tmp_path, train, words, message):
    result = train(*train_arguments(boxes, tmp_path / "run", "--network_args", *words))
    assert_one_line(result, "--network_args", message)


@pytest.mark.parametrize(("words", "message"), [MISTAKES["unknown name"], MISTAKES["twice"], MISTAKES["also a flag"]])
def test_mistakes_in_prediction_are_one_line(ablation, boxes, tmp_path, predict_one, words, message):
    weights = tmp_path / "weights.pth"
    torch.save(torch.load(ablation / "best_metric_model.pth", weights_only=True)["model"], weights)
    flags = ("--dataset", boxes / "boxes.json", *SMALL, "--network_args", *words)
    assert_one_line(predict_one(weights, *flags)[0], "--network_args", message)
    checkpoint = ablation / "best_metric_model.pth"
    assert_one_line(predict_one(checkpoint, *SMALL, "--network_args", *words)[0], "--network_args", message)
