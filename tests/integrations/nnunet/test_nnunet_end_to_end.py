"""nnU-Net's own commands plan, preprocess, train and predict with networks of rep3d."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import REAL_DATA, make_box_case

from engine.weights.checkpoints import load_checkpoint
from engine.weights.load_weights import load_weights
from networks import build_network

pytestmark = pytest.mark.slow

SMALL = {"depths": [1, 1, 1, 1], "feat_size": [8, 8, 8, 8], "kernel_size": 5}
CASES = 6
# Subclasses that end soon, in a folder as a user would have it.
SHORT = """
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)
from rep3d.nnunet.trainers.rep3d_trainer import nnUNetTrainerRep3D


class nnUNetTrainerRep3D_short(nnUNetTrainerRep3D):
    epochs, iterations_per_epoch, peak_rate = 2, 3, 1e-3

    def on_train_start(self):
        super().on_train_start()
        self.num_val_iterations_per_epoch = 1


class Stock_short(nnUNetTrainerNoDeepSupervision):
    def on_train_start(self):
        super().on_train_start()
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
"""
# nnU-Net's search for trainers imports its Primus, and that a part of timm, which needs torchvision. Neither is
# among this project's packages, because the tests train no Primus.
ANY_CLASS = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
"""


class Session:
    """Folders and environment in which commands run."""

    def __init__(self, folder, site):
        self.folder, self.site = folder, site
        for name, text in {"__init__": "", "layers": ANY_CLASS, "models/__init__": "", "models/eva": ANY_CLASS}.items():
            path = folder / "stubs" / "timm" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (folder / "trainers").mkdir()
        (folder / "trainers" / "short.py").write_text(SHORT)

    def run(self, *command, trainers=()):
        """Run a command of nnU-Net, or a Python module after "-m"; returns its stdout and stderr."""
        folders = {f"nnUNet_{name}": str(self.folder / name) for name in ("raw", "preprocessed", "results")}
        processes = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}  # planning fails with none for augmentation
        environment = {**os.environ, **folders, **processes}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (self.site, self.folder / "stubs")))
        if trainers:
            environment["nnUNet_extTrainer"] = os.pathsep.join(map(str, trainers))
        program = () if command[0] == "-m" else (Path(sys.executable).parent / command[0],)
        words = [sys.executable, *program, *command[len(program) :]]
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run([*map(str, words)], cwd=self.folder, env=environment, **both)
        assert done.returncode == 0, done.stdout
        return done.stdout


def find_source(folder):
    """Find hippocampi, or make boxes where the real data are missing; returns their folder and classes."""
    if (real := REAL_DATA / "msd_hippocampus").exists():
        return real, ("anterior", "posterior")
    for number in range(CASES):
        make_box_case(folder / "boxes", "Tr", f"case_{number}", number)
    return folder / "boxes", ("left", "right")


@pytest.fixture(scope="module")
def session(site, tmp_path_factory):
    """Session with six cases in nnU-Net's raw format, one of them also as a test case, planned and preprocessed."""
    folder = tmp_path_factory.mktemp("session")
    raw = folder / "raw" / "Dataset004_Six"
    source, names = find_source(folder)
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / name).mkdir(parents=True)
    images = sorted((source / "imagesTr").glob("*.nii.gz"))[:CASES]
    for path in images:
        shutil.copy(path, raw / "imagesTr" / path.name.replace(".nii", "_0000.nii"))
        shutil.copy(source / "labelsTr" / path.name, raw / "labelsTr")
    shutil.copy(images[0], raw / "imagesTs" / images[0].name.replace(".nii", "_0000.nii"))
    labels = {"background": 0, names[0]: 1, names[1]: 2}
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": CASES, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(dataset))
    session = Session(folder, site)
    session.run("nnUNetv2_plan_and_preprocess", "-d", 4, "-c", "3d_fullres", "-np", 1, "-npfp", 1)
    return session


def plan(session, network, *more):
    """Write plans for a small network; returns the folder of the preprocessed dataset."""
    folder = session.folder / "preprocessed" / "Dataset004_Six"
    overrides = [f"{name}={json.dumps(value)}" for name, value in SMALL.items()]
    write = ("-m", "rep3d.nnunet.write_plans", "--folder", folder, "--network", network, *more)
    session.run(*write, "--network_args", *overrides)
    return folder


def read_prediction(session, folder):
    """Return the only label map of a folder, on the grid of its image and with the labels of the dataset."""
    (path,) = (session.folder / folder).glob("*.nii.gz")
    (image,) = (session.folder / "raw" / "Dataset004_Six" / "imagesTs").iterdir()
    found, expected = nib.load(path), nib.load(image)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    voxels = np.asarray(found.dataobj)
    assert set(np.unique(voxels)) <= {0, 1, 2}
    return voxels


TRAIN = ("nnUNetv2_train", 4, "3d_fullres", 0, "-device", "cpu", "-p")
PREDICT = ("nnUNetv2_predict", "-d", 4, "-c", "3d_fullres", "-p")
INPUT = ("-i", "raw/Dataset004_Six/imagesTs", "-f", 0, "-device", "cpu", "-npp", 0, "-nps", 0, "-o")


def test_from_raw_data_to_predictions_with_and_without_the_trainer(session):
    preprocessed = plan(session, "REP3D")
    before = {path for path in preprocessed.iterdir() if path.is_dir()}
    trainers = session.site / "rep3d" / "nnunet" / "trainers", session.folder / "trainers"
    ours = ("nnUNetRep3DPlans", "-tr", "nnUNetTrainerRep3D_short")
    log = session.run(*TRAIN, *ours, trainers=trainers)
    assert "Mean Validation Dice" in log
    assert {path for path in preprocessed.iterdir() if path.is_dir()} == before  # nothing was preprocessed again

    session.run(*PREDICT, *ours, *INPUT, "with", trainers=trainers)
    model = session.folder / "results" / "Dataset004_Six" / "nnUNetTrainerRep3D_short__nnUNetRep3DPlans__3d_fullres"
    session.run("-m", "rep3d.nnunet.deploy", "--model", model, "--output", "deployed")
    in_processes = ("-npp", 1, "-nps", 1)  # this command has no other way
    session.run("nnUNetv2_predict_from_modelfolder", "-m", "deployed", *INPUT, "without", *in_processes)
    differing = read_prediction(session, "with") != read_prediction(session, "without")
    assert differing.mean() <= 1e-4  # folded kernels are rounded differently, which may decide between equal logits

    content = load_checkpoint(model / "fold_0" / "checkpoint_final.pth", "--pretrained_weights")
    report = load_weights(build_network("REP3D", 1, 3, **SMALL), content, "nnU-Net's", strict=True)
    assert report.missing == report.skipped == ()


def test_a_trainer_of_nnunet_trains_by_the_plans_alone(session):
    plan(session, "3DUXNET", "--name", "UXNetPlans")
    trainers = [session.folder / "trainers"]
    session.run(*TRAIN, "UXNetPlans", "-tr", "Stock_short", trainers=trainers)
    session.run(*PREDICT, "UXNetPlans", "-tr", "Stock_short", *INPUT, "out", trainers=trainers)
    read_prediction(session, "out")
