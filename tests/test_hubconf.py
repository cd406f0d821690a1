"""torch.hub loads networks from a clone, from any folder, beside another package called networks."""

import shutil
import subprocess
import sys

from conftest import REPOSITORY

from networks import build_network, save_pretrained

SMALL = {"feat_size": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "kernel_size": 5}

SCRIPT = """
import sys
import torch

import networks
assert networks.MINE

clone, folder = sys.argv[1:]
small = {"feat_size": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "kernel_size": 5}
image = torch.zeros(1, 1, 32, 32, 16)
built = torch.hub.load(clone, "rep3d", source="local", in_chans=1, out_chans=3, roi_size=(32, 32, 16), **small)
assert built(image).shape == (1, 3, 32, 32, 16)
assert built.switch_to_deploy()(image).shape == (1, 3, 32, 32, 16)
other = torch.hub.load(clone, "network", source="local", name="UNet3D", in_chans=2, out_chans=4)
assert (type(other).__name__, other.in_chans, other.out_chans) == ("UNet3D", 2, 4)
loaded = torch.hub.load(clone, "pretrained", source="local", path=folder)
assert (loaded.out_chans, loaded.description, loaded.training) == (2, {"name": "boxes"}, False)
assert networks.MINE
try:
    torch.hub.load("other", "rep3d", source="local")
    raise AssertionError("took the networks of another clone")
except ImportError as error:
    assert "a process can have one clone only" in str(error)
"""


def test_torch_hub(tmp_path):
    (tmp_path / "networks.py").write_text("MINE = True\n")
    save_pretrained(build_network("REP3D", 1, 2, (32, 32, 16), **SMALL), tmp_path / "saved", {"name": "boxes"})
    (tmp_path / "other").mkdir()
    shutil.copy(REPOSITORY / "hubconf.py", tmp_path / "other")
    command = [sys.executable, "-c", SCRIPT, str(REPOSITORY), "saved"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
