"""The folder networks/ is a package under any name, and goes on where the path that it was imported from is gone."""

import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

# nnU-Net imports all of a folder of trainers, and then takes the folder from sys.path and its modules from sys.modules.
SCRIPT = """
import importlib, pkgutil, sys

folder, name = sys.argv[1:]
sys.path.insert(0, folder)
package = importlib.import_module(name)
assert not {"torch", "monai", "numpy"} & set(sys.modules)  # their scripts' --help should not wait for them
for module in pkgutil.walk_packages(package.__path__, f"{name}."):
    importlib.import_module(module.name)
constructor = sys.modules[f"{name}.Rep3D"].REP3D

import torch


def drop():
    for module in [module for module in sys.modules if module.split(".")[0] == name.split(".")[0]]:
        del sys.modules[module]


def check(network):
    image = torch.randn(1, 1, 32, 32, 32)
    assert network(x=image).shape == (1, 2, 32, 32, 32)
    compiled = torch.compile(network.eval(), backend="eager")
    torch.testing.assert_close(compiled(image), network(image))
    torch.testing.assert_close(network.switch_to_deploy()(image), compiled(image))


small = {"in_chans": 1, "out_chans": 2, "feat_size": (2, 4, 6, 8), "ks": 5}
check(package.build_network("REP3D", **small))
sys.path.remove(folder)
drop()
check(package.build_network("REP3D", **small))
assert sys.modules[name] is package
drop()
check(constructor(**small))
assert "networks" not in sys.modules
"""


@pytest.mark.parametrize("name", ["rep3d_copy", "trainers.rep3d"])
def test_a_copy_under_another_name(name, tmp_path):
    shutil.copytree(REPOSITORY / "networks", tmp_path / "site" / name.replace(".", "/"))
    command = [sys.executable, "-I", "-c", SCRIPT, str(tmp_path / "site"), name]  # -I: with no clone on the path
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
