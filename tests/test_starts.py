"""A thousand cases: a start opens each file once, and lists a folder as often for many cases as for few."""

import sys
from collections import Counter

import pytest
import torch
from conftest import make_box_case, train_arguments

from engine.data.cache import open_cache
from engine.data.cases import pair_cases
from engine.data.dataset_checks import SAMPLED
from engine.data.datasets import find_description
from engine.runtime.stop_requests import StopRequests
from load_datasets_transforms import training_pipelines
from main_train import parse_args, prepare
from tools import check_data

EVENTS: list[tuple[str, str]] = []  # of opened files and listed folders; an audit hook cannot be removed
sys.addaudithook(lambda event, args: EVENTS.append((event, str(args[0]))) if event in ("open", "os.listdir") else None)


@pytest.fixture
def many_boxes(boxes):
    """The folder of boxes with six more training cases."""
    for number in range(6):
        make_box_case(boxes, "Tr", f"more_{number}", 100 + number)
    return boxes


def count_opens(folder, action):
    """Count how often an action opens each volume of a folder."""
    EVENTS.clear()
    action()
    return Counter(
        path for event, path in EVENTS if event == "open" and path.startswith(str(folder)) and path.endswith(".nii.gz")
    )


def test_a_training_start_opens_each_file_once(many_boxes, tmp_path):
    args = parse_args([str(word) for word in train_arguments(many_boxes, tmp_path / "run")])
    opens = count_opens(many_boxes / "imagesTr", lambda: prepare(args, torch.device("cpu"), StopRequests()))
    files = sorted((many_boxes / "imagesTr").iterdir())
    assert sorted(opens) == [str(path) for path in files]
    again = {path: count for path, count in opens.items() if count > 1}
    assert set(again.values()) == {2}
    assert len(again) == SAMPLED  # once more for their voxels


def test_the_check_opens_each_file_once(many_boxes):
    argv = ["--root", str(many_boxes), "--dataset", str(many_boxes / "boxes.json"), "--headers_only"]
    opens = count_opens(many_boxes / "imagesTr", lambda: check_data.main(check_data.parse_args(argv)))
    assert len(opens) == len(list((many_boxes / "imagesTr").iterdir()))
    assert set(opens.values()) == {1}


def test_a_filled_cache_opens_no_volume(many_boxes, tmp_path):
    cases = pair_cases(many_boxes / "imagesTr", many_boxes / "labelsTr")
    transform, _ = training_pipelines(find_description(str(many_boxes / "boxes.json")), (16, 16, 16), 1)
    open_cache(cases, transform, tmp_path / "cache", num_workers=0)
    assert not count_opens(many_boxes, lambda: open_cache(cases, transform, tmp_path / "cache", num_workers=0))


def test_filling_the_cache_lists_folders_as_often_for_many_cases(many_boxes, tmp_path):
    cases = pair_cases(many_boxes / "imagesTr", many_boxes / "labelsTr")
    transform, _ = training_pipelines(find_description(str(many_boxes / "boxes.json")), (16, 16, 16), 1)
    listed = []
    for part in (cases[:2], cases[2:]):
        EVENTS.clear()
        open_cache(part, transform, tmp_path / f"cache_{len(part)}", num_workers=0)
        listed.append(Counter(event for event, _ in EVENTS)["os.listdir"])
    assert len(cases[2:]) > 2
    assert listed[0] == listed[1]
