"""Who may import whom: a wing of engine/ imports the wings below it, and neither engine/ nor networks/ the scripts."""

import ast
from pathlib import Path

import pytest
from conftest import REPOSITORY

BELOW = {
    "runtime": set(),
    "data": {"runtime"},
    "weights": {"data", "runtime"},
    "evaluation": {"data", "runtime"},
    "prediction": {"weights", "evaluation", "data", "runtime"},
    "training": {"prediction", "weights", "evaluation", "data", "runtime"},
}
ROOT = {path.stem for path in REPOSITORY.glob("*.py")} | {"tools", "benchmarks", "experiments", "tests"}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, also inside functions; the file's own package spelt out."""
    package = path.relative_to(REPOSITORY).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def modules(folder):
    return sorted((REPOSITORY / folder).rglob("*.py"))


def test_every_wing_is_here():
    assert {path.name for path in (REPOSITORY / "engine").iterdir() if (path / "__init__.py").exists()} == BELOW.keys()
    assert [path.name for path in (REPOSITORY / "engine").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("wing", BELOW)
def test_a_wing_imports_those_below_it(wing):
    for path in modules(f"engine/{wing}"):
        of_engine = {name.split(".")[1] for name in imports(path) if name.startswith("engine.")}
        assert of_engine & BELOW.keys() <= BELOW[wing] | {wing}, path
        assert not {name.partition(".")[0] for name in imports(path)} & ROOT, path


def test_networks_import_neither_engine_nor_scripts():
    for path in modules("networks"):
        assert not {name.partition(".")[0] for name in imports(path)} & (ROOT | {"engine"}), path


def test_the_check_sees_imports_in_functions_and_relative_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.REPOSITORY", tmp_path)
    path = tmp_path / "engine" / "data" / "module.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n    from ..training import state\n    import main_train\n    from . import cases\n")
    assert {"engine.training.state", "main_train", "engine.data.cases"} <= imports(path)
