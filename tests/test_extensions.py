"""What goes beyond the paper's recipe, through main_train.py."""

import torch

from engine.training import step as training_step
from engine.training import validation
from experiments.reliability.compare import differences

AVERAGED = ("--ema", "0.9", "--lr", "0.01", "--snapshot_step", "2")


def arguments(root, output, *more):
    """Build the arguments of two iterations of a tiny network with instance normalisation, which take a second."""
    data = ("--root", root, "--dataset", root / "boxes.json", "--num_workers", "0", "--cache_rate", "1")
    network = ("--network", "UNet3D", "--network_args", "channels=2,2,2,2,2", "--roi_size", "16", "16", "32")
    run = ("--output", output, "--max_iter", "2", "--eval_step", "1", "--val_cases", "1", "--gpu", "cpu")
    return [*data, *network, *run, *more]


def load(path):
    return torch.load(path, weights_only=True)


def test_accumulation_sees_the_cases_of_a_larger_batch_in_the_same_order(box_template, tmp_path, train):
    """With plain SGD, gradients that differ in a factor would give other weights."""
    weights = {}
    for name, flags in {"whole": ("--batch_size", "2"), "parts": ("--accumulate", "2")}.items():
        assert train(*arguments(box_template, tmp_path / name, "--optim", "SGD", "--lr", "0.1", *flags))[0] == 0
        weights[name] = load(tmp_path / name / "last_checkpoint.pth")["model"]
    for key, value in weights["whole"].items():
        torch.testing.assert_close(value, weights["parts"][key], rtol=1e-4, atol=1e-6)


def test_an_averaged_run_resumes_to_the_same_end_and_saves_its_average(box_template, tmp_path, train, monkeypatch):
    def interrupt(state, *rest):
        if state.iteration == 1:
            raise KeyboardInterrupt
        return train_step(state, *rest)

    def record(network, *rest):
        validated.append({key: value.clone() for key, value in network.state_dict().items()})
        return validate(network, *rest)

    train_step, validate, validated = training_step.train_step, validation.validate, []
    monkeypatch.setattr(validation, "validate", record)
    whole, cut = (arguments(box_template, tmp_path / name, *AVERAGED) for name in ("whole", "cut"))
    assert train(*whole)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(training_step, "train_step", interrupt)
        assert train(*cut)[0] == 130
    assert train(*cut, "--resume")[0] == 0
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    last = load(tmp_path / "cut" / "last_checkpoint.pth")
    assert last["averaged"] == 2
    assert not all(torch.equal(value, last["trained_model"][key]) for key, value in last["model"].items())
    for weights in (validated[-1], load(tmp_path / "cut" / "weights_2.pth")["model"]):
        assert all(torch.equal(value, last["model"][key]) for key, value in weights.items())


def test_a_frozen_encoder_keeps_the_weights_of_the_file_through_a_run(box_template, tmp_path, train):
    assert train(*arguments(box_template, tmp_path / "before"))[0] == 0
    file = tmp_path / "before" / "last_checkpoint.pth"
    frozen = ("--pretrain", "True", "--pretrained_weights", file, "--freeze_encoder", "2")
    assert train(*arguments(box_template, tmp_path / "after", *frozen))[0] == 0
    before, after = (load(path)["model"] for path in (file, tmp_path / "after" / "last_checkpoint.pth"))
    encoder = {key for key in before if key.startswith("model.0.") and key.endswith("weight")}
    decoder = {key for key in before if key.startswith("model.2.") and key.endswith("weight")}
    assert encoder
    assert all(torch.equal(before[key], after[key]) for key in encoder)
    assert not any(torch.equal(before[key], after[key]) for key in decoder)
