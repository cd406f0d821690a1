"""The container image installs the tested versions, and holds what the scripts and tools need but nothing else."""

import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from conftest import REPOSITORY
from packaging.specifiers import SpecifierSet

IGNORED, *PATTERNS = [
    line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
]
INCLUDED = [pattern[1:] for pattern in PATTERNS if pattern.startswith("!")]
DOCKERFILE = re.sub(r"^#.*\n", "", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in DOCKERFILE.splitlines() if line]

# Modules of packages that requirements-dev.txt adds, which the image does not have.
OF_TESTS = (
    *("onnx", "onnxscript", "onnxruntime", "huggingface_hub", "ignite", "fire", "nbclient", "hypothesis", "pytest"),
    *("SimpleITK", "jsonschema", "pandas", "skimage", "sklearn", "seaborn", "nnunetv2", "batchgenerators"),
)

# Imports every script and tool, and shows its help.
START_ALL = """
import contextlib, importlib, io, pathlib, sys

sys.modules.update(dict.fromkeys(sys.argv[1:]))
names = ["main_train", "test_seg", *(f"tools.{file.stem}" for file in pathlib.Path("tools").glob("[a-z]*.py"))]
for name in names:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(pathlib.Path.cwd()), module.__file__
    with contextlib.redirect_stdout(io.StringIO()) as help, contextlib.suppress(SystemExit):
        module.parse_args(["--help"])
    assert "usage:" in help.getvalue(), name
print(len(names))
"""


def arguments(instruction):
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


@pytest.fixture
def image(tmp_path):
    """Folder with the files that are copied into the image."""
    for name in INCLUDED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def test_nothing_goes_in_but_what_is_named():
    assert IGNORED == "*"
    assert {"benchmarks/results", "**/__pycache__"} <= set(PATTERNS)
    others = {"tests", "docs", "experiments", "notebooks", "runs", "demo", "walkthrough", ".git", ".venv", ".ci"}
    assert others.isdisjoint(INCLUDED)
    assert all("*" not in name and "/" not in name for name in INCLUDED)


def test_every_script_and_tool_starts_with_what_the_image_holds(image):
    done = subprocess.run([sys.executable, "-c", START_ALL, *OF_TESTS], cwd=image, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 2 + len(list((REPOSITORY / "tools").glob("[a-z]*.py")))


def test_packages_are_the_tested_ones_in_a_layer_before_the_code():
    packages, code = arguments("COPY")
    *files, target = packages.split()
    assert (target, code) == ("./", ". .")
    assert set(files) <= set(INCLUDED)
    install = arguments("RUN")[0]
    assert "${PIP_ARGS} -c constraints.txt -r requirements.txt" in install
    assert "${PIP_ARGS} --no-deps -r requirements-optional.txt" in install
    assert set(re.findall(r"[\w-]+\.txt", install)) == set(files)
    assert [name for name, rest in INSTRUCTIONS if name in ("COPY", "RUN")] == ["COPY", "RUN", "COPY", "RUN"]


def test_the_base_has_a_python_that_the_project_supports():
    base = next(rest for rest in arguments("ARG") if rest.startswith("BASE="))
    (version,) = re.findall(r"python:(\d+\.\d+)-", base)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert version in SpecifierSet(project["requires-python"])
    assert INSTRUCTIONS[1] == ("FROM", "${BASE}")


def test_it_runs_python_for_any_user_but_root():
    (user,) = arguments("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert arguments("ENTRYPOINT") == ['["python"]']
    (command,) = arguments("CMD")
    assert command == '["main_train.py", "--help"]'
    environment = " ".join(arguments("ENV"))
    assert "HOME=/tmp USER=" in environment  # an id without a name has no home, and getpass knows none
    assert "REP3D_COMMIT=${COMMIT}" in environment  # engine/runtime/versions.py


def test_the_page_explains_every_argument_of_the_build():
    page = (REPOSITORY / "docs" / "deploy.md").read_text()
    assert {rest.partition("=")[0] for rest in arguments("ARG")} == set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.M))
