"""Fixtures: small datasets, a small trained network, and the scripts as functions."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads OpenMP

import gzip
import importlib.util
import json
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.summary.writer.event_file_writer import EventFileWriter

import main_train
import test_seg as predict_script
from engine.data.datasets import DatasetDescription
from engine.data.splits import Split
from engine.prediction import ensemble
from engine.runtime.arguments import network_overrides
from engine.runtime.errors import run
from engine.training import validation
from engine.training.state import TrainingState
from engine.weights.checkpoints import NetworkConfig
from tools.make_phantoms import make_dataset

REPOSITORY = Path(__file__).parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"
DESCRIPTION = {
    "name": "boxes",
    "modality": "MRI",
    "labels": {"background": 0, "left": 1, "right": 2},
    "spacing": [1.0, 1.0, 1.0],
    "intensity": {"zscore": True},
}
SMALL = ["--roi_size", "32", "32", "16", "--feat_size", "8", "8", "8", "8", "--kernel_size", "5", "--gpu", "cpu"]


def write_nifti(path, voxels, affine=None):
    """Write voxels (X, Y, Z) with an affine to mm; the default is 1 mm voxels in RAS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def flip_a_bit(path):
    """Flip a bit of a voxel, as a failing disk might: only the checksum at the end of the file shows it."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    packed = gzip.compress(bytes(content))
    content[1000] ^= 1
    path.write_bytes(gzip.compress(bytes(content))[:-8] + packed[-8:])


def make_box_case(root, part, name, seed):
    """Write a case with a bright and a dark box in noise, labelled 1 and 2, smaller than the crop along one axis."""
    rng = np.random.default_rng(seed)
    label = np.zeros((36, 28, 18), np.uint8)
    x, y, z = rng.integers(2, 6, 3)
    label[x : x + 10, y : y + 14, z : z + 8] = 1
    label[x + 16 : x + 26, y : y + 14, z : z + 8] = 2
    image = rng.normal(100, 10, label.shape) + np.array([0, 80, -60])[label]
    write_nifti(root / f"images{part}" / f"{name}.nii.gz", image.astype(np.float32))
    write_nifti(root / f"labels{part}" / f"{name}.nii.gz", label)


def pytest_addoption(parser):
    parser.addoption(
        "--gpu", default="0", help="device of the gpu tests: a CUDA device's number, or cpu to rehearse them"
    )


def pytest_runtest_setup(item):
    wanted = item.config.getoption("--gpu")
    if item.get_closest_marker("gpu") and wanted != "cpu" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")


@pytest.fixture(scope="session", autouse=True)
def many_logs(tmp_path_factory):
    """Advance the counter at the end of TensorBoard's file names to 101, so that all names have the same length.

    TensorBoard reads logs of the same second in the order of their names, and here one process writes many logs.
    """
    folder = str(tmp_path_factory.mktemp("logs"))
    for _ in range(100):
        EventFileWriter(folder).close()


@pytest.fixture(scope="session")
def gpu(request):
    """Device of the gpu tests, as in --gpu of the scripts."""
    return request.config.getoption("--gpu")


@pytest.fixture(scope="session")
def device(gpu):
    return torch.device("cpu") if gpu == "cpu" else torch.device("cuda", int(gpu))


@pytest.fixture
def full_float32():
    """Forbid TF32, which is the default for convolutions on a GPU."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Folder with nothing but the installed project, the package rep3d."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, because building leaves folders in the source
    for name in ("networks", "engine", "tools", "integrations"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "main_train.py", "test_seg.py"):
        shutil.copy(REPOSITORY / name, source)
    offline = ("--quiet", "--no-index", "--no-deps")
    _pip("wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    _pip("install", *offline, "--no-compile", "--target", folder / "site", wheel, cwd=folder)
    return folder / "site"


def _pip(*words, cwd):
    command = [sys.executable, "-m", "pip", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def rep3d(site):
    """Package rep3d as it is installed, imported for the tests of one module."""
    sys.path.insert(0, str(site))
    yield importlib.import_module("rep3d")
    sys.path.remove(str(site))
    for name in [name for name in sys.modules if name.partition(".")[0] == "rep3d"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Forbid connections to other machines."""
    connect = socket.socket.connect

    def connect_locally(self, address):
        assert self.family == socket.AF_UNIX, f"connects to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(autouse=True)
def keep_signals():
    """Restore what a process that stops on request ignores until its end."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def box_template(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxes")
    for number in range(3):
        make_box_case(root, "Tr", f"box_{number}", number)
    make_box_case(root, "Val", "box_8", 8)
    make_box_case(root, "Val", "box_9", 9)
    (root / "boxes.json").write_text(json.dumps(DESCRIPTION))
    return root


@pytest.fixture
def boxes(box_template, tmp_path):
    """Dataset folder that a test may damage, with its description boxes.json."""
    return Path(shutil.copytree(box_template, tmp_path / "boxes"))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    make_dataset(root, train=2, val=3, seed=0, scale=3)
    return root


@pytest.fixture
def train(capsys, monkeypatch):
    """Run main_train.py in this process, with blank pictures; returns (exit status, stdout, stderr)."""
    blank_pictures(monkeypatch)
    return lambda *argv: _run(capsys, main_train, argv)


@pytest.fixture
def predict(capsys):
    """Run test_seg.py in this process; returns (exit status, stdout, stderr)."""
    return lambda *argv: _run(capsys, predict_script, argv)


def _run(capsys, script, argv):
    capsys.readouterr()
    try:
        status = run(script.main, script.parse_args([str(word) for word in argv]))
    except SystemExit as stop:  # argparse
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def blank_pictures(patch):
    """Log a grey pixel for each picture of a run: Matplotlib takes longer to draw one than a tiny network to train.

    The picture of the masks is not even composed. The fixture ``trained`` and the tests that start main_train.py as a
    process have the true ones.
    """
    patch.setattr(validation, "mask_slices", lambda _: Figure())
    patch.setattr("torch.utils.tensorboard.writer.figure_to_image", lambda *_: np.full((3, 1, 1), 128, np.uint8))


def run_here(program, *words):
    """Run a script of the repository, or a module as after ``python -m``, in this process; returns its exit status.

    A process of its own would take longer to import PyTorch and MONAI than most commands of the tests take.
    """
    path = program if program.endswith(".py") else importlib.util.find_spec(program).origin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(REPOSITORY / path), run_name="__main__")
    return stop.value.code


def train_here(*words):
    """Run main_train.py in this process, with blank pictures; returns its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        blank_pictures(patch)
        return run_here("main_train.py", *words)


def assert_one_line(result, *parts):
    """Assert exit status 2 and one line on stderr with all ``parts``; progress bars erase themselves."""
    status, _, err = result
    lines = [line for line in re.split("[\r\n]|\x1b\\[A", err) if line.strip() and "%|" not in line]
    assert status == 2, err
    assert len(lines) == 1, err
    assert all(str(part) in lines[0] for part in parts), lines[0]


# Flags of the fixture ``trained``; later flags override earlier ones.
TRAINED = ("--lr", "0.01", "--max_iter", "60", "--eval_step", "20")


def train_arguments(root, output, *more):
    """Build the arguments of a training run on the boxes, which takes seconds."""
    data = ["--root", root, "--output", output, "--dataset", root / "boxes.json", "--num_workers", "0"]
    cache = [] if "--cache_dir" in more else ["--cache_rate", "1"]
    return [*data, *SMALL, "--max_iter", "4", "--eval_step", "2", *cache, *more]


def wait_for_iteration(checkpoint, iteration, seconds=120):
    """Wait until another process has written a checkpoint of at least this iteration."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(FileNotFoundError):  # before the first checkpoint, and between two renames
            if torch.load(checkpoint, weights_only=True)["iteration"] >= iteration:
                return
        time.sleep(0.02)
    raise TimeoutError(checkpoint)


def wait_for_the_next_second():
    """Wait after another process has logged: TensorBoard reads logs of the same second in the order of process ids.

    A run resumed by hand starts seconds later, with a higher process id; one resumed in this process may have neither.
    """
    time.sleep(1.1)


@pytest.fixture(scope="session")
def trained(box_template, tmp_path_factory):
    """Output folder of a short run on the boxes."""
    output = tmp_path_factory.mktemp("run")
    arguments = [str(word) for word in train_arguments(box_template, output, *TRAINED)]
    assert run(main_train.main, main_train.parse_args(arguments)) == 0
    return output


def prediction_arguments(boxes, output, trained, *more):
    """Build the arguments of a prediction of the three training cases, with their labels."""
    images = ("--images", boxes / "imagesTr", "--output", output)
    weights = ("--trained_weights", trained / "best_metric_model.pth", "--num_workers", "0")
    device = ("--gpu", "cpu", "--amp", "off")  # bf16, the default on CPUs with AMX, is rounded
    return [str(word) for word in (*images, *weights, *device, *more)]


@pytest.fixture(scope="session")
def predicted(box_template, trained, tmp_path_factory):
    """Output folder of an undisturbed prediction."""
    output = tmp_path_factory.mktemp("predicted")
    words = prediction_arguments(box_template, output, trained)
    assert run(predict_script.main, predict_script.parse_args(words)) == 0
    return output


@pytest.fixture
def count_forwards(monkeypatch):
    """Record the images that the network receives from now on."""
    seen = []
    predict_logits = ensemble.predict_logits

    def record(network, image, *rest):
        seen.append(image)
        return predict_logits(network, image, *rest)

    monkeypatch.setattr(ensemble, "predict_logits", record)
    return seen


def real_data(name):
    """Mark that skips a test if the real volumes are missing."""
    return pytest.mark.skipif(not (REAL_DATA / name).is_dir(), reason=f"needs the real volumes {REAL_DATA / name}")


@pytest.fixture
def make_state(box_template, tmp_path):
    """Build the training state of a small network for the boxes, with further flags."""

    def make(*more):
        torch.manual_seed(0)
        words = train_arguments(box_template, tmp_path, *more)
        args = main_train.parse_args([str(word) for word in words])
        description = DatasetDescription.read(box_template / "boxes.json")
        return TrainingState(
            vars(args),
            NetworkConfig.for_dataset(description, args.network, args.roi_size, network_overrides(args)),
            description,
            Split.of_folders(["case"], ["other"]),
            torch.device("cpu"),
        )

    return make
