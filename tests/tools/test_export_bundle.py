"""Bundles as exported: run without this repository, they predict what test_seg.py does."""

import gc
import io
import json
import multiprocessing
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundles import DESCRIPTION, write_weights
from conftest import write_nifti
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

import test_seg as predict_script
from engine.data.cases import make_case
from engine.data.datasets import DatasetDescription
from engine.data.fingerprint import fingerprint
from engine.data.labels import to_classes
from engine.data.nifti import read_voxels
from engine.runtime.errors import run
from engine.weights.load_network import load_trained
from integrations.monai_bundle import self_test
from load_datasets_transforms import test_pipeline as prediction_pipeline
from tools import export_bundle

SHEARED = np.array([[1.1, 0.4, 0, 3], [0, 1.0, 0.2, -5], [0, 0, 1.3, 2], [0, 0, 0, 1]])
TURNED = np.array([[0, -1.3, 0.02, 10], [-0.9, 0, 0, 4], [0, 0.03, -2.0, 7], [0, 0, 0, 1]])
AFFINES = {"sheared": SHEARED, "turned": TURNED, "lps": np.diag([-1.0, -1.0, 1.4, 1])}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory):
    """Folder of a bundle, and what the command printed."""
    output, printed = tmp_path_factory.mktemp("bundles") / "odd_rep3d", io.StringIO()
    args = export_bundle.parse_args(["--weights", str(weights), "--output", str(output)])
    with redirect_stdout(printed):
        assert run(export_bundle.main, args) == 0
    return output, printed.getvalue()


def write_images(folder):
    """Write a case of two channels for each affine, smaller than the window along at least one axis."""
    rng = np.random.default_rng(3)
    for name, affine in AFFINES.items():
        for ending, ends in (("-flair", (100, 300)), ("-ratio", (0.4, 1.9))):
            blobs = gaussian_filter(rng.normal(size=(38, 25, 14)), 2)
            blobs = (blobs - blobs.min()) / np.ptp(blobs) * (ends[1] - ends[0]) + ends[0]
            blobs[0, 0, :4] = np.nan
            suffix = ".nii" if name == "lps" else ".nii.gz"
            write_nifti(folder / f"{name}{ending}{suffix}", blobs.astype(np.float32), affine)


@pytest.fixture
def on_path(exported, monkeypatch):
    """Put a bundle on the path as MONAI does, for one test."""
    bundle, _ = exported
    monkeypatch.syspath_prepend(bundle)
    yield bundle
    forget_scripts()


def forget_scripts():
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]


def read_config(bundle):
    config = ConfigParser()
    config.read_config(bundle / "configs" / "inference.json")
    return config


def test_the_command_folds_the_weights_and_tests_the_bundle(exported):
    bundle, printed = exported
    assert "best_metric_model.pth has the weights of training; the bundle has them folded" in printed
    assert "test of the bundle: 0 of " in printed
    assert [path.name for path in bundle.parent.iterdir()] == ["odd_rep3d"]
    assert {path.name for path in bundle.iterdir()} == {"LICENSE", "configs", "docs", "models", "scripts"}
    assert {path.name for path in (bundle / "configs").iterdir()} == {"inference.json", "logging.conf", "metadata.json"}
    assert {path.name for path in (bundle / "docs").iterdir()} == {"README.md", "data_license.txt"}
    assert not list(bundle.rglob("__pycache__"))


def test_a_few_classes_win_on_the_synthetic_volume(exported):
    _, printed = exported
    assert int(printed.split(" predicted")[0].split()[-2]) >= 2, printed


def test_the_readme_is_filled_in(exported):
    bundle, _ = exported
    text = (bundle / "docs" / "README.md").read_text()
    assert "$" not in text
    assert "0 background, 1 edema, 2 core, 4 enhancing" in text
    assert "FLAIR (z-score), ratio (0 to 2)" in text
    assert "`<case>-flair.nii.gz`, `<case>-ratio.nii.gz`" in text
    assert "licence of these data was not stated" in (bundle / "docs" / "data_license.txt").read_text()


def test_weights_are_plain_tensors_that_fit_strictly(on_path):
    network = read_config(on_path).get_parsed_content("network_def")
    network.load_state_dict(torch.load(on_path / "models" / "model.pt", weights_only=True), strict=True)
    assert type(network).__module__.startswith("scripts.rep3d.")
    assert not any(".lrbm." in name for name in network.state_dict())


def test_preprocessing_is_that_of_prediction(on_path):
    found = read_config(on_path).get_parsed_content("preprocessing").transforms
    own = [transform for transform in found if type(transform).__name__ != "ForgetFiled"]  # changes no voxel
    assert len(own) == len(found) - 1
    description = DatasetDescription.from_json(DESCRIPTION, "odd.json")
    expected = prediction_pipeline(description)
    assert json.dumps(fingerprint(own)) == json.dumps(fingerprint(expected.transforms))  # NaN equals NaN


def make_workflow(bundle, **flags):
    """Make a bundle's workflow without its logging.conf, which would change the logging of the tests that follow."""
    return ConfigWorkflow(bundle / "configs" / "inference.json", workflow_type="infer", logging_file=False, **flags)


def test_monai_finds_every_property(on_path, tmp_path):
    write_images(tmp_path / "images")
    workflow = make_workflow(on_path, dataset_dir=str(tmp_path / "images"), device="cpu")
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.bundle_root == str(on_path)


def run_workflow(bundle, **flags):
    """Run a bundle in this process, as `monai.bundle run` does, and return the status that it ends with."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    workflow = make_workflow(bundle, **({"device": "cpu", "amp": "off", "num_workers": 0} | values))
    workflow.initialize()
    try:
        workflow.run()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def folders(tmp_path):
    """Flags of a bundle's run on three images."""
    write_images(tmp_path / "images")
    return {"dataset_dir": tmp_path / "images", "output_dir": tmp_path / "labels"}


def written(folders):
    return sorted(path.name.removesuffix("_seg.nii.gz") for path in folders["output_dir"].iterdir())


def test_a_finished_folder_is_left_alone(on_path, folders, capsys):
    """The folder is the one whose name says that it has the labels of the images."""
    assert run_workflow(on_path, **folders) == 0
    contents = [path.read_bytes() for path in sorted(folders["output_dir"].iterdir())]
    assert run_workflow(on_path, **folders) == 0
    assert "3 of 3 label maps exist in" in capsys.readouterr().out
    assert [path.read_bytes() for path in sorted(folders["output_dir"].iterdir())] == contents


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_file_is_named_at_the_end_and_others_are_segmented(on_path, folders, capsys, num_workers):
    (folders["dataset_dir"] / "sheared-flair.nii.gz").write_bytes(b"no image")
    assert run_workflow(on_path, **folders, num_workers=num_workers) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {folders['dataset_dir'] / 'sheared-flair.nii.gz'}: cannot be read")
    assert written(folders) == ["lps", "turned"]


def test_an_image_that_fails_in_the_network_does_not_stop_the_others(on_path, folders, capsys, monkeypatch):
    from scripts import inferer

    predict, calls = inferer.predict_logits, []

    def run_out_of_memory_twice(*args):
        calls.append(args)
        if len(calls) in (1, 3):
            raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")
        return predict(*args)

    monkeypatch.setattr(inferer, "predict_logits", run_out_of_memory_twice)
    assert run_workflow(on_path, **folders) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in lines] == ["error: lps: out of memory", "error: turned: out of memory"]
    assert all(line.endswith("expected lower sw_batch_size or num_workers") for line in lines)
    assert written(folders) == ["sheared"]


def test_the_loader_of_an_image_that_failed_has_ended(on_path, folders, monkeypatch):
    from scripts import inferer

    predict, processes = inferer.predict_logits, []

    def count_processes(*args):
        processes.append(len(multiprocessing.active_children()))
        return predict(*args)

    (folders["dataset_dir"] / "sheared-flair.nii.gz").write_bytes(b"no image")
    monkeypatch.setattr(inferer, "predict_logits", count_processes)
    gc.disable()
    try:
        assert run_workflow(on_path, **folders, num_workers=1) == 1
    finally:
        gc.enable()
    assert processes == [1, 1]


def test_a_full_disk_ends_the_run(on_path, folders, capsys, monkeypatch):
    from scripts import label_maps
    from scripts.engine.runtime.errors import DiskError

    calls = []

    def fail(path, _):
        calls.append(path)
        raise DiskError(f"{path}: cannot be written (No space left on device), expected a disk with space")

    monkeypatch.setattr(label_maps, "write_whole", fail)
    assert run_workflow(on_path, **folders) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {folders['output_dir'] / 'lps_seg.nii.gz'}: cannot be written (No space left on device), "
        "expected a disk with space"
    ]
    assert len(calls) == 1


def test_ctrl_c_ends_the_run(on_path, folders, capsys, monkeypatch):
    from scripts import inferer

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(inferer, "predict_logits", stop)
    assert run_workflow(on_path, **folders) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"amp": "on"}, "amp: found 'on', expected one of auto, bf16, fp16, off"),
        ({"overlap": 1}, "overlap: found '1', expected a number from 0 to below 1"),
        ({"sw_batch_size": 0}, "sw_batch_size: found '0', expected a whole number from 1"),
        ({"num_workers": "many"}, "num_workers: found 'many', expected a whole number from 0"),
        ({"device": "gpu"}, "device: found 'gpu' ("),
        ({"dataset_dir": "/nowhere"}, "/nowhere: not found, expected a folder of .nii.gz or .nii files"),
        ({"output_dir": "/dev/null/labels"}, "output_dir: /dev/null/labels cannot be written to (Not a directory)"),
    ],
)
def test_a_wrong_flag_is_one_line(on_path, folders, capsys, flags, message):
    assert run_workflow(on_path, **(folders | flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_network_fits_the_metadata(on_path):
    from monai.bundle import verify_net_in_out

    configs = on_path / "configs"
    verify_net_in_out("network_def", str(configs / "metadata.json"), str(configs / "inference.json"), "cpu")


def test_monai_label_can_run_it(on_path, weights, tmp_path):
    """Play the part of MONAI Label: it runs these ids itself, forgets the package in between, and saves the result."""
    rng = np.random.default_rng(0)
    voxels = rng.uniform(0.4, 1.9, (38, 25, 14, 2)).astype(np.float32)  # one file, channels along its fourth axis
    write_nifti(tmp_path / "case.nii.gz", voxels, SHEARED)
    config = read_config(on_path)
    config.config.update({"bundle_root": str(on_path), "device": "cpu", "amp": "off"})
    network = config.get_parsed_content("network_def")
    network.load_state_dict(torch.load(on_path / "models" / "model.pt", weights_only=True))
    data = {"image": str(tmp_path / "case.nii.gz"), "image_path": str(tmp_path / "case.nii.gz"), "device": "cpu"}
    forget_scripts()
    for transform in config.get_parsed_content("preprocessing").transforms:
        data = transform(data)
    forget_scripts()
    with torch.no_grad():
        data["pred"] = config.get_parsed_content("inferer")(data["image"][None], network.eval())[0]
    forget_scripts()
    for transform in config.get_parsed_content("postprocessing").transforms:
        data = transform(data)
    pred = data["pred"]
    assert isinstance(pred, MetaTensor)
    assert (tuple(pred.shape), pred.dtype) == ((1, 38, 25, 14), torch.uint8)
    np.testing.assert_allclose(pred.affine, SHEARED, atol=1e-6)
    trained = load_trained(weights, "--weights", deploy=True)
    comparison = self_test.compare(pred.numpy()[0], make_case("case", data["image_path"]), trained)
    assert comparison.wrong == 0
    assert comparison.classes > 1


@pytest.mark.slow
def test_any_geometry_gives_the_label_maps_of_test_seg(exported, weights, tmp_path):
    bundle, _ = exported
    images, output, expected = tmp_path / "images", tmp_path / "labels", tmp_path / "expected"
    write_images(images)
    python = [sys.executable, "-I"]  # sees neither this repository nor the working directory
    search = "import importlib.util as util; print(*map(util.find_spec, ('engine', 'networks', 'rep3d', 'scripts')))"
    found = subprocess.run([*python, "-c", search], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.split() == ["None"] * 4
    command = [*python, "-m", "monai.bundle", "run", "--config_file", bundle / "configs" / "inference.json"]
    exact = ["--amp", "off"]  # bf16, the default on some CPUs, moves labels that are no ties in float32
    flags = ["--dataset_dir", images, "--output_dir", output, *exact]
    done = subprocess.run([str(word) for word in [*command, *flags]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = ["--images", images, "--output", expected, "--trained_weights", weights, "--gpu", "cpu", *exact]
    assert run(predict_script.main, predict_script.parse_args([str(word) for word in words])) == 0
    trained = load_trained(weights, "--weights", deploy=True)
    values = set()
    for name in AFFINES:
        files = [nib.load(folder / f"{name}_seg.nii.gz") for folder in (output, expected)]
        assert files[0].header == files[1].header
        maps = [read_voxels(str(folder / f"{name}_seg.nii.gz")) for folder in (output, expected)]
        values |= set(np.unique(maps[0]))
        paths = [str(next(images.glob(f"{name}{ending}.nii*"))) for ending in ("-flair", "-ratio")]
        classes, _ = to_classes(maps[0], trained.description.labels)
        comparison = self_test.compare(classes, make_case(name, paths), trained)
        assert comparison.wrong == 0
        assert np.count_nonzero(maps[0] != maps[1]) <= comparison.near_ties
    assert 4 in values
    assert len(values) > 2


def test_images_are_found_as_test_seg_finds_them(on_path, tmp_path, capsys):
    from scripts.cases import find_images
    from scripts.engine.runtime.errors import InputError

    write_images(tmp_path / "images")
    endings = ["-flair", "-ratio"]
    found = find_images(str(tmp_path / "images"), str(tmp_path / "labels"), 2, endings)
    assert [image["id"] for image in found] == sorted(AFFINES)
    assert [Path(path).name for path in found[0]["image"]] == ["lps-flair.nii", "lps-ratio.nii"]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "lps_seg.nii.gz").touch()
    found = find_images(str(tmp_path / "images"), str(tmp_path / "labels"), 2, endings)
    assert [image["id"] for image in found] == ["sheared", "turned"]
    assert "1 of 3 label maps exist in" in capsys.readouterr().out
    with pytest.raises(InputError, match="output_dir: found the folder of the images"):
        find_images(str(tmp_path / "images"), str(tmp_path / "images"), 2, endings)
    with pytest.raises(InputError, match="not found, expected a folder"):
        find_images(str(tmp_path / "nowhere"), str(tmp_path / "labels"), 2, endings)
