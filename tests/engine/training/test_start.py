"""Flags of the network that --pretrained_weights answers, what it prints, and how such a run is resumed."""

import json

import pytest
import torch
from conftest import SMALL, assert_one_line, train_arguments

import main_train
from engine.data.datasets import DatasetDescription
from engine.runtime.files import ARGUMENTS
from engine.training.start import StartWeights, complete_as_begun, read_start
from networks import build_network, save_pretrained

NARROW = {"feat_size": (4, 4, 4, 4), "depths": [1, 1, 1, 1], "ks": 5}
HIPPOCAMPUS = {"name": "h", "labels": {"background": 0, "a": 1}, "spacing": [1, 1, 1], "intensity": {"zscore": True}}


@pytest.fixture
def parse(tmp_path):
    """Parse flags of a run that starts from weights."""

    def parsed(weights, *more):
        data = ["--root", "r", "--dataset", "d", "--output", str(tmp_path / "run")]
        words = [*data, "--pretrain", "True", "--pretrained_weights", str(weights), *more]
        return vars(main_train.parse_args(words))

    return parsed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with files of weights, among them of a network that is tied to its crops, and of another program."""
    folder = tmp_path_factory.mktemp("weights")
    described = HIPPOCAMPUS | {"labels": {"background": 0, "a": 1, "b": 2}, "spacing": [1, 1, 2]}
    save_pretrained(build_network("REP3D_FIXED", 1, 3, (32, 32, 16), **NARROW), folder / "saved", described)
    tied = build_network("UNETR", 1, 3, (16, 16, 32), feature_size=4, hidden_size=12, mlp_dim=4)
    configs = {"tied": {"config": tied.config}, "foreign": {"config": {"network": "other"}}, "bare": {}}
    for name, config in configs.items():
        torch.save({"model": tied.state_dict(), **config}, folder / f"{name}.pth")
    return folder


def of_the_network(flags):
    return tuple(flags[name] for name in ("network", "feat_size", "kernel_size", "network_args", "roi_size"))


TAKEN = ("REP3D_FIXED", [4, 4, 4, 4], 5, {"depths": [1, 1, 1, 1]}, [96, 96, 96])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], TAKEN),
        (["--network", "REP3D_FIXED", "--roi_size", "32", "32", "16"], (*TAKEN[:4], [32, 32, 16])),
        (["--feat_size", "8", "8", "8", "8"], (TAKEN[0], [8, 8, 8, 8], *TAKEN[2:])),
        (["--network_args", "beta=2"], (*TAKEN[:3], {"depths": [1, 1, 1, 1], "beta": 2}, TAKEN[4])),
        (["--network_args", "ks=7"], (*TAKEN[:2], 7, *TAKEN[3:])),
        (["--network", "REP3D"], ("REP3D", None, None, None, [96, 96, 96])),
    ],
    ids=["none", "network", "feat_size", "another argument", "the same argument", "another network"],
)
def test_given_flags_win_and_the_file_has_the_others(folder, parse, more, expected):
    flags = parse(folder / "saved" / "model.safetensors", *more)
    read_start(flags)
    assert of_the_network(flags) == expected


def test_what_was_taken_is_printed(folder, parse, capsys):
    path = folder / "saved" / "model.safetensors"
    read_start(parse(path, "--kernel_size", "5"))
    taken = "--network REP3D_FIXED --feat_size 4 4 4 4 --network_args depths=[1, 1, 1, 1]"
    assert capsys.readouterr().out == f"--pretrained_weights: taken from {path}: {taken}\n"


def test_a_network_that_is_tied_to_its_crops_has_those_of_the_file(folder, parse):
    flags = parse(folder / "tied.pth")
    read_start(flags)
    assert of_the_network(flags)[0::4] == ("UNETR", [16, 16, 32])


@pytest.mark.parametrize("name", ["foreign", "bare"])
def test_a_file_that_does_not_name_its_network_answers_nothing(folder, parse, capsys, name):
    flags = parse(folder / f"{name}.pth")
    read_start(flags)
    assert of_the_network(flags) == ("REP3D", None, None, None, [96, 96, 96])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("more", [[], ["--network_args", "beta=2"], ["--feat_size", "8", "8", "8", "8"]])
def test_a_resumed_run_has_the_flags_with_which_it_was_begun(folder, parse, tmp_path, more):
    """Also where the file is gone by then."""
    begun = parse(folder / "saved" / "model.safetensors", *more)
    read_start(begun)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ARGUMENTS).write_text(json.dumps(begun))
    resumed = parse("gone.safetensors", *more, "--resume")
    assert read_start(resumed) is None
    assert of_the_network(resumed) == of_the_network(begun)
    finished = parse("gone.safetensors", *more)
    complete_as_begun(finished, tmp_path / "run")
    assert of_the_network(finished) == of_the_network(begun)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"network": "REP3D"}', '{"network": "none", "roi_size": [1]}'])
def test_flags_of_a_begun_run_that_cannot_be_read(box_template, tmp_path, train, text):
    if text is not None:
        (tmp_path / ARGUMENTS).write_text(text)
    start = ("--pretrain", "True", "--pretrained_weights", "gone.pth", "--resume")
    done = train(*train_arguments(box_template, tmp_path, *start))
    assert_one_line(done, f"--resume: {tmp_path / ARGUMENTS}", "expected the flags of the run")


def start_from(box_template, tmp_path, weights, *more):
    """Compose the flags of a run without flags of the network, but for crops that suit the boxes."""
    arguments = train_arguments(box_template, tmp_path / "run", "--max_iter", "1", *more)
    words = [str(word) for word in arguments]
    first = words.index("--feat_size")
    return [*words[:first], *words[first + 7 :], "--gpu", "cpu", "--pretrain", "True", "--pretrained_weights", weights]


def test_flags_that_contradict_the_file_are_one_line(folder, box_template, tmp_path, train):
    path = folder / "saved" / "model.safetensors"
    assert SMALL[4] == "--feat_size"
    done = train(*start_from(box_template, tmp_path, path, "--feat_size", "8", "8", "8", "8"))
    assert_one_line(done, path, "does not fit the network", "--feat_size 8 8 8 8, the file's is 4 4 4 4")


def test_a_contradiction_that_leaves_weights_out_is_a_warning(folder, box_template, tmp_path, parse, capsys):
    flags = parse(folder / "saved" / "model.safetensors", "--network_args", "depths=1,1,1,2")
    start = read_start(flags)
    capsys.readouterr()
    start.load_into(build_network("REP3D_FIXED", 1, 3, (32, 32, 16), **NARROW | {"depths": (1, 1, 1, 2)}))
    _, line = capsys.readouterr().out.splitlines()
    found = "--network_args depths 1 1 1 2, the file's is 1 1 1 1"
    assert line.startswith("warning: --pretrained_weights: ")
    assert line.endswith(found)


@pytest.mark.parametrize(
    ("other", "warnings"),
    [
        ({"labels": {"background": 0, "b": 3}}, []),
        ({"spacing": [1, 1, 2]}, ["found spacing 1.0 1.0 2.0, expected 1.0 1.0 1.0"]),
        (
            {"spacing": [2, 1, 1], "intensity": {"window": [0, 80]}},
            [
                "found spacing 2.0 1.0 1.0, expected 1.0 1.0 1.0",
                "found intensity window=[0.0, 80.0], expected zscore=true",
            ],
        ),
        ({"nan": "minimum"}, ["found nan minimum, expected none given"]),
    ],
    ids=["classes", "spacing", "both", "nan"],
)
def test_volumes_that_are_prepared_otherwise_are_a_warning(capsys, other, warnings):
    saved = DatasetDescription.from_json(HIPPOCAMPUS, "saved").to_json()
    StartWeights("f", {"description": saved}, ()).compare_data(DatasetDescription.from_json(HIPPOCAMPUS | other, "own"))
    lines = [f"warning: --pretrained_weights: {text} as in the training of the weights" for text in warnings]
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize("content", [{}, {"description": "text"}, {"description": {"spacing": torch.ones(3)}}])
def test_a_file_without_a_description_of_ours_is_no_warning(capsys, content):
    StartWeights("f", content, ()).compare_data(DatasetDescription.from_json(HIPPOCAMPUS, "own"))
    assert capsys.readouterr().out == ""


def test_heads_of_deep_supervision_are_left_out_without_a_warning(capsys):
    deep, plain = (build_network("nnUNet", 1, 3, filters=(2,) * 6) for _ in range(2))
    deep.enable_deep_supervision()
    report = StartWeights("x.pth", {"model": deep.state_dict()}, ("--flag 1, the file's is 2",)).load_into(plain)
    assert report.skipped
    assert "warning" not in capsys.readouterr().out


def test_a_run_that_starts_from_a_file_needs_no_flags_of_its_network(folder, box_template, tmp_path, train):
    words = start_from(box_template, tmp_path, folder / "saved" / "model.safetensors", "--freeze_encoder", "1")
    status, out, err = train(*words)
    assert status == 0, err
    assert "taken from" in out
    assert "warning: --pretrained_weights: found spacing 1.0 1.0 1.0, expected 1.0 1.0 2.0 as in " in out
    saved = json.loads((tmp_path / "run" / ARGUMENTS).read_text())
    assert of_the_network(saved) == (*TAKEN[:4], [32, 32, 16])
    status, _, err = train(*words, "--resume")
    assert status == 0, err
