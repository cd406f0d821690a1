"""The diffs of docs/extending.md apply to the working tree, and each changes what it promises to change."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SMALL, train_arguments, train_here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import load_datasets_transforms as unchanged
from engine.data.cases import find_training_cases
from engine.data.datasets import DatasetDescription

PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
SECTIONS = {section.partition("\n")[0]: section for section in PAGE.split("\n## ")[1:]}


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A copy of the scripts and what they import."""
    folder = tmp_path_factory.mktemp("source")
    for path in REPOSITORY.glob("*.py"):
        shutil.copy(path, folder)
    for name in ("engine", "networks"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def changed(source, tmp_path):
    """Apply the diff of a section to a copy of the source and return the copy."""

    def change(*titles):
        folder = shutil.copytree(source, tmp_path / "changed")
        for title in titles:
            (diff,) = re.findall(r"```diff\n(.*?)```", SECTIONS[title], flags=re.DOTALL)
            # Inside a repository git would take the paths to be relative to its root.
            alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
            done = subprocess.run(["git", "apply"], input=diff, cwd=folder, env=alone, capture_output=True, text=True)
            assert done.returncode == 0, f"{title}: {done.stderr}\nupdate the diff in docs/extending.md"
        return folder

    return change


def run(folder, script, *arguments):
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def short_training(boxes, output):
    return train_arguments(boxes, output, "--max_iter", "2")


def losses(output):
    events = EventAccumulator(str(output / "tensorboard")).Reload().Scalars("train/loss")
    return {event.step: event.value for event in events}


@pytest.fixture(scope="session")
def unchanged_losses(box_template, tmp_path_factory):
    output = tmp_path_factory.mktemp("unchanged")
    assert train_here(*short_training(box_template, output)) == 0
    return losses(output)


def test_the_page_has_the_four_walk_throughs_and_their_diffs_fit_together(changed):
    assert list(SECTIONS) == ["A network", "A loss", "An augmentation", "A logger"]
    changed(*SECTIONS)


def test_a_network_trains_and_predicts_under_its_name(changed, box_template, tmp_path):
    folder, output = changed("A network"), tmp_path / "run"
    words = short_training(box_template, output)
    start = words.index(SMALL[0])
    words[start : start + len(SMALL)] = ["--roi_size", "32", "32", "16", "--gpu", "cpu"]  # without Rep3D's arguments
    run(folder, "main_train.py", *words, "--network", "TinyUNet", "--network_args", "width=4")
    best = torch.load(output / "best_metric_model.pth", weights_only=True)
    assert (best["config"]["network"], best["config"]["overrides"]) == ("TinyUNet", {"width": 4})
    weights = ("--trained_weights", output / "best_metric_model.pth")
    run(folder, "test_seg.py", "--root", box_template, "--output", tmp_path / "out", *weights, "--gpu", "cpu")
    labels = np.asarray(nib.load(tmp_path / "out" / "box_8_seg.nii.gz").dataobj)
    assert labels.shape == nib.load(box_template / "imagesVal" / "box_8.nii.gz").shape


@pytest.mark.parametrize("title", ["A loss", "An augmentation"])
def test_a_changed_recipe_trains_to_other_losses(title, changed, box_template, tmp_path, unchanged_losses):
    run(changed(title), "main_train.py", *short_training(box_template, tmp_path / "run"))
    found = losses(tmp_path / "run")
    assert found.keys() == unchanged_losses.keys()
    assert all(np.isfinite(loss) for loss in found.values())
    assert found != unchanged_losses


def load(path):
    """Import a changed file by its path; the modules that it imports are the unchanged ones."""
    spec = importlib.util.spec_from_file_location(f"changed_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_crops(module, boxes):
    description = DatasetDescription.read(boxes / "boxes.json")
    cases, _ = find_training_cases(boxes, description)
    pipeline, _ = module.training_pipelines(description, (32, 32, 16), 8)
    pipeline.set_random_state(0)
    return [torch.cat((crop["image"], crop["label"])) for crop in pipeline(cases[0])]


def test_the_augmentation_shades_the_image_of_some_crops(changed, box_template):
    module = load(changed("An augmentation") / "load_datasets_transforms.py")
    pairs = list(zip(make_crops(module, box_template), make_crops(unchanged, box_template), strict=True))
    assert all(torch.equal(crop[1], plain[1]) for crop, plain in pairs)  # the labels
    assert 0 < sum(torch.equal(crop, plain) for crop, plain in pairs) < 8


def test_a_logger_has_the_losses(changed, box_template, tmp_path, unchanged_losses):
    folder, output = changed("A logger"), tmp_path / "run"
    run(folder, "main_train.py", *short_training(box_template, output))
    assert not (output / "tensorboard").exists()
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    found = {line["step"]: np.float32(line["train/loss"]) for line in lines if "train/loss" in line}
    assert found == unchanged_losses
    assert any("dice/mean" in line for line in lines)
    # A resumed run repeats what came after its checkpoint.
    with load(folder / "engine" / "training" / "json_log.py").JsonLinesLog(output / "log.jsonl", 2):
        assert {json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()} == {1}
