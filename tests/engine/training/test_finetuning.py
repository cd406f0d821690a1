"""A frozen encoder, rates by stage, and the flags of the network that a file answers."""

import copy

import pytest
import torch
import torch.distributed as dist
from conftest import assert_one_line, train_arguments
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.runtime.errors import InputError
from engine.training import step as training_step
from engine.training.finetuning import FreezableEncoder, decay_by_stage, find_stages
from engine.training.optimizer import make_optimizer
from engine.training.start import StartWeights
from engine.training.step import train_step
from networks import build_network

TINY = {"feat_size": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "kernel_size": 3}
IMAGE = torch.randn(1, 1, 16, 16, 32, generator=torch.Generator().manual_seed(0))
FREEZE = ("--pretrain", "True", "--pretrained_weights", "x.pth", "--network", "REP3D", "--roi_size", "32", "32", "16")


def step(state):
    """Take a step as main_train.py does."""
    state.begin_step()
    done = train_step(state, lambda logits, _: logits.square().mean(), IMAGE, IMAGE, 1e-2)
    state.progress.iteration += 1
    return done


def encoder_of(state):
    """Copy what belongs to the encoder: parameters, buffers and moments."""
    weights = {name: value for name, value in state.network.state_dict().items() if name.startswith("rep3d.")}
    parameters = dict(state.network.named_parameters())
    moments = {name: state.optimizer.state.get(parameters[name]) for name in weights if name in parameters}
    return copy.deepcopy((weights, moments))


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(("network", "optim"), [("REP3D", "AdamW"), ("REPOPT", "SGD")])
def test_a_frozen_encoder_does_not_change_and_trains_from_then_on(make_state, network, optim):
    state = make_state(*FREEZE, "--freeze_encoder", "2", "--optim", optim, "--network", network)
    before, moments = encoder_of(state)
    head = state.network.out.conv.conv.weight
    for _ in range(2):
        old = head.detach().clone()
        step(state)
        assert not torch.equal(old, head)
        state.network.train()  # as a validation leaves it
    frozen, unmoved = encoder_of(state)
    assert_same(before, frozen)
    for name, values in moments.items():
        assert (unmoved[name] is None) == (values is None)
        if values is not None:
            assert_same(values, unmoved[name])
    assert all(parameter.grad is None for parameter in state.encoder.parameters.values())
    step(state)
    thawed, _ = encoder_of(state)
    changed = {name for name, value in thawed.items() if not torch.equal(value, before[name])}
    assert {name for name in thawed if name.endswith(("dwconv.weight", "running_mean", "norm0.weight"))} <= changed


def test_a_frozen_encoder_is_in_evaluation_mode_and_its_decoder_is_not():
    with torch.device("meta"):
        network = build_network("TransBTS", 1, 3, (16, 16, 16))
    encoder = FreezableEncoder(network)
    unused = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert encoder.set_frozen(True)
    assert not encoder.set_frozen(True)
    assert not network.bn.training
    assert not network.Unet.InitConv.dropout.training
    assert network.Enblock8_1.bn1.training
    assert encoder.set_frozen(False)
    assert all(module.training for module in network.modules())
    assert {name for name, parameter in network.named_parameters() if not parameter.requires_grad} == unused


def test_a_step_that_is_not_finite_changes_nothing_while_frozen(make_state):
    state = make_state(*FREEZE, "--freeze_encoder", "2")
    step(state)
    before = copy.deepcopy(state.network.state_dict())
    state.begin_step()
    bad = train_step(state, lambda logits, _: logits.mean() * torch.nan, IMAGE, IMAGE, 1e-2)
    assert bad.skipped
    assert_same(before, state.network.state_dict())


def test_a_run_is_resumed_exactly_before_at_and_after_the_thaw(make_state, tmp_path):
    flags = (*FREEZE, "--freeze_encoder", "2", "--layer_decay", "0.5", "--ema", "0.9")
    whole = make_state(*flags)
    whole._set_anew(["rep3d.norm0.weight"])
    while whole.iteration < 4:
        folder = tmp_path / str(whole.iteration)
        folder.mkdir()
        whole.save(folder)
        step(whole)
    for saved_at in (1, 2, 3):
        resumed = make_state(*flags)
        resumed.restore(tmp_path / str(saved_at))
        while resumed.iteration < 4:
            step(resumed)
        assert_same(whole.network.state_dict(), resumed.network.state_dict())
        assert_same(whole.evaluated_network.state_dict(), resumed.evaluated_network.state_dict())
        rates = [[group["lr"] for group in state.optimizer.param_groups] for state in (whole, resumed)]
        assert rates[0] == rates[1]


@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view strides")
def test_gradients_are_averaged_over_processes_while_frozen_and_thawed(make_state, tmp_path, monkeypatch):
    """DistributedDataParallel fails where other parameters get gradients than when it was built."""
    alone, parallel = make_state(*FREEZE, "--freeze_encoder", "1"), make_state(*FREEZE, "--freeze_encoder", "1")
    while alone.iteration < 3:
        step(alone)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    monkeypatch.setattr(training_step, "parallelise", DistributedDataParallel)
    try:
        parallel.wrap()
        while parallel.iteration < 3:
            step(parallel)
    finally:
        dist.destroy_process_group()
    assert_same(alone.network.state_dict(), parallel.network.state_dict())


def test_older_checkpoints_have_neither_flag(make_state, tmp_path):
    make_state().save(tmp_path)
    path = tmp_path / "last_checkpoint.pth"
    content = torch.load(path, weights_only=True)
    for name in ("freeze_encoder", "layer_decay", "recipe"):
        del content["args"][name]
    del content["anew"]
    torch.save(content, path)
    make_state().restore(tmp_path)
    with pytest.raises(InputError, match="--freeze_encoder: found 1, expected 0"):
        make_state(*FREEZE, "--freeze_encoder", "1").restore(tmp_path)


def rates_of(network, **options):
    optimizer = make_optimizer("AdamW", network, 1.0, 0.08, **options)
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {names[parameter]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}


def test_rates_fall_from_the_decoder_to_the_image():
    rates = rates_of(build_network("REP3D", 1, 2, **TINY), layer_decay=0.5, mask_lr_factor=0.25)
    expected = {
        "rep3d.downsample_layers.0.0.weight": 1 / 32,
        "rep3d.stages.0.0.dwconv.weight": 1 / 16,
        "rep3d.stages.3.0.dwconv.weight": 1 / 2,
        "rep3d.stages.3.0.lrbm.generator.0.weight": 1 / 8,
        "encoder1.layer.conv1.conv.weight": 1,
        "decoder2.transp_conv.conv.weight": 1,
        "out.conv.conv.weight": 1,
    }
    assert {name: rates[name] for name in expected} == expected


def test_rates_of_branches_and_stages_multiply():
    network = build_network("REPOPT", 1, 2, **TINY | {"kernel_size": 5}, branches=True, large_rate=0.5)
    assert rates_of(network, layer_decay=0.5)["rep3d.stages.3.0.dwconv.weight"] == 1 / 4


def test_what_starts_anew_learns_at_the_full_rate():
    network = build_network("nnUNet", 1, 2, filters=(4,) * 6)
    (stem,) = (name for name in network.state_dict() if name == network.stem_prefixes[0])
    rates = rates_of(network, layer_decay=0.5, anew=[stem])
    assert rates[stem] == 1
    assert rates["input_block.conv2.conv.weight"] == 1 / 64


@pytest.mark.parametrize("make", [lambda net: decay_by_stage(net, 0.5), FreezableEncoder])
def test_a_network_without_stages_is_refused(make):
    network = build_network("UNet3D", 1, 2, channels=(1,) * 5)
    network.encoder_prefixes = ()
    with pytest.raises(InputError, match="found UNet3D, expected a network that names the stages"):
        make(network)
    with pytest.raises(InputError, match="--layer_decay: found Linear"):
        find_stages(nn.Linear(1, 1), "--layer_decay")


def weights_for(state, in_chans):
    """Weights of the same network, with as many channels and another number of classes."""
    config = {"feat_size": (8, 8, 8, 8), "kernel_size": 5}
    return StartWeights("x.pth", {"model": build_network("REP3D", in_chans, 5, **config).state_dict()}, ())


def test_other_channels_learn_at_the_full_rate_and_cannot_be_frozen(make_state):
    state = make_state(*FREEZE, "--layer_decay", "0.5")
    state.start_from(weights_for(state, in_chans=2))
    stem = state.network.rep3d.downsample_layers[0][0].weight
    rates = {parameter: group["lr"] for group in state.optimizer.param_groups for parameter in group["params"]}
    assert rates[stem] == 1e-4
    assert rates[state.network.rep3d.downsample_layers[0][0].bias] == pytest.approx(1e-4 / 32)
    frozen = make_state(*FREEZE, "--freeze_encoder", "1")
    with pytest.raises(InputError, match=r"--freeze_encoder: found 1 weights .*downsample_layers\.0\.0\.weight"):
        frozen.start_from(weights_for(frozen, in_chans=2))
    frozen.start_from(weights_for(frozen, in_chans=1))  # another head is no part of the encoder


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--freeze_encoder", "5"], ("--freeze_encoder", "--pretrain True")),
        (["--layer_decay", "0.5"], ("--layer_decay", "--pretrain True")),
        (["--layer_decay", "2"], ("--layer_decay", "'2'", "at most 1")),
        (["--layer_decay", "0"], ("--layer_decay", "'0'", "above 0")),
        (["--freeze_encoder", "-1"], ("--freeze_encoder", "'-1'", "a whole number from 0")),
    ],
)
def test_flags_that_are_refused(box_template, tmp_path, train, flags, parts):
    assert_one_line(train(*train_arguments(box_template, tmp_path / "run", *flags)), *parts)
    assert not (tmp_path / "run").exists()
