"""`pip install .` installs the package rep3d and nothing else."""

import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

from conftest import REPOSITORY
from packaging.requirements import Requirement

import networks

# Packages that the wheel does not require, by the names of their modules. MONAI imports the last one if it can.
OTHERS = ("nibabel", "scipy", "tensorboard", "tqdm", "tabulate", "matplotlib", "safetensors", "huggingface_hub")

# Builds every network without access to a clone.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
sys.modules |= dict.fromkeys(sys.argv[2:])  # packages that are not installed with it
import torch
import rep3d

network = rep3d.build_network("REP3D", 1, 3, feat_size=(4, 4, 4, 4), kernel_size=5)
assert network(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 3, 32, 32, 32)
for name in rep3d.NETWORKS:
    try:
        with torch.device("meta"):
            rep3d.build_network(name, 1, 3)
    except ValueError as error:
        assert "found no package dynamic-network-architectures" in str(error)
for call in (lambda: rep3d.save_pretrained(network, "new"), lambda: rep3d.from_pretrained("user/name")):
    try:
        call()
        raise AssertionError("did not miss its package")
    except ImportError as error:
        assert "pip install" in str(error)
assert "networks" not in sys.modules
print(rep3d.__file__, rep3d.__version__)
"""


def modules(folder):
    return {path.relative_to(folder) for path in folder.rglob("*.py")}


def test_it_contains_the_networks_the_adapter_for_nnunet_and_nothing_else(site):
    assert {path.name for path in site.iterdir()} == {"rep3d", f"rep3d-{networks.__version__}.dist-info"}
    nnunet = {Path("nnunet") / path for path in modules(REPOSITORY / "integrations" / "nnunet")}
    missing = (modules(REPOSITORY / "networks") | nnunet) ^ modules(site / "rep3d")
    assert not missing, "pyproject.toml lists the folders of networks/ under packages"
    assert (site / "rep3d" / "py.typed").exists()


def test_its_metadata_match_the_project(site):
    (folder,) = site.glob("*.dist-info")
    package = PathDistribution(folder)
    assert (package.name, package.version) == ("rep3d", networks.__version__)
    assert (folder / "licenses" / "LICENSE").read_text() == (REPOSITORY / "LICENSE").read_text()
    lines = [line.partition("#")[0] for line in (REPOSITORY / "requirements.txt").read_text().splitlines()]
    ours = {Requirement(line) for line in lines if line}
    assert {Requirement(line) for line in package.requires if "extra ==" not in line} <= ours


def test_it_builds_every_network_without_a_clone(site, tmp_path):
    command = [sys.executable, "-I", "-c", SCRIPT, site, *OTHERS]
    found, version = subprocess.check_output(command, cwd=tmp_path, text=True).split()
    assert (found, version) == (str(site / "rep3d" / "__init__.py"), networks.__version__)
