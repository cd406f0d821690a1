"""Entry points of torch.hub: the networks without an installation, from a clone or from GitHub.

network = torch.hub.load("/path/to/this/clone", "rep3d", source="local", in_chans=1, out_chans=16)
network = torch.hub.load("/path/to/this/clone", "network", source="local", name="SwinUNETR", in_chans=1, out_chans=16)
network = torch.hub.load("/path/to/this/clone", "pretrained", source="local", path="folder of save_pretrained")
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

dependencies = ["torch", "monai", "numpy", "einops"]
PACKAGE = "rep3d_hub"  # not "networks", a name that other repositories use as well


def _import_networks() -> ModuleType:
    """Import the folder networks/ beside this file under the name ``PACKAGE``; ImportError if it is another clone's."""
    file = Path(__file__).resolve().parent / "networks" / "__init__.py"
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(PACKAGE, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    if (found := sys.modules[PACKAGE].__file__) != str(file):
        raise ImportError(f"found {found} imported already, expected {file}: a process can have one clone only")
    return sys.modules[PACKAGE]


def rep3d(in_chans: int = 1, out_chans: int = 16, **arguments: Any) -> Any:
    """Build Rep3D, randomly initialised; the arguments are those of ``build_network``."""
    return network("REP3D", in_chans, out_chans, **arguments)


def network(name: str, in_chans: int = 1, out_chans: int = 16, **arguments: Any) -> Any:
    """Build the network of this ``name`` (``--network``); the arguments are those of ``build_network``."""
    return _import_networks().build_network(name, in_chans, out_chans, **arguments)


def pretrained(path: str, revision: str | None = None) -> Any:
    """Load the network of a folder of ``save_pretrained``, of its weights, or of a repository on Hugging Face's Hub."""
    return _import_networks().from_pretrained(path, revision)
