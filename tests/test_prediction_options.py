"""Flags of test_seg.py that change or add to predictions: ensembles, windows, mirroring, components, probabilities."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, assert_one_line, prediction_arguments
from prediction_folders import NAMES, assert_same_files, copy_predictions, errors_at_the_end, path_of, rewrite

import test_seg as predict_script
from engine.data.nifti import read_voxels
from engine.prediction import estimate, post_transforms
from engine.prediction.components import keep_largest
from engine.runtime.errors import run

BEST = "best_metric_model.pth"
NEAR_TIE = 5e-4  # two roundings to float16


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory):
    """Folder with other weights of the same network, which exchange the labels left and right."""
    folder = tmp_path_factory.mktemp("other")
    content = torch.load(trained / BEST, weights_only=True)
    for name in ("out.conv.conv.weight", "out.conv.conv.bias"):
        content["model"][name] = content["model"][name][[0, 2, 1]] * 0.5
    torch.save(content, folder / BEST)
    return folder


def settings_of(folder):
    return json.loads((folder / "settings.json").read_text())


def labels_of(folder):
    return {name: read_voxels(str(path_of(folder, name))) for name in NAMES}


def run_with(predict, boxes, output, trained, *more):
    status, out, err = predict(*prediction_arguments(boxes, output, trained, *more))
    assert status == 0, err
    return out


def with_weights(boxes, output, *files):
    words = prediction_arguments(boxes, output, files[0].parent)
    place = words.index("--trained_weights") + 1
    return [*words[:place], *map(str, files), *words[place + 1 :]]


def test_an_ensemble_is_the_mean_of_its_probabilities(boxes, trained, other, tmp_path, predict):
    files = trained / BEST, other / BEST
    probabilities = []
    for folder in (trained, other):
        run_with(predict, boxes, tmp_path / folder.name, folder, "--save_probabilities")
        probabilities.append({name: load(tmp_path / folder.name, name)["probabilities"] for name in NAMES})
    status, out, _ = predict(*with_weights(boxes, tmp_path / "both", *files))
    assert status == 0
    for name, labels in labels_of(tmp_path / "both").items():
        mean = (probabilities[0][name].astype(np.float32) + probabilities[1][name]) / 2
        assert_argmax(mean, labels)
    assert len(settings_of(tmp_path / "both")["trained_weights"]) == 2
    assert settings_of(tmp_path / "both")["roi_size"] == [[32, 32, 16]] * 2
    assert "already" not in out
    assert "3 of 3 predictions are finished" in predict(*with_weights(boxes, tmp_path / "both", *files))[1]
    status, _, err = predict(*with_weights(boxes, tmp_path / "both", *files[::-1]))
    assert status == 2
    assert "holds predictions with trained_weights" in err


def assert_argmax(probabilities, labels):
    """Assert that the label map is the class of the largest probability, except in near-ties, which are few."""
    largest = np.sort(probabilities.astype(np.float32), axis=0)
    clear = largest[-1] - largest[-2] > NEAR_TIE
    assert np.array_equal(probabilities.argmax(axis=0)[clear], labels[clear])
    assert clear.mean() > 0.99
    assert len(np.unique(labels)) > 1


def load(folder, name, grid="native"):
    with np.load(folder / f"{name}_prob_{grid}.npz") as arrays:
        return dict(arrays)


def test_networks_of_an_ensemble_may_have_windows_of_their_own(boxes, trained, other, tmp_path, predict):
    content = torch.load(other / BEST, weights_only=True)
    content["config"]["roi_size"] = [32, 32, 32]
    torch.save(content, tmp_path / "other.pth")
    assert predict(*with_weights(boxes, tmp_path / "out", trained / BEST, tmp_path / "other.pth"))[0] == 0
    assert settings_of(tmp_path / "out")["roi_size"] == [[32, 32, 16], [32, 32, 32]]


def test_bare_state_dicts_have_the_flags_in_common(boxes, trained, other, tmp_path, predict):
    files = []
    for folder in (trained, other):
        files.append(tmp_path / f"{len(files)}.pth")
        torch.save(torch.load(folder / BEST, weights_only=True)["model"], files[-1])
    flags = ("--dataset", boxes / "boxes.json", "--roi_size", 32, 32, 16, "--feat_size", 8, 8, 8, 8, "--kernel_size", 5)
    assert predict(*with_weights(boxes, tmp_path / "bare", *files), *flags)[0] == 0
    assert predict(*with_weights(boxes, tmp_path / "whole", trained / BEST, other / BEST))[0] == 0
    assert_same_files(tmp_path / "bare", tmp_path / "whole", [path_of(tmp_path, name).name for name in NAMES])


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("spacing", [1.0, 1.0, 2.0], "spacing 1.0 1.0 2.0, expected 1.0 1.0 1.0"),
        ("intensity", {"window": [0, 1]}, "intensity window=[0.0, 1.0], expected zscore=true"),
        ("labels", {"background": 0, "left": 2, "right": 1}, "labels background=0 right=1 left=2, expected"),
        ("channels", ["T1"], "channels T1, expected image"),
    ],
)
def test_networks_of_another_dataset_are_refused(boxes, trained, other, tmp_path, predict, field, value, found):
    content = torch.load(other / BEST, weights_only=True)
    content["description"][field] = value
    torch.save(content, tmp_path / "other.pth")
    result = predict(*with_weights(boxes, tmp_path / "out", trained / BEST, tmp_path / "other.pth"))
    assert_one_line(result, f"--trained_weights: {tmp_path}/other.pth was trained with {found}", f"as {trained / BEST}")
    assert not (tmp_path / "out").exists()


def test_the_name_of_the_dataset_and_its_regions_may_differ(boxes, trained, other, tmp_path, predict):
    content = torch.load(other / BEST, weights_only=True)
    content["description"] |= {"name": "fold 1", "regions": {"both": ["left", "right"]}}
    torch.save(content, tmp_path / "other.pth")
    assert predict(*with_weights(boxes, tmp_path / "out", trained / BEST, tmp_path / "other.pth"))[0] == 0


def test_the_same_weights_twice_are_refused(boxes, trained, tmp_path, predict):
    shutil.copy(trained / BEST, tmp_path / "copy.pth")
    result = predict(*with_weights(boxes, tmp_path / "out", trained / BEST, tmp_path / "copy.pth"))
    assert_one_line(result, f"--trained_weights: {tmp_path}/copy.pth is the same as {trained / BEST}")


CHANGING = {
    "window": (("--window", "gaussian"), "window constant (now gaussian)"),
    "mirror": (("--mirror", "IS", "AP"), "mirror none given (now AP and IS)"),
    "keep_largest": (("--keep_largest", "right"), "keep_largest none given (now right)"),
}


@pytest.mark.parametrize("name", CHANGING)
def test_settings_of_earlier_versions_are_the_defaults(boxes, trained, predicted, tmp_path, predict, name):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    settings = settings_of(output)
    for newer in CHANGING:
        del settings[newer]
    (output / "settings.json").write_text(json.dumps(settings))
    flags, line = CHANGING[name]
    assert_one_line(predict(*prediction_arguments(boxes, output, trained, *flags)), f"holds predictions with {line}")
    assert "3 of 3 predictions are finished" in run_with(predict, boxes, output, trained)
    assert_same_files(output, predicted, ["settings.json"])


def test_all_axes_are_mirrored_and_sides_are_warned_of(boxes, trained, tmp_path, predict, count_forwards):
    image = ("--images", boxes / "imagesTr" / "box_1.nii.gz")
    out = run_with(predict, boxes, tmp_path / "all", trained, *image, "--mirror")
    assert settings_of(tmp_path / "all")["mirror"] == ["RL", "AP", "IS"]
    assert len(count_forwards) == 8
    warning = "warning: --mirror: RL exchanges left and right, which left, right needs training with"
    assert warning in out
    assert warning not in run_with(predict, boxes, tmp_path / "two", trained, *image, "--mirror", "AP")
    assert len(count_forwards) == 10


def test_only_largest_components_are_written(boxes, trained, tmp_path, predict, monkeypatch):
    """A speck beside each box, which the network could have predicted."""

    def add_specks(logits, image, transforms):
        labels = to_native_labels(logits, image, transforms)
        labels[0, 0, 0], labels[-1, -1, -1] = 1, 2
        return labels

    to_native_labels = post_transforms.to_native_labels
    monkeypatch.setattr(post_transforms, "to_native_labels", add_specks)
    run_with(predict, boxes, tmp_path / "all", trained)
    run_with(predict, boxes, tmp_path / "largest", trained, "--keep_largest", "left")
    for name, labels in labels_of(tmp_path / "largest").items():
        everything = labels_of(tmp_path / "all")[name]
        assert (everything[0, 0, 0], labels[0, 0, 0], labels[-1, -1, -1]) == (1, 0, 2)
        keep_largest(everything, [[1]])
        assert np.array_equal(labels, everything)


def test_an_unknown_class_to_keep_is_refused(boxes, trained, tmp_path, predict):
    result = predict(*prediction_arguments(boxes, tmp_path / "out", trained, "--keep_largest", "left", "middle"))
    assert_one_line(result, "--keep_largest: found 'middle', expected some of left, right")


def test_the_work_is_estimated_before_the_first_case(boxes, trained, tmp_path, predict, monkeypatch):
    monkeypatch.setattr(estimate, "WORTHWHILE", 1)
    out = run_with(predict, boxes, tmp_path / "out", trained)
    assert re.search(r"^at most \d+ windows? in 3 cases: about \d+ s of network time$", out, re.MULTILINE)


@pytest.fixture(scope="module")
def with_probabilities(box_template, trained, tmp_path_factory):
    """Output folder of an undisturbed prediction with probabilities on the native grid."""
    output = tmp_path_factory.mktemp("with probabilities")
    words = prediction_arguments(box_template, output, trained, "--save_probabilities")
    assert run(predict_script.main, predict_script.parse_args(words)) == 0
    return output


def test_probabilities_give_the_label_maps(with_probabilities, predicted):
    assert_same_files(with_probabilities, predicted, [path_of(predicted, name).name for name in NAMES])
    for name, labels in labels_of(with_probabilities).items():
        arrays = load(with_probabilities, name)
        assert arrays["probabilities"].dtype == np.float16
        assert arrays["values"].tolist() == [0, 1, 2]
        assert np.array_equal(arrays["affine"], nib.load(path_of(with_probabilities, name)).affine)
        assert_argmax(arrays["probabilities"], labels)


def test_probabilities_on_the_networks_grid(boxes, trained, tmp_path, predict):
    """With voxels of 1 mm in RAS, that grid is a part of the native one."""
    out = run_with(predict, boxes, tmp_path / "out", trained, "--save_probabilities", "network")
    assert "--save_probabilities: at most 0.0 GB, before compression; " in out
    arrays = load(tmp_path / "out", "box_0", "network")
    offset = arrays["affine"][:3, 3].astype(int)
    inside = tuple(
        slice(start, start + side) for start, side in zip(offset, arrays["probabilities"].shape[1:], strict=True)
    )
    assert_argmax(arrays["probabilities"], labels_of(tmp_path / "out")["box_0"][inside])


def test_probabilities_on_both_grids_are_kept(boxes, trained, with_probabilities, tmp_path, predict):
    output = copy_predictions(with_probabilities, tmp_path / "out", boxes)
    out = run_with(predict, boxes, output, trained, "--save_probabilities", "network", "--preview")
    assert "already" not in out
    names = {path.name for path in with_probabilities.iterdir()} - {"settings.json"}
    assert_same_files(output, with_probabilities, names)
    assert len(list(output.glob("*_prob_network.npz"))) == len(list(output.glob("*.png"))) == 3
    (output / "box_1_prob_native.npz").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.png")}
    assert "2 of 3" in run_with(predict, boxes, output, trained, "--save_probabilities")
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("*.png")} == before


def test_a_rerun_keeps_probabilities(boxes, trained, with_probabilities, tmp_path, predict, count_forwards):
    output = copy_predictions(with_probabilities, tmp_path / "out", boxes)
    for more in (("--save_probabilities",), ()):
        assert "3 of 3 predictions are finished" in run_with(predict, boxes, output, trained, *more)
    assert not count_forwards
    assert_same_files(output, with_probabilities, [path.name for path in with_probabilities.iterdir()])


def test_a_prediction_without_its_probabilities_is_not_finished(
    boxes, trained, predicted, with_probabilities, tmp_path, predict, count_forwards
):
    output = copy_predictions(with_probabilities, tmp_path / "out", boxes)
    (output / "box_1_prob_native.npz").unlink()
    assert "2 of 3 predictions are finished" in run_with(predict, boxes, output, trained, "--save_probabilities")
    assert len(count_forwards) == 1
    assert_same_files(output, with_probabilities, [path.name for path in with_probabilities.iterdir()])
    output = copy_predictions(predicted, tmp_path / "none yet", boxes)
    assert "already" not in run_with(predict, boxes, output, trained, "--save_probabilities")
    assert_same_files(output, with_probabilities, [path.name for path in with_probabilities.iterdir()])


def test_outdated_probabilities_are_removed(boxes, trained, with_probabilities, tmp_path, predict):
    output = copy_predictions(with_probabilities, tmp_path / "out", boxes)
    rewrite(boxes / "imagesTr" / "box_1.nii.gz", np.negative)
    run_with(predict, boxes, output, trained)
    present = {path.name for path in output.glob("*.npz")}
    assert present == {"box_0_prob_native.npz", "box_2_prob_native.npz"}
    run_with(predict, boxes, output, trained, "--overwrite", "--window", "gaussian")
    assert not list(output.glob("*.npz"))


def test_probabilities_of_others_are_kept(boxes, trained, with_probabilities, tmp_path, predict):
    output = tmp_path / "out"
    output.mkdir()
    path = output / "box_1_prob_native.npz"
    path.write_bytes(b"mine")
    out = run_with(predict, boxes, output, trained, "--save_probabilities")
    assert f"warning: {path} is kept, because test_seg.py has not written it" in out
    assert path.read_bytes() == b"mine"
    assert "3 of 3 predictions are finished" in run_with(predict, boxes, output, trained, "--save_probabilities")
    out = run_with(predict, boxes, output, trained, "--save_probabilities", "--overwrite")
    assert f"warning: {path} was not written by test_seg.py, and is kept as {path.name}.old" in out
    assert path.with_name(f"{path.name}.old").read_bytes() == b"mine"
    assert path.read_bytes() == (with_probabilities / path.name).read_bytes()


def test_a_killed_run_knows_its_probabilities(boxes, trained, with_probabilities, tmp_path, predict, monkeypatch):
    """Killed between the probabilities and the label map of a case, it writes both again."""
    output = tmp_path / "out"

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(post_transforms, "to_native_labels", kill)
        words = prediction_arguments(boxes, output, trained, "--save_probabilities")
        assert predict(*words)[0] == 130
    assert {path.name for path in output.iterdir()} == {"box_0_prob_native.npz", "settings.json", ".written_0.jsonl"}
    out = run_with(predict, boxes, output, trained, "--save_probabilities")
    assert "is kept" not in out
    assert_same_files(output, with_probabilities, [path.name for path in with_probabilities.iterdir()])


def test_probabilities_that_cannot_be_written_end_the_run(boxes, trained, tmp_path, predict, monkeypatch):
    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(post_transforms, "write_npz", fill)
    status, _, err = predict(*prediction_arguments(boxes, tmp_path / "out", trained, "--save_probabilities"))
    assert status == 2
    (line,) = errors_at_the_end(err)
    assert "box_0_prob_native.npz: cannot be written (No space left on device)" in line
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"settings.json"}


def test_the_documented_lines_average_probabilities(boxes, trained, other, tmp_path, predict, monkeypatch):
    image = ("--images", boxes / "imagesTr" / "box_1.nii.gz")
    mean = []
    for folder, weights in (("fold_0", trained), ("fold_1", other)):
        run_with(predict, boxes, tmp_path / "predictions" / folder, weights, *image, "--save_probabilities")
        mean.append(load(tmp_path / "predictions" / folder, "box_1")["probabilities"].astype(np.float32) / 2)
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "prediction.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code.replace("case_7", "box_1"), {})
    averaged = nib.load(tmp_path / "box_1_mean.nii.gz")
    own = nib.load(path_of(tmp_path / "predictions" / "fold_0", "box_1"))
    assert np.array_equal(np.asarray(averaged.dataobj), sum(mean).argmax(axis=0))
    assert np.array_equal(averaged.affine, own.affine)


def test_probabilities_beside_their_images_are_no_volumes(boxes, trained, predict):
    for _ in range(2):
        out = run_with(predict, boxes, boxes / "imagesTr", trained, "--save_probabilities", "network")
    assert "expected .nii.gz or .nii files" not in out
    assert "predictions of test_seg.py" in out
