"""Recipes: those by name, and a file of flags for every number of the results table and for hippocampus."""

import argparse
import re
import shlex

import pytest
from conftest import REPOSITORY

import main_train
from engine.data.datasets import DATASETS
from engine.data.split_file import read_split_file
from engine.runtime.errors import InputError
from engine.runtime.files import LAST
from engine.runtime.recipe_arguments import RECIPES, add_recipe_arguments, recipe_file
from engine.runtime.stop_requests import resume_command

FOLDER = REPOSITORY / "recipes"
DATA = {  # columns of the results table: dataset, split
    "AMOS-CT": ("amos", "splits/amos_ct_3duxnet.json"),
    "AMOS-MRI": ("amos_mri", "splits/amos_mri.json"),
    "KiTS": ("kits", "splits/kits19_210.json"),
    "MSD Pancreas": ("pancreas", "splits/msd_pancreas.json"),
    "MSD Hepatic Vessel": ("hepatic", "splits/msd_hepaticvessel.json"),
}
PUBLISHED = {
    "max_iter": 60000,
    "warmup_iter": 1200,
    "batch_size": 1,
    "crop_sample": 2,
    "roi_size": [96, 96, 96],
    "optim": "AdamW",
    "lr": 1e-4,
    "weight_decay": 0.08,
    "lr_schedule": "warmup_cosine",
    "eval_step": 500,
    "overlap": 0.25,
    "seed": 0,
    "mask_lr_factor": 1.0,
    "network_args": None,
    "kernel_size": None,
    "feat_size": None,
    "pretrain": False,
}
BY_NAME = {recipe_file(name) for name in RECIPES}
RUNS = sorted(set(FOLDER.iterdir()) - BY_NAME)  # files that say which data and network, too
REQUIRED = ["--root", "root", "--output", "output", "--dataset", "amos"]


def read_table():
    """Read (network, method, column, number) from the results table of the README."""
    table = (REPOSITORY / "README.md").read_text().partition("\n## Results\n")[2].partition("\n## ")[0]
    header, _, *rows = [line.strip("| ").split("|") for line in table.splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in header]
    for row in rows:
        cells = dict(zip(columns, (cell.strip() for cell in row), strict=True))
        for column in DATA:
            if cells[column]:
                yield cells["`--network`"].strip("`"), cells["method in the paper"], column, cells[column]


NUMBERS = list(read_table())


def recipe(network, column):
    return FOLDER / f"{network.lower()}_{DATA[column][0]}.args"


def parse(path):
    return main_train.parse_args([f"@{path}", "--root", "root", "--output", "output"])


@pytest.mark.parametrize(("network", "method", "column", "number"), NUMBERS)
def test_a_number_has_its_recipe(network, method, column, number):
    path = recipe(network, column)
    first = path.read_text().splitlines()[0]
    assert first == f"# {method} on {column}: mean Dice {number} in the paper, not measured here."
    args = parse(path)
    assert (args.network, args.dataset, args.split) == (network, *DATA[column])
    assert {name: getattr(args, name) for name in PUBLISHED} == PUBLISHED


def test_every_number_is_read_and_no_recipe_is_without_one():
    assert len(NUMBERS) == 58
    expected = {recipe(network, column) for network, _, column, _ in NUMBERS} | {FOLDER / "rep3d_hippocampus.args"}
    assert set(RUNS) == expected
    assert set(FOLDER.iterdir()) == expected | BY_NAME


def test_what_decides_a_row_is_written_down():
    """A change of the defaults of main_train.py must not change the rows."""
    words = (FOLDER / "rep3d_amos.args").read_text()
    flags = set(re.findall(r"--(\w+)", words))
    assert {name for name, value in PUBLISHED.items() if value not in (None, False, 1.0)} <= flags


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_split_of_a_recipe_is_there(path):
    args = parse(path)
    split = read_split_file(REPOSITORY / args.split)
    assert all(fold["training"] and fold["validation"] for fold in split.folds)
    assert args.dataset in DATASETS or (REPOSITORY / args.dataset).exists()


def test_the_hippocampus_recipe_is_the_run_that_was_measured():
    args = parse(FOLDER / "rep3d_hippocampus.args")
    measured = {
        "feat_size": [16, 32, 64, 128],
        "kernel_size": 21,
        "roi_size": [48, 64, 48],
        "batch_size": 2,
        "crop_sample": 1,
        "max_iter": 400,
        "warmup_iter": 8,
        "eval_step": 100,
        "lr": 1e-3,
        "cache_rate": 1,
        "amp": "off",
        "gpu": "cpu",
    }
    assert {name: getattr(args, name) for name in measured} == measured
    assert "@recipes/rep3d_hippocampus.args" in (REPOSITORY / "experiments/hippocampus/run.sh").read_text()


def test_later_flags_override_a_recipe():
    path = FOLDER / "rep3d_kits.args"
    args = main_train.parse_args([f"@{path}", "--root", "a", "--output", "b", "--fold", "3", "--max_iter", "10"])
    assert (args.fold, args.max_iter, args.network) == (3, 10, "REP3D")


def test_the_command_that_resumes_a_run_names_the_recipe(tmp_path, monkeypatch):
    words = ["@recipes/rep3d_kits.args", "--fold", "1", "--root", "a b", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["main_train.py", *words])
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / LAST).touch()
    _, script, *words = shlex.split(resume_command(tmp_path))
    args = main_train.parse_args(words)
    assert (script, args.resume, args.dataset, args.fold, args.root) == ("main_train.py", True, "kits", 1, "a b")


def flags_of(path):
    """Return the names of the flags in a file."""
    return set(re.findall(r"--(\w+)", "".join(line for line in path.open() if not line.startswith("#"))))


def test_the_recipe_of_the_paper_is_the_defaults():
    """All of them but those that are off or follow from others, which no flag says."""
    parser = argparse.ArgumentParser()
    add_recipe_arguments(parser.add_argument_group())
    args = main_train.parse_args([f"@{recipe_file('paper')}", *REQUIRED])
    assert vars(args) == vars(main_train.parse_args(REQUIRED))
    unsaid = {"help", "recipe", "sync_batchnorm", "warmup_iter"}
    assert flags_of(recipe_file("paper")) == {action.dest for action in parser._actions} - unsaid


def test_the_best_recipe_is_parsed_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = main_train.parse_args(["--recipe", "best", *REQUIRED])
    expected = {"recipe": "best", "crop_balance": "voxels", "augmentation": "strong", "ema": 0.999}
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize("name", ["paper", "best"])
def test_other_flags_can_override_all_of_a_recipe_by_name(name):
    """No flag switches these off again."""
    assert not flags_of(recipe_file(name)) & {"deep_supervision", "mirror", "sync_batchnorm"}


@pytest.fixture
def best(monkeypatch, tmp_path):
    """Put another file in the place of recipes/best.args."""
    path = tmp_path / "best.args"
    path.write_text("--lr 0.5 --max_iter 7 --optim SGD\n")
    monkeypatch.setattr(main_train, "recipe_file", lambda name: path.with_stem(name))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("best")
@pytest.mark.parametrize("place", [0, len(REQUIRED)])
def test_flags_and_recipes_of_data_override_a_recipe_by_name(place):
    words = [*REQUIRED[:place], "--recipe", "best", *REQUIRED[place:]]
    args = main_train.parse_args(words)
    assert (args.lr, args.max_iter, args.optim, args.weight_decay) == (0.5, 7, "SGD", 0.08)
    assert main_train.parse_args([*words, "--lr", "0.25"]).lr == 0.25
    assert main_train.parse_args(["--lr", "0.25", *words]).lr == 0.25  # wherever --recipe is
    of_data = main_train.parse_args([f"@{FOLDER / 'rep3d_kits.args'}", "--fold", "0", *words])
    assert (of_data.max_iter, of_data.optim, of_data.recipe) == (60000, "AdamW", "best")
    assert main_train.parse_args([*words, "--recipe", "paper"]).max_iter == 60000


@pytest.mark.usefixtures("best")
def test_a_recipe_by_name_in_a_file_of_flags(tmp_path):
    (tmp_path / "mine.args").write_text("--recipe best --lr 0.25\n")
    args = main_train.parse_args(["@mine.args", *REQUIRED])
    assert (args.lr, args.max_iter) == (0.25, 7)


def test_a_recipe_that_is_none(capsys):
    with pytest.raises(SystemExit):
        main_train.parse_args(["--recipe", "worst", *REQUIRED])
    assert "--recipe: invalid choice: 'worst' (choose from" in capsys.readouterr().err


@pytest.mark.usefixtures("best")
def test_a_run_is_resumed_with_the_flags_of_its_recipe(make_state, tmp_path):
    make_state("--recipe", "best").save(tmp_path)
    make_state("--recipe", "best").restore(tmp_path)
    make_state("--optim", "SGD", "--lr", "0.5").restore(tmp_path)
    with pytest.raises(InputError, match="--optim: found AdamW, expected SGD"):
        make_state("--recipe", "paper").restore(tmp_path)
