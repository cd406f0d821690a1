"""The folder networks/ works under any package name, also after its import path and its modules were dropped."""

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
assert not {"torch", "monai", "numpy"} & set(sys.modules)  # a script's --help does not wait for them
for module in pkgutil.walk_packages(package.__path__, f"{name}."):
    importlib.import_module(module.name)
constructor = sys.modules[f"{name}.Rep3D"].REP3D

import torch
from torch._dynamo.utils import counters


def drop():
    for module in [module for module in sys.modules if module.split(".")[0] == name.split(".")[0]]:
        del sys.modules[module]


def check(network):
    image = torch.randn(1, 1, 32, 32, 32)
    expected = network.eval()(image)
    assert expected.shape == (1, 2, 32, 32, 32)
    # Compiling imports a module. Without it, the compiler takes apart the convolution that it should leave alone.
    torch.compiler.reset()
    counters.clear()
    torch.testing.assert_close(torch.compile(network, backend="eager")(image), expected)
    assert ["torch.compiler.disable" in reason for reason in counters["graph_break"]] == [True]
    torch.testing.assert_close(network.switch_to_deploy()(image), expected)


small = {"in_chans": 1, "out_chans": 2, "depths": (1, 1, 1, 1), "feat_size": (2, 4, 6, 8), "ks": 5}
assert package.build_network("REP3D", **small)(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)
sys.path.remove(folder)
drop()
check(package.build_network("REP3D", **small))
assert sys.modules[name] is package
drop()
check(constructor(**small))
assert "networks" not in sys.modules
"""


@pytest.mark.parametrize("name", [pytest.param("rep3d_copy", marks=pytest.mark.slow), "trainers.rep3d"])
def test_a_copy_under_another_name(name, tmp_path):
    shutil.copytree(REPOSITORY / "networks", tmp_path / "site" / name.replace(".", "/"))
    command = [sys.executable, "-I", "-c", SCRIPT, str(tmp_path / "site"), name]  # -I: with no clone on the path
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
