"""Exported files: they compute what PyTorch computes, say what they are, and are whole or absent."""

import io
import json
import re
import runpy
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
from conftest import REPOSITORY, assert_one_line, train_arguments
from safetensors.torch import load_file

from engine.data.datasets import DatasetDescription
from engine.runtime.errors import run
from engine.weights.checkpoints import NetworkConfig
from engine.weights.load_network import load_trained
from networks import from_pretrained
from networks.pretrained import save_pretrained
from tools import export

SIZE = (32, 32, 16)
# What the page says to run, without access to a clone.
PAGE = (REPOSITORY / "docs" / "deploy.md").read_text()
((OF_TORCH, OF_ONNX),) = re.findall(r"^```python\n(extra = .*?)\n\n(session = .*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ALONE = f"""
import json
import sys
import torch

window = torch.zeros(1, 1, 32, 32, 16)
{OF_TORCH}
assert logits.shape == (1, 3, 32, 32, 16)
assert settings["config"]["network"] == "REP3D"
assert not {{"networks", "rep3d", "monai"}} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def description(box_template):
    return DatasetDescription.read(box_template / "boxes.json")


@pytest.fixture(scope="module")
def config(description):
    overrides = {"feat_size": [4, 4, 4, 4], "depths": [1, 1, 1, 1], "kernel_size": 11}
    return NetworkConfig.for_dataset(description, "REP3D", SIZE, overrides)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, config, description):
    """Checkpoint of an untrained network whose masks differ from their start."""
    torch.manual_seed(0)
    weights = config.build().state_dict()
    for value in weights.values():
        if value.is_floating_point():
            value += 0.1 * torch.rand_like(value)
    path = tmp_path_factory.mktemp("checkpoint") / "training.pth"
    torch.save({"model": weights, "config": config.to_plain(), "description": description.to_json()}, path)
    return path


@pytest.fixture
def tool(checkpoint, tmp_path, capsys):
    """Run the tool; returns (exit status, stdout, stderr)."""

    def run_tool(kind, *words):
        capsys.readouterr()
        arguments = ["--weights", checkpoint, "--format", kind, "--output", tmp_path / "out", *words]
        try:
            status = run(export.main, export.parse_args([str(word) for word in arguments]))
        except SystemExit as stop:  # argparse
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_tool


def expect(checkpoint, size=SIZE):
    """Return a window and the logits of the network of a checkpoint, as it was trained."""
    torch.manual_seed(1)
    window = torch.randn(1, 1, *size)
    with torch.inference_mode():
        return window, load_trained(checkpoint, "").network.eval()(window)


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def assert_described(settings, config, description):
    assert settings == {"config": config.to_plain(), "deploy": True, "description": description.to_json()}


def test_torch_export(tool, checkpoint, config, description, tmp_path):
    path = tmp_path / "new" / "amos.pt2"
    status, out, err = tool("torch_export", "--output", path)
    assert (status, err) == (0, "")
    extra = {"rep3d.json": ""}
    program = torch.export.load(str(path), extra_files=extra)
    assert_described(json.loads(extra["rep3d.json"]), config, description)
    window, expected = expect(checkpoint)
    assert_near(program.module()(window), expected)
    done = subprocess.run([sys.executable, "-I", "-c", ALONE], cwd=tmp_path / "new", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, *lines = out.splitlines()
    assert first == f"{checkpoint} has the weights of training; they are exported folded for prediction"
    assert second == "exporting, and comparing with PyTorch ..."
    assert lines[0].startswith(f"{path}: ")
    assert lines[1].startswith("input image: float32 (1, 1, 32, 32, 16): batch, channel, ")
    assert lines[2] == "voxels of 1 x 1 x 1 mm; intensities: image as its z-score"
    assert lines[3] == "output logits: float32 (1, 3, 32, 32, 16); channels: background, left, right"
    assert lines[4].startswith("largest difference from PyTorch's logits on a random window: ")
    assert [other.name for other in path.parent.iterdir()] == ["amos.pt2"]


@pytest.mark.parametrize(("convolution", "transforms"), [("direct", False), ("auto", True)])
def test_onnx(convolution, transforms, tool, checkpoint, config, description, tmp_path, monkeypatch):
    path = tmp_path / "amos.onnx"
    status, _, err = tool("onnx", "--output", path, *(("--convolution", "auto") if transforms else ()))
    assert (status, err) == (0, "")
    assert [other.name for other in tmp_path.iterdir()] == ["amos.onnx"]  # the weights are in it
    operations = {node.op_type for node in onnx.load(path).graph.node}
    assert ("DFT" in operations) == transforms
    window, expected = expect(checkpoint)
    monkeypatch.chdir(tmp_path)
    names = {"json": json, "onnxruntime": onnxruntime, "window": window.numpy()}
    exec(OF_ONNX, names)
    assert_near(torch.from_numpy(names["logits"]), expected)
    assert_described(names["settings"], config, description)
    (image,), (logits,) = names["session"].get_inputs(), names["session"].get_outputs()
    assert (image.name, image.shape) == ("image", [1, 1, *SIZE])
    assert (logits.name, logits.shape) == ("logits", [1, 3, *SIZE])


def test_safetensors(tool, checkpoint, config, description, tmp_path):
    status, _, err = tool("safetensors", "--license", "cc-by-4.0")
    assert (status, err) == (0, "")
    network = from_pretrained(tmp_path / "out")
    assert (network.config, network.description) == (config.to_plain(), description.to_json())
    assert not any(".lrbm." in name for name in network.state_dict())
    assert '\nlicense: "cc-by-4.0"\n' in (tmp_path / "out" / "README.md").read_text()
    window, expected = expect(checkpoint)
    assert_near(network(window), expected)


def test_half_precision(tool, tmp_path):
    status, out, _ = tool("safetensors", "--dtype", "float16")
    assert status == 0
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} >= {torch.float16}
    relative = float(out.split()[-4])
    assert 1e-5 < relative < export.TOLERANCES[torch.float16]


def test_another_window_and_weights_that_are_folded(tool, tmp_path):
    tool("safetensors", "--output", tmp_path / "folded")
    weights = tmp_path / "folded" / "model.safetensors"
    status, out, _ = tool("torch_export", "--weights", weights, "--roi_size", 32, 16, 48)
    assert status == 0
    assert "folded for prediction" not in out
    assert "input image: float32 (1, 1, 32, 16, 48)" in out
    extra = {"rep3d.json": ""}
    torch.export.load(io.BytesIO((tmp_path / "out").read_bytes()), extra_files=extra)
    assert json.loads(extra["rep3d.json"])["config"]["roi_size"] == [32, 16, 48]


def test_predictions_of_the_exported_weights_are_those_of_the_checkpoint(boxes, trained, tool, predict, tmp_path):
    best = trained / "best_metric_model.pth"
    assert tool("safetensors", "--weights", best)[0] == 0
    common = ("--root", boxes, "--gpu", "cpu", "--num_workers", "0")
    for output, weights in (("expected", best), ("found", tmp_path / "out" / "model.safetensors")):
        assert predict(*common, "--output", tmp_path / output, "--trained_weights", weights)[0] == 0
    names = sorted(path.name for path in (tmp_path / "expected").glob("*_seg.nii.gz"))
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_training_starts_from_the_exported_weights(boxes, trained, tool, train, tmp_path):
    assert tool("safetensors", "--weights", trained / "best_metric_model.pth")[0] == 0
    start = ("--pretrain", "True", "--pretrained_weights", tmp_path / "out" / "model.safetensors", "--max_iter", "1")
    status, out, err = train(*train_arguments(boxes, tmp_path / "run", *start))
    assert status == 0, err
    assert "skipped 0, missing 0; 8 masks start anew, the kernels divided by them" in out


def test_a_difference_leaves_nothing(tool, tmp_path, monkeypatch):
    for kind in export.FORMATS:
        chosen = export.FORMATS[kind]._replace(run=lambda path, window: torch.zeros(1, 3, *SIZE))
        monkeypatch.setitem(export.FORMATS, kind, chosen)
        assert_one_line(tool(kind), "largest difference from PyTorch's logits", "1.0e+00 of the largest", "at most")
        assert list(tmp_path.iterdir()) == []


def test_logits_that_are_no_numbers(tool, monkeypatch):
    chosen = export.FORMATS["torch_export"]._replace(run=lambda *_: torch.full((1, 3, *SIZE), torch.nan))
    monkeypatch.setitem(export.FORMATS, "torch_export", chosen)
    assert_one_line(tool("torch_export"), "nan")
    monkeypatch.setitem(export.FORMATS, "torch_export", chosen._replace(run=lambda *_: torch.zeros(1, 2, *SIZE)))
    assert_one_line(tool("torch_export"), "returns (1, 2, 32, 32, 16), expected (1, 3, 32, 32, 16)")


@pytest.mark.parametrize(("value", "status"), [(torch.nan, 2), (0.0, 0)])
def test_logits_of_nan_and_of_zeros(value, status, tool, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    for name in ("weight", "bias"):
        content["model"][f"out.conv.conv.{name}"][:] = value
    torch.save(content, tmp_path / "constant.pth")
    found = tool("safetensors", "--weights", tmp_path / "constant.pth")
    assert found[0] == status
    if status:
        assert_one_line(found, "--weights: ", "constant.pth gives logits that are not finite")


@pytest.mark.parametrize("kind", export.FORMATS)
def test_nothing_is_overwritten(kind, tool, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert_one_line(tool(kind), f"--output: {tmp_path / 'out'} exists, expected a new name")
    assert (tmp_path / "out").read_text() == "mine"


def test_places_that_cannot_be_written(tool):
    assert_one_line(tool("safetensors", "--output", "/dev/null/out"), "--output: /dev/null/out cannot be written")


def test_wrong_flags(tool, tmp_path):
    assert_one_line(tool("onnx", "--roi_size", 20, 32, 32), "--roi_size: found 20 x 32 x 32")
    assert_one_line(tool("onnx", "--dtype", "float16"), "--dtype: found float16 with onnx")
    assert_one_line(tool("onnx", "--license", "mit"), "--license: found mit with onnx")
    assert_one_line(tool("safetensors", "--license", "CC BY"), "--license: found 'CC BY', expected a name of the Hub")
    assert_one_line(tool("safetensors", "--convolution", "auto"), "--convolution: found auto with safetensors")
    assert_one_line(tool("onnx", "--convolution", "fft"), "--convolution")
    assert_one_line(tool("torchscript"), "--format")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_checkpoints(tool, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content["model"], tmp_path / "bare.pth")
    assert_one_line(tool("onnx", "--weights", tmp_path / "bare.pth"), "bare state dict, expected a checkpoint of main")
    torch.save({"network_weights": content["model"], "trainer_name": "nnUNetTrainerRep3D"}, tmp_path / "nnunet.pth")
    assert_one_line(
        tool("onnx", "--weights", tmp_path / "nnunet.pth"), "nnunet.pth is of nnU-Net, expected a checkpoint"
    )
    (tmp_path / "text.pth").write_text("text")
    assert_one_line(tool("onnx", "--weights", tmp_path / "text.pth"), "--weights", "text.pth")
    assert_one_line(tool("onnx", "--weights", tmp_path / "nowhere.pth"), "nowhere.pth cannot be read")
    content["model"].pop("out.conv.conv.bias")
    torch.save(content, tmp_path / "other.pth")
    assert_one_line(tool("onnx", "--weights", tmp_path / "other.pth"), "does not fit the network")
    assert not (tmp_path / "out").exists()


def test_a_window_that_fits_in_no_memory(checkpoint, tmp_path, monkeypatch, capsys):
    words = ["--weights", checkpoint, "--format", "onnx", "--output", tmp_path / "out", "--roi_size", *3 * [16000]]
    monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(export.__file__, run_name="__main__")
    assert_one_line((stop.value.code, "", capsys.readouterr().err), "out of memory", "expected lower --roi_size")


@pytest.mark.parametrize("package", export.FORMATS["onnx"].packages)
def test_missing_packages(package, tool, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert_one_line(
        tool("onnx"), f"--format onnx: found no package {package},", "pip install onnx onnxscript onnxruntime"
    )
    assert tool("safetensors")[0] == 0


def test_weights_that_onnx_cannot_hold(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_ONNX", 1000)
    assert_one_line(tool("onnx"), "--format onnx: found weights of", "GB in one file")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_half_precision_cannot_hold(tool, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["out.conv.conv.weight"][0] = 1e5
    torch.save(content, tmp_path / "large.pth")
    found = tool("safetensors", "--weights", tmp_path / "large.pth", "--dtype", "float16")
    assert_one_line(found, "--dtype: found torch.float16 with larger values in out.conv.conv.weight")
    assert [path.name for path in tmp_path.iterdir()] == ["large.pth"]


def test_a_file_of_save_pretrained_without_a_dataset(tool, config, tmp_path):
    save_pretrained(config.build(), tmp_path / "saved")
    found = tool("onnx", "--weights", tmp_path / "saved" / "model.safetensors")
    assert_one_line(found, "does not describe its network and its dataset")
