"""Trainer of nnU-Net with the recipe of main_train.py, in this process and without data."""

import copy
import importlib
import sys

import pytest
import torch
from conftest import assert_one_line
from nnunet_plans import DATASET, OURS, PATCH, SMALL, make_configuration, make_plans

import main_train


@pytest.fixture(scope="module")
def trainers(rep3d):
    return importlib.import_module("rep3d.nnunet.trainers.rep3d_trainer")


@pytest.fixture
def plans():
    fullres = make_configuration(PATCH, architecture=copy.deepcopy(OURS))
    return {**make_plans(**{"3d_fullres": fullres}), "continue_training": False}


@pytest.fixture
def results(monkeypatch, tmp_path):
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "nnUNet_results"


@pytest.fixture
def make(trainers, plans, results):
    def build(kind=None, configuration="3d_fullres", device="cpu", plans=plans):
        return (kind or trainers.nnUNetTrainerRep3D)(plans, configuration, 0, DATASET, torch.device(device))

    return build


def test_the_recipe_is_that_of_main_train(make):
    flags = main_train.parse_args(["--root", "data", "--dataset", "amos", "--output", "run"])
    trainer = make()
    trainer.network = torch.nn.Linear(2, 2)
    optimizer, schedule = trainer.configure_optimizers()
    (group,) = optimizer.param_groups
    assert (type(optimizer).__name__, group["lr"], group["weight_decay"]) == (flags.optim, flags.lr, flags.weight_decay)
    assert (schedule.peak, schedule.iterations) == (flags.lr, 250_000)
    assert trainer.enable_deep_supervision is False
    assert type(trainer._build_loss()).__name__ == "DC_and_CE_loss"


def test_a_subclass_of_three_lines_changes_it(make, trainers):
    class Shorter(trainers.nnUNetTrainerRep3D):
        epochs, iterations_per_epoch, peak_rate = 4, 5, 1e-3

    trainer = make(Shorter)
    trainer.network = torch.nn.Linear(2, 2)
    _, schedule = trainer.configure_optimizers()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (4, 5)
    assert (schedule.peak, schedule.iterations) == (1e-3, 20)
    assert set(trainer.my_init_kwargs) == {"plans", "configuration", "fold", "dataset_json", "device"}


def test_nnunet_builds_the_network_of_the_plans(make, trainers):
    trainer = make()
    managers = trainer.plans_manager, trainer.configuration_manager
    network = trainer.build_network_architecture(*managers, 1, 3, trainer.enable_deep_supervision)
    assert isinstance(network, trainers.NetworkFromPlans)
    trainer.network = network
    trainer.set_deep_supervision_enabled(False)
    assert network(torch.zeros(1, 1, *PATCH)).shape == (1, 3, *PATCH)


@pytest.mark.parametrize(("native", "precision"), [(True, torch.bfloat16), (False, None)])
def test_gpus_with_bf16_use_it_and_need_no_scaler(make, monkeypatch, native, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    trainer = make(device="cuda")
    assert trainer.precision == precision
    assert (trainer.grad_scaler is None) == native


def initialize(trainer, trainers):
    """Do what nnU-Net's ``initialize`` does without preprocessed data, for two epochs of 50 iterations."""
    torch.manual_seed(0)
    trainer.network = trainers.NetworkFromPlans(1, 3, PATCH, **SMALL)
    trainer.num_iterations_per_epoch, trainer.num_epochs = 50, 2
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.loss, trainer.was_initialized = trainer._build_loss(), True
    return trainer


def make_batch():
    return {"data": torch.randn(1, 1, *PATCH), "target": torch.randint(0, 3, (1, 1, *PATCH)).float()}


def test_a_step_has_the_rate_of_its_iteration_and_the_precision(make, trainers):
    """nnU-Net leaves the CPU without autocast; its default precision shows what an autocast would use."""
    trainer = initialize(make(), trainers)
    trainer.precision = torch.float16
    loss, seen = trainer._build_loss(), []

    def spy(logits, target):
        seen.append((torch.get_autocast_dtype("cpu"), trainer.optimizer.param_groups[0]["lr"]))
        return loss(logits, target)

    trainer.loss = spy
    batch = make_batch()
    before = torch.get_autocast_dtype("cpu")
    trainer.lr_scheduler.step(0)
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(4)]
    with torch.no_grad():
        trainer.validation_step(batch)
    assert [precision for precision, _ in seen] == 5 * [torch.float16]
    assert torch.get_autocast_dtype("cpu") == before
    rates = [rate for _, rate in seen[:4]]
    assert rates == [pytest.approx(rate) for rate in (1e-4 / 3, 2e-4 / 3, 1e-4, trainer.lr_scheduler.rate(3))]
    assert losses[-1] < losses[0]


def test_a_training_that_goes_on_has_the_rate_and_the_moments_of_the_undisturbed_one(make, trainers, plans, tmp_path):
    undisturbed, batch = initialize(make(), trainers), make_batch()
    undisturbed.on_train_epoch_start()
    undisturbed.train_step(batch)
    undisturbed.save_checkpoint(str(tmp_path / "latest.pth"))
    resumed = initialize(make(plans={**plans, "continue_training": True}), trainers)
    resumed.load_checkpoint(str(tmp_path / "latest.pth"))
    undisturbed.current_epoch += 1
    for trainer in (undisturbed, resumed):
        trainer.on_train_epoch_start()
        trainer.train_step(batch)
        assert trainer.optimizer.param_groups[0]["lr"] == trainer.lr_scheduler.rate(50) < 0.6e-4
    weights = resumed.network.state_dict()
    for name, value in undisturbed.network.state_dict().items():
        torch.testing.assert_close(weights[name], value)


def test_nnunets_finder_finds_it_and_its_networks_survive(trainers, make, rep3d):
    find = importlib.import_module("nnunetv2.utilities.find_class_by_name").recursive_find_python_class
    folder = str(importlib.import_module("rep3d.nnunet").TRAINERS)
    found = find(folder, "nnUNetTrainerRep3D", None, base_folder=folder, cleanup_imports_from_base_folder=True)
    assert found.__module__ == "rep3d_trainer"
    assert "rep3d_trainer" not in sys.modules
    trainer = make(found)
    network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3, False)
    assert network(torch.zeros(1, 1, *PATCH)).shape == (1, 3, *PATCH)


def alter(plans, **changes):
    plans["configurations"]["3d_fullres"] |= changes


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda plans: plans.update(configurations={"3d_lowres": {}}), ("3d_fullres", "3d_lowres")),
        (lambda plans: alter(plans, previous_stage="3d_lowres"), ("3d_fullres", "cascade")),
        (lambda plans: alter(plans, patch_size=[32, 32, 32]), ("[16, 32, 16]", "[32, 32, 32]")),
        (
            lambda plans: plans["configurations"]["3d_fullres"]["architecture"].update(network_class_name="a.UNet"),
            ("a.UNet", "rep3d.nnunet.write_plans"),
        ),
        (
            lambda plans: (
                alter(plans, patch_size=[40, 56, 40]),
                plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(patch_size=[40, 56, 40]),
            ),
            ("40 x 56 x 40", "48 x 64 x 48"),
        ),
    ],
)
def test_plans_that_it_cannot_train_are_one_line_before_any_folder(make, plans, results, capsys, change, parts):
    change(plans)
    with pytest.raises(SystemExit) as stop:
        make()
    assert_one_line((stop.value.code, *capsys.readouterr()), *parts)
    assert not results.exists()


def test_a_torch_without_distributed_training_is_enough(make, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.delattr(torch.distributed, "is_initialized")
    assert make().enable_deep_supervision is False


def test_several_gpus_are_refused(make, results, capsys, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(SystemExit) as stop:
        make()
    assert_one_line((stop.value.code, *capsys.readouterr()), "several GPUs")
    assert not results.exists()
