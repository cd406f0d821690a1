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


def test_what_modules_import_at_import_is_in_the_bundle(tmp_path):
    write_code(tmp_path)
    for path in sorted((tmp_path / "scripts").rglob("*.py")):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.ImportFrom) and statement.level:
                start = path.parents[statement.level - 1]
                target = start.joinpath(*(statement.module or "").split("."))
                found = target.with_suffix(".py").is_file() or (target / "__init__.py").is_file()
                assert found, f"{path.relative_to(tmp_path)} imports {statement.module}"


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
