"""The code of a bundle: copies of this repository's modules whose imports are relative.

A bundle's code is the package ``scripts``, the only name that MONAI Label imports anew for each bundle. In it networks/
is the package ``rep3d``, and engine/ has those modules that the others import when they are imported.
"""

import ast
import re
from pathlib import Path

from engine.runtime.files import write_text

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parent / "scripts"
# Modules of the engine that a bundle's configuration names; its own modules import others.
NAMED = ("engine.data.intensity", "engine.data.load_volume")
IMPORT = re.compile(r"^(\s*from )(engine|networks)((?:\.\w+)* import )", re.MULTILINE)
NEW_NAMES = {"engine": "engine", "networks": "rep3d"}


def write_code(folder: Path) -> None:
    """Write the package ``scripts`` of a bundle.

    Args:
        folder: folder of the bundle.
    """
    own = {path.relative_to(SOURCE): path for path in SOURCE.glob("*.py")}
    networks = ROOT / "networks"
    copied = [*networks.rglob("*.py"), networks / "py.typed"]
    renamed = {Path(NEW_NAMES["networks"], path.relative_to(networks)): path for path in copied}
    engine = {path.relative_to(ROOT): path for path in engine_modules(list(own.values()))}
    for target, source in {**own, **renamed, **engine}.items():
        path = folder / "scripts" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, make_relative(source.read_text(encoding="utf-8"), len(target.parts)))


def engine_modules(importers: list[Path]) -> set[Path]:
    """Find the modules of the engine that these modules and ``NAMED`` import, directly or by others, and packages."""
    found: set[Path] = set()
    left = {name for path in importers for name in imported_modules(path)} | set(NAMED)
    while left:
        path = ROOT / f"{left.pop().replace('.', '/')}.py"
        if path not in found:
            found.add(path)
            left |= imported_modules(path)
    packages = {parent for path in found for parent in path.relative_to(ROOT).parents if parent.name}
    return found | {ROOT / package / "__init__.py" for package in packages}


def imported_modules(path: Path) -> set[str]:
    """List the modules of the engine that a module imports when it is imported, and not in its functions."""
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    names = [statement.module or "" for statement in statements if isinstance(statement, ast.ImportFrom)]
    return {name for name in names if name.startswith("engine.")}


def make_relative(source: str, depth: int) -> str:
    """Make a module's imports of engine and networks relative.

    Args:
        source: source of the module.
        depth: number of packages that the module is in, ``scripts`` included.
    """
    return IMPORT.sub(lambda match: f"{match[1]}{'.' * depth}{NEW_NAMES[match[2]]}{match[3]}", source)
