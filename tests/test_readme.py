"""Commands, defaults and results in the README and in docs/ agree with the code and the measured files."""

import importlib
import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

import main_train
import test_seg as predict_script
from benchmarks import readme
from engine.data.datasets import DATASETS, DEFAULT_TOLERANCE, DatasetDescription
from engine.runtime.arguments import network_overrides
from networks import NETWORKS, build_network

README = REPOSITORY / "README.md"
FOLDERS = (".", "docs", "experiments/**", "pretrained")
PAGES = [path for folder in FOLDERS for path in sorted(REPOSITORY.glob(f"{folder}/*.md"))]
NETWORKS_PAGE = (REPOSITORY / "docs" / "networks.md").read_text()
PARSERS = {"main_train.py": main_train.parse_args, "test_seg.py": predict_script.parse_args}
TARGETS = set(re.findall(r"^(\w[\w-]*):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
# Files of flags that commands of docs/walkthrough.md write, and what they hold.
WRITTEN = {"@walkthrough/plan.args": ["--dataset", "walkthrough/plan.json", "--roi_size", "48", "48", "32"]}
EXTERNAL_COMMANDS = {  # commands and Python modules
    *("git", "export", "tar", "pip", "pytest", "mkdir", "ln", "ruff", "docker", "apptainer"),
    *("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_predict_from_modelfolder"),
}
IMAGES = {"rep3d", "rep3d.sif"}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page):
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [[word for given in line for word in WRITTEN.get(given, [given])] for line in words if line]


def check(words):
    """Assert that a command belongs to this project or is a known external one, and accepts its flags."""
    program, *rest = words
    program = program.rpartition("/")[2]
    if program == "make":
        target, *settings = rest
        assert target in TARGETS
        assert all("=" in setting for setting in settings)
    elif program in ("bash", "sbatch"):
        assert (REPOSITORY / next(word for word in rest if not word.startswith("-"))).exists()
    elif program in ("python", "python3", "torchrun"):
        if rest[0] == "-m":
            check_module(rest[1], rest[2:])
            return
        script = next(word for word in rest if word.endswith(".py"))
        assert script in PARSERS
        PARSERS[script](rest[rest.index(script) + 1 :])
    elif program in ("docker", "apptainer") and rest[0] == "run":  # arguments of python follow the image
        image = next(index for index, word in enumerate(rest) if word in IMAGES)
        check(["python", *rest[image + 1 :]])
    else:
        assert program in EXTERNAL_COMMANDS


def import_here(name):
    """Import a module, also one of rep3d.nnunet, which is a folder of another name in the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "rep3d", importlib.import_module("networks"))
        module = importlib.import_module(name.replace("rep3d.nnunet.", "integrations.nnunet."))
    for copied in [copied for copied in sys.modules if copied.startswith("rep3d.")]:
        del sys.modules[copied]
    return module


def check_module(name, arguments):
    if name in EXTERNAL_COMMANDS:
        return
    module = import_here(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    if hasattr(module, "parse_args"):
        module.parse_args(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_command_exists_and_accepts_its_flags(page, capsys, monkeypatch):
    for added in re.findall(r'^\+    "(\w+)": \(', "".join(blocks(page, "diff")), flags=re.MULTILINE):
        monkeypatch.setitem(NETWORKS, added, ("module:class", {}))
    for words in commands(page):
        try:
            check(words)
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err}")


def test_the_readme_shows_demo_tests_and_both_scripts():
    shown = {word.rpartition("/")[2] for words in commands(README) for word in words[:2]}
    assert {"demo", "test", "main_train.py", "test_seg.py"} <= shown


def test_every_fenced_command_is_seen():
    languages = {match for page in PAGES for match in re.findall(r"^```(\w+)", page.read_text(), flags=re.MULTILINE)}
    assert languages <= {"sh", "python", "json", "text", "diff", "bibtex"}


def test_the_readme_is_at_most_200_lines():
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("script", ["main_train.py", "test_seg.py"])
def test_help_does_not_wait_for_pytorch(script):
    heavy = "print(*sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    report = f"import atexit, runpy, sys; atexit.register(lambda: {heavy})"
    code = f"sys.argv = ['{script}', '--help']; runpy.run_path('{script}', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", f"{report}; {code}"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--root" in done.stdout
    assert done.stdout.splitlines()[-1] == ""


def test_json_is_a_description():
    (text,) = blocks(README, "json")
    hippocampus = DatasetDescription.from_json(json.loads(text), "README.md")
    assert hippocampus.classes == ("background", "anterior", "posterior")
    (text,) = blocks(REPOSITORY / "docs" / "data.md", "json")
    tumours = DatasetDescription.from_json(json.loads(text), "data.md")
    assert (tumours.channels, tumours.labels.classes) == (("T1", "FLAIR"), ((0,), (1, 3), (2,), (4,)))
    (text,) = blocks(REPOSITORY / "docs" / "evaluation.md", "json")
    kidneys = DatasetDescription.from_json(json.loads(text), "evaluation.md")
    assert kidneys.classes == DATASETS["kits"].classes
    assert kidneys.tolerances["cyst"] == DEFAULT_TOLERANCE != kidneys.tolerances["masses"]


def test_notebook_cells_run(monkeypatch):
    (in_a_clone,) = blocks(README, "python")
    (installed,) = re.findall(r"`(rep3d\.\w+\(.*?\))`", README.read_text())
    names = {}
    exec(in_a_clone, names)
    assert names["network"].rep3d.stages[0][0].lrbm is None
    # What pip installs is the folder networks/ under this name: tests/networks/test_wheel.py.
    monkeypatch.setitem(sys.modules, "rep3d", importlib.import_module("networks"))
    exec(f"import rep3d\nnetwork = {installed}", names)
    assert names["network"].rep3d.stages[0][0].lrbm is not None


def test_defaults_are_those_of_the_paper():
    args = main_train.parse_args(["--root", "a", "--output", "b", "--dataset", "amos"])
    recipe = {
        "network": "REP3D",
        "batch_size": 1,
        "crop_sample": 2,
        "roi_size": [96, 96, 96],
        "lr": 1e-4,
        "optim": "AdamW",
        "weight_decay": 0.08,
        "max_iter": 60000,
        "eval_step": 500,
        "cache_rate": 0.1,
        "num_workers": 2,
    }
    assert {name: getattr(args, name) for name in recipe} == recipe


def test_flags_of_the_readmes_training_are_the_defaults():
    (words,) = (words for words in commands(README) if words[1] == "main_train.py")
    required = ["--root", "/path/to/amos_ct", "--output", "runs/rep3d_amos_ct", "--dataset", "amos"]
    assert vars(main_train.parse_args(words[2:])) == vars(main_train.parse_args(required))


@pytest.mark.parametrize("flags", re.findall(r"`(--network_args [a-z_]+=[^`]*)`", NETWORKS_PAGE))
def test_ablations_are_arguments_of_the_network(flags):
    args = main_train.parse_args(["--root", "a", "--output", "b", "--dataset", "amos", *flags.split()])
    with torch.device("meta"):
        build_network("REP3D", 1, 16, **network_overrides(args))


def test_the_measured_tables_are_those_of_the_results():
    for path, text in readme.documents().items():
        assert path.read_text() == text, path
