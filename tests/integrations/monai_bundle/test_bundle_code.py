"""Code of a bundle: complete, and with relative imports only."""

import ast
from pathlib import Path

import pytest

from integrations.monai_bundle.code import ROOT, engine_modules, make_relative, write_code


def imports(path):
    """List (level, module) of every import of a module, those in functions included."""
    tree = ast.walk(ast.parse(path.read_text()))
    froms = [(node.level, node.module or "") for node in tree if isinstance(node, ast.ImportFrom)]
    tree = ast.walk(ast.parse(path.read_text()))
    return froms + [(0, alias.name) for node in tree if isinstance(node, ast.Import) for alias in node.names]


@pytest.mark.parametrize(
    ("line", "depth", "expected"),
    [
        ("from engine.data.labels import to_classes\n", 1, "from .engine.data.labels import to_classes\n"),
        ("from engine.data.labels import (\n    a,\n)\n", 3, "from ...engine.data.labels import (\n    a,\n)\n"),
        ("    from networks import build_network\n", 2, "    from ..rep3d import build_network\n"),
        ("from networks.base import InputSizes\n", 4, "from ....rep3d.base import InputSizes\n"),
        ("from .cases import label_path\n", 1, "from .cases import label_path\n"),
        ("x = 'from engine.data import y'\n", 1, "x = 'from engine.data import y'\n"),
    ],
)
def test_imports_become_relative(line, depth, expected):
    assert make_relative(line, depth) == expected


def test_no_module_of_a_bundle_imports_this_repository_by_name(tmp_path):
    write_code(tmp_path)
    written = sorted((tmp_path / "scripts").rglob("*.py"))
    named = {(path.name, name) for path in written for level, name in imports(path) if level == 0}
    ours = ("engine", "networks", "integrations", "tools", "load_datasets_transforms", "scripts")
    assert [pair for pair in named if pair[1].partition(".")[0] in ours] == []
    assert (tmp_path / "scripts" / "rep3d" / "py.typed").is_file()
    assert not list(tmp_path.rglob("__pycache__"))


# Imports in functions that a bundle does not call, of modules that it has not: it never reads a description from JSON.
UNREACHABLE = {("engine/data/datasets.py", "engine.data.description_file")}


def test_what_modules_import_is_in_the_bundle(tmp_path):
    write_code(tmp_path)
    scripts = tmp_path / "scripts"
    missing = set()
    for path in sorted(scripts.rglob("*.py")):
        for level, name in imports(path):
            target = path.parents[level - 1].joinpath(*name.split(".")) if level else None
            if target and not (target.with_suffix(".py").is_file() or (target / "__init__.py").is_file()):
                missing.add((path.relative_to(scripts).as_posix(), name))
    assert missing == UNREACHABLE


def test_only_light_modules_travel():
    """A bundle needs no package of training or of reports, such as pydantic, scipy, tqdm or matplotlib."""
    modules = engine_modules(list((ROOT / "integrations" / "monai_bundle" / "scripts").glob("*.py")))
    packages = {name.partition(".")[0] for path in modules for level, name in imports(path) if level == 0}
    assert packages & {"pydantic", "scipy", "tqdm", "matplotlib", "tensorboard", "tabulate"} <= {"pydantic"}
    assert not any("pydantic" in Path(path).read_text() for path in modules if path.name != "datasets.py")
    inversion = imports(ROOT / "engine" / "prediction" / "inversion.py")
    assert {name.partition(".")[0] for _, name in inversion} <= {"collections", "copy", "dataclasses", "itertools"} | {
        *("monai", "numpy", "torch")
    }
