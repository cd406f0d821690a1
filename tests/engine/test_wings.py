"""Import rules: subpackages of engine/ import only networks/ and lower ones; nothing in either imports the scripts."""

import ast
from pathlib import Path

import pytest
from conftest import REPOSITORY

LOWER = {
    "runtime": set(),
    "data": {"runtime"},
    "archives": {"data", "runtime"},
    "weights": {"data", "runtime"},
    "evaluation": {"data", "runtime"},
    "prediction": {"weights", "evaluation", "data", "runtime"},
    "training": {"prediction", "weights", "evaluation", "data", "runtime"},
    "report": {"training", "prediction", "weights", "evaluation", "data", "runtime"},
}
ROOT = {path.stem for path in REPOSITORY.glob("*.py")} | {"tools", "benchmarks", "experiments", "tests"}


def imports(path: Path) -> set[str]:
    """List the absolute names of the modules that a file imports, including imports in functions and relative ones."""
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


def test_every_subpackage_is_listed():
    assert {path.name for path in (REPOSITORY / "engine").iterdir() if (path / "__init__.py").exists()} == LOWER.keys()
    assert [path.name for path in (REPOSITORY / "engine").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("subpackage", LOWER)
def test_a_subpackage_imports_only_lower_ones(subpackage):
    for path in modules(f"engine/{subpackage}"):
        imported = {name.split(".")[1] for name in imports(path) if name.startswith("engine.")}
        assert imported & LOWER.keys() <= LOWER[subpackage] | {subpackage}, path
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
