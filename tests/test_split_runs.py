"""Training, prediction and check with a split file: the cases, what checkpoints keep, resuming, and leaks."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_one_line, train_arguments, train_here

from engine.data.splits import hash_ids
from engine.runtime.errors import run
from load_datasets_transforms import data_loader
from tools import check_data

FOLDS = [
    {"training": ["box_0", "box_8"], "validation": ["box_1"]},
    {"training": ["box_1", "box_8"], "validation": ["box_0"]},
]
TEST = ["box_9"]
SHORT = hash_ids(FOLDS, TEST)[:12]
DEVICE = ("--gpu", "cpu", "--num_workers", "0")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Split file over both folders of the boxes; box_2 is in no part."""
    path = tmp_path_factory.mktemp("split") / "mine.json"
    path.write_text(json.dumps({"name": "mine", "folds": FOLDS, "test": TEST}))
    return path


@pytest.fixture(scope="module")
def split_run(box_template, split, tmp_path_factory):
    """Output folder of a run on fold 0 of the split."""
    output = tmp_path_factory.mktemp("split_run")
    words = train_arguments(box_template, output, "--split", split, "--fold", "0")
    assert train_here(*words) == 0
    return output


def load(path):
    return torch.load(path, weights_only=True)


def test_a_run_prints_and_keeps_its_split(box_template, split, tmp_path, train):
    output = tmp_path / "run"
    status, out, _ = train(*train_arguments(box_template, output, "--split", split, "--fold", "1"))
    assert status == 0
    assert f"split: mine, fold 1 of 2, hash {SHORT}: 2 training, 1 validation, 1 test" in out.splitlines()
    assert f"warning: {box_template}: found 1 case in no part of the split 'mine' (box_2)" in out.splitlines()
    assert list(json.loads((output / "dice.json").read_text())["cases"]) == ["box_0"]
    for name in ("last_checkpoint.pth", "best_metric_model.pth"):
        kept = load(output / name)["split"]
        assert kept == {"name": "mine", "hash": hash_ids(FOLDS, TEST), "folds": 2, "fold": 1, **FOLDS[1], "test": TEST}
    args = json.loads((output / "args.json").read_text())
    assert (args["split"], args["fold"]) == (str(split), 1)


def test_a_run_on_folders_keeps_their_ids(trained):
    kept = load(trained / "best_metric_model.pth")["split"]
    parts = {"training": ["box_0", "box_1", "box_2"], "validation": ["box_8", "box_9"]}
    assert kept == {"name": "folders", "hash": hash_ids([parts]), "folds": 1, "fold": 0, **parts}


def test_flags_of_a_file_are_expanded(box_template, split, tmp_path, train):
    recipe = tmp_path / "boxes.args"
    words = train_arguments(box_template, tmp_path / "run", "--split", split, "--fold", "0", "--max_iter", "2")
    recipe.write_text("# boxes\n" + " ".join(map(str, words)))
    assert train(f"@{recipe}", "--max_iter", "1")[0] == 0
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    assert (args["max_iter"], args["split"], args["roi_size"]) == (1, str(split), [32, 32, 16])


def test_the_notebooks_function_takes_a_split(box_template, split):
    args = SimpleNamespace(root=box_template, dataset=str(box_template / "boxes.json"), split=str(split), fold=1)
    assert [[case["id"] for case in cases] for cases in data_loader(args)] == [["box_1", "box_8"], ["box_0"]]
    del args.split, args.fold
    assert [len(cases) for cases in data_loader(args)] == [3, 2]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--split", "{split}"], ("--fold: found none, expected 0 to 1",)),
        (["--split", "{split}", "--fold", "2"], ("--fold: found 2, expected 0 to 1",)),
        (["--fold", "0"], ("--fold: found 0 without --split",)),
        (["--split", "none.json"], ("--split: none.json cannot be read",)),
        (["--split", "{split}", "--fold", "-1"], ("--fold", "'-1'")),
    ],
)
def test_bad_flags_are_one_line(box_template, split, tmp_path, train, flags, parts):
    words = [word.format(split=split) for word in flags]
    assert_one_line(train(*train_arguments(box_template, tmp_path / "out", *words)), *parts)
    assert list(tmp_path.glob("out/*")) == []


def test_ids_that_are_not_there_are_one_line(box_template, tmp_path, train):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"folds": [{"training": ["box_0", "box_7"], "validation": ["box_1"]}]}))
    result = train(*train_arguments(box_template, tmp_path / "out", "--split", path))
    assert_one_line(result, f"--root: {box_template}: found no image of box_7", "2 training cases of the split 'split'")


def change_split(path, **parts):
    content = load(path)
    content["split"].update(parts)
    torch.save(content, path)


@pytest.fixture
def begun(split_run, tmp_path):
    """Copy of the run on fold 0."""
    return shutil.copytree(split_run, tmp_path / "begun")


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_run_is_not_resumed_with_other_cases(box_template, split, begun, train, part):
    change_split(begun / "last_checkpoint.pth", **{part: ["box_2"]})
    result = train(*train_arguments(box_template, begun, "--split", split, "--fold", "0", "--resume"))
    assert_one_line(result, f"--split: found other {part} cases, expected those of the run to resume")


def test_a_run_is_resumed_with_the_same_cases_from_another_file(box_template, begun, tmp_path, train):
    path = tmp_path / "other.json"
    path.write_text(json.dumps([{"train": FOLDS[0]["training"], "val": FOLDS[0]["validation"]}]))
    assert train(*train_arguments(box_template, begun, "--split", path, "--resume"))[0] == 0


def test_a_run_of_an_earlier_version_is_resumed(box_template, split, begun, train):
    path = begun / "last_checkpoint.pth"
    content = load(path)
    cases = content.pop("split")["training"]
    for flag in ("split", "fold"):
        del content["args"][flag]
    words = train_arguments(box_template, begun, "--split", split, "--fold", "0", "--resume")
    torch.save({**content, "cases": ["box_2"]}, path)
    assert_one_line(train(*words), "--split: found other training cases")
    torch.save({**content, "cases": cases}, path)
    assert train(*words)[0] == 0


def predicted(result):
    """Return the ids in the table of a prediction."""
    status, out, _ = result
    assert status == 0
    return [line.split()[0] for line in out.splitlines() if line.startswith("box_")]


def test_parts_are_predicted_and_leaks_are_named(box_template, split, split_run, tmp_path, predict):
    weights = ("--root", box_template, "--trained_weights", split_run / "best_metric_model.pth", *DEVICE)

    def predict_part(*flags):
        result = predict(*weights, "--split", split, "--output", tmp_path / "-".join(flags), *flags)
        return predicted(result), [line for line in result[1].splitlines() if "were trained on" in line]

    assert predict_part() == (["box_9"], [])  # of the test part, which needs no fold
    assert predict_part("--fold", "0", "--part", "validation") == (["box_1"], [])
    cases, warnings = predict_part("--fold", "0", "--part", "training")
    assert cases == ["box_0", "box_8"]
    expected = "found 2 of 2 cases among those that the weights were trained on (box_0, box_8)"
    assert warnings == [f"warning: {expected}: their Dice says nothing about other cases"]


def test_leaks_are_named_for_folders_and_training_states_of_earlier_versions(box_template, trained, tmp_path, predict):
    content = load(trained / "last_checkpoint.pth")
    content["cases"] = content.pop("split")["training"]
    torch.save(content, tmp_path / "earlier.pth")
    for number, weights in enumerate((trained / "best_metric_model.pth", tmp_path / "earlier.pth")):
        words = ("--images", box_template / "imagesTr", "--output", tmp_path / str(number), *DEVICE)
        status, out, _ = predict(*words, "--trained_weights", weights)
        assert (status, "found 3 of 3 cases among those" in out) == (0, True)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--part", "test"], ("--part: found test without --split",)),
        (["--split", "{split}", "--part", "training"], ("--fold: found none, expected 0 to 1",)),
        (["--split", "{split}", "--images", "."], ("--split: found it", "--images")),
        (["--split", "{split}", "--part", "train"], ("--part", "'train'")),
    ],
)
def test_bad_flags_of_a_prediction_are_one_line(box_template, split, split_run, tmp_path, predict, flags, parts):
    words = [word.format(split=split) for word in flags]
    weights = ("--trained_weights", split_run / "best_metric_model.pth", *DEVICE)
    assert_one_line(predict("--root", box_template, "--output", tmp_path / "out", *weights, *words), *parts)


def test_the_check_reports_by_part(box_template, split, capsys):
    words = ["--root", box_template, "--dataset", box_template / "boxes.json", "--split", split, "--fold", "0"]
    assert run(check_data.main, check_data.parse_args([str(word) for word in [*words, "--json"]])) == 0
    results = json.loads(capsys.readouterr().out)
    found = [(case["split"], case["id"]) for case in results["cases"]]
    assert found == [("training", "box_0"), ("training", "box_8"), ("validation", "box_1"), ("test", "box_9")]
    assert (results["split"]["fold"], results["split"]["hash"]) == (0, hash_ids(FOLDS, TEST))
    assert run(check_data.main, check_data.parse_args([str(word) for word in words])) == 0
    assert f"split: mine, fold 0 of 2, hash {SHORT}" in capsys.readouterr().out
