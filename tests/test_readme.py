"""What the README shows is what the scripts take."""

import importlib
import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import REPOSITORY

import main_train
import test_seg as predict_script
from benchmarks import readme
from engine.data.datasets import DatasetDescription
from networks import NETWORKS
from tools.summary import cells

README = (REPOSITORY / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    return [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]


def test_every_command_is_one_that_the_project_has():
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    parsers = {"main_train.py": main_train.parse_args, "test_seg.py": predict_script.parse_args}
    seen = set()
    for command in commands():
        words = shlex.split(command, comments=True)
        if words[0].endswith("torchrun"):
            words = words[words.index("main_train.py") - 1 :]
        if words[1] == "-m":
            importlib.import_module(words[2]).parse_args(words[3:])
            continue
        seen.add(words[1])
        if words[0] == "make":
            assert words[1] in targets
        elif words[1] in parsers:
            parsers[words[1]](words[2:])
        else:
            assert (REPOSITORY / words[1]).exists(), command
    assert {"demo", "test", "main_train.py", "test_seg.py"} <= seen


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
    (text,) = blocks("json")
    assert DatasetDescription.from_json(json.loads(text), "README.md").classes == (
        "background",
        "anterior",
        "posterior",
    )


def test_python_runs():
    (code,) = blocks("python")
    names = {}
    exec(code, names)
    assert names["network"].rep3d.stages[0][0].lrbm is None


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


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http|#)[^)]+)\)", README))
def test_linked_files_exist(path):
    assert (REPOSITORY / path).exists()


def test_the_measured_tables_are_those_of_the_results():
    for path, text in readme.documents().items():
        assert path.read_text() == text, path


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http|#)[^)]+)\)", (REPOSITORY / "docs" / "gpu.md").read_text()))
def test_linked_files_of_the_gpu_page_exist(path):
    assert (REPOSITORY / "docs" / path).exists()


def test_commands_of_the_gpu_page_are_those_of_the_project():
    commands = re.findall(r"python3? -m (benchmarks\.\w+)(.*)", (REPOSITORY / "docs" / "gpu.md").read_text())
    assert {module for module, _ in commands} == {"benchmarks.gpu", "benchmarks.readme"}
    for module, words in commands:
        main = f"{module}.__main__" if module == "benchmarks.gpu" else module
        importlib.import_module(main).parse_args(shlex.split(words.partition("`")[0]))


def test_the_table_of_networks_is_the_measured_one():
    rows = json.loads((REPOSITORY / "benchmarks" / "results" / "summary_cpu.json").read_text())["rows"]
    assert [row["network"] for row in rows] == list(NETWORKS)
    for row in rows:
        name, *numbers = cells(row)
        shown = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
        assert any(line.endswith(f" | {' | '.join(numbers)} |") for line in shown), name
