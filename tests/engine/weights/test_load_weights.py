"""load_weights: names, wrappers, other numbers of classes and channels, and refused files."""

import pytest
import torch

from engine.runtime.errors import InputError
from engine.weights.load_weights import load_weights
from networks import build_network
from networks.Rep3D import LRBM

TINY = {"depths": (1, 1, 1, 1), "feat_size": (4, 8, 12, 16), "kernel_size": 5}
ROI = (32, 32, 16)


def tiny(name="3DUXNET", in_chans=1, out_chans=3, **options):
    return build_network(name, in_chans, out_chans, ROI, **TINY, **options)


def other_kernel():
    return build_network("3DUXNET", 1, 3, ROI, **{**TINY, "kernel_size": 7})


def wider_head():
    return tiny().state_dict() | {"out.conv.conv.weight": torch.zeros(3, 5, 1, 1, 1)}


def assert_same_weights(network, other):
    for key, value in other.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "optimizer": {"lr": 1}, "epoch": 3},
        lambda weights: {"network_weights": weights, "current_epoch": 3},
        lambda weights: {"model": {"state_dict": weights}},
        lambda weights: {"model": {"name": "3DUXNET"}, "state_dict": weights},
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        lambda weights: {"model": {f"_orig_mod.module.{key}": value for key, value in weights.items()}},
        lambda weights: {"state_dict": {f"model.{key}": value for key, value in weights.items()}},
    ],
    ids=["bare", "state_dict", "nnU-Net", "nested", "next to a description", "DDP", "compiled DDP", "Lightning"],
)
def test_wrappers_and_prefixes_are_removed(wrap, strict):
    source, network = tiny(), tiny()
    report = load_weights(network, wrap(source.state_dict()), "weights.pth", strict)
    assert_same_weights(network, source)
    assert (report.loaded, report.skipped, report.missing) == (len(source.state_dict()), (), ())
    assert str(report) == f"{len(source.state_dict())} tensors loaded, skipped 0, missing 0"


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_names_that_begin_like_a_removable_prefix(prefix):
    source, network = (build_network("UNet3D", 1, 3, ROI, channels=(2, 4, 4, 4, 4)) for _ in range(2))
    load_weights(network, {prefix + key: value for key, value in source.state_dict().items()}, "weights.pth", True)
    assert_same_weights(network, source)


def test_another_class_count_skips_the_head_only():
    source, network = tiny(out_chans=16), tiny(out_chans=3)
    head = {key: value.clone() for key, value in network.state_dict().items() if key.startswith("out.")}
    report = load_weights(network, source.state_dict(), "weights.pth")
    assert report.skipped == report.missing == ("out.conv.conv.bias", "out.conv.conv.weight")
    assert report.loaded == len(source.state_dict()) - 2
    assert "other number of classes, head not loaded: found 16, expected 3" in str(report)
    for key, value in network.state_dict().items():
        assert torch.equal(value, head.get(key, source.state_dict()[key])), key


@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 1), (2, 3)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("3DUXNET", TINY),
        ("STUNet_S", {"feat_size": (2, 2, 4, 4, 4, 4)}),
        ("nnUNet", {"filters": (2, 2, 4, 4, 4, 4)}),
        ("ResEncUNet", {"feat_size": (4, 8), "n_blocks": (1, 1)}),
        ("TransBTS", {"embed_dim": 16, "num_layers": 1, "mlp_dim": 16}),
    ],
)
def test_another_channel_count_averages_and_repeats_the_stem(name, options, old, new):
    roi_size = (32, 32, 64)
    source, network = (build_network(name, channels, 3, roi_size, **options) for channels in (old, new))
    report = load_weights(network, source.state_dict(), "weights.pth")
    stems = [key for key in source.state_dict() if key.startswith(network.stem_prefixes)]
    stems = [key for key in stems if source.state_dict()[key].dim() > 1 and not key.startswith(network.unused_prefixes)]
    assert report.missing == ()
    assert all(key.startswith(network.unused_prefixes) for key in report.skipped)
    assert len(report.changes) == len(stems) > 0
    for key, value in network.state_dict().items():
        before = source.state_dict()[key]
        if key in stems:
            assert value.shape[1] == new
            torch.testing.assert_close(value, before.mean(1, keepdim=True).expand_as(value))
        elif not key.startswith(network.unused_prefixes):
            assert torch.equal(value, before), key


def test_channels_within_a_patch():
    """UNETR's patch embedding is linear on (p1 p2 p3 channels): equal channels must project alike."""
    options = {"hidden_size": 12, "mlp_dim": 12, "num_heads": 2, "feature_size": 4}
    source, network = (build_network("UNETR", channels, 3, ROI, **options).eval() for channels in (1, 2))
    load_weights(network, source.state_dict(), "weights.pth")
    embed, wider = (net.vit.patch_embedding.patch_embeddings for net in (source, network))
    x = torch.randn(1, 1, *ROI)
    offset = embed[1].bias
    torch.testing.assert_close(wider(x.expand(-1, 2, -1, -1, -1)) - offset, 2 * (embed(x) - offset))


def test_officially_unused_parameters_may_be_missing():
    options = {"hidden_size": 12, "mlp_dim": 12, "num_heads": 2, "feature_size": 4}
    source, network = (build_network("UNETR", 1, 3, ROI, **options) for _ in range(2))
    weights = {key: value for key, value in source.state_dict().items() if "norm_cross_attn" not in key}
    assert len(weights) < len(source.state_dict())
    report = load_weights(network, weights, "old_monai.pth", strict=True)
    assert (report.loaded, report.missing) == (len(weights), ())
    assert_same_weights(network, source)


def test_plain_kernels_give_a_masked_network_the_same_output():
    torch.manual_seed(0)
    source, network = tiny("3DUXNET_K21").eval(), tiny("3DUXNET_LRBM").eval()
    report = load_weights(network, source.state_dict(), "weights.pth")
    assert report.missing == ()
    x = torch.randn(1, 1, *ROI)
    torch.testing.assert_close(network(x), source(x))


def test_single_tensors_may_be_missing_or_left_over_unless_strict():
    source, network = tiny(), tiny()
    weights = {**source.state_dict(), "extra": torch.zeros(3)}
    del weights["uxnet_3d.norm3.bias"]
    report = load_weights(network, weights, "weights.pth")
    assert (report.skipped, report.missing) == (("extra",), ("uxnet_3d.norm3.bias",))
    assert "skipped 1 (extra), missing 1 (uxnet_3d.norm3.bias)" in str(report)
    with pytest.raises(InputError, match=r"^weights.pth does not fit the network: found \d+ tensors, \d+ of them"):
        load_weights(network, weights, "weights.pth", strict=True)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: tiny("REP3D").state_dict(), r"found 1\d\d tensors, \d+ of them known.*at least 90% by name"),
        (
            lambda: other_kernel().state_dict(),
            r"4 of another shape, such as uxnet_3d.stages.0.0.dwconv.weight \(4, 1, 7, 7, 7\)",
        ),
        (lambda: wider_head(), r"1 of another shape, such as out.conv.conv.weight \(3, 5, 1, 1, 1\)"),
        (lambda: {0: torch.zeros(2)}, "holds no weights"),
        (lambda: tiny().state_dict() | {"encoder1.layer.conv1.conv.weight": torch.zeros(4, 2, 3, 3, 3, dtype=int)}, ""),
        (lambda: {}, "holds no weights, expected them under one of model, state_dict, network_weights"),
        (lambda: {"model": {"epoch": 3}}, "holds no weights"),
        (lambda: {"a": torch.zeros(2)}, "found 1 tensors, 0 of them known and 0 of another shape"),
    ],
    ids=[
        *("another network", "another kernel", "another width", "numbered", "integers", "nothing", "no tensors"),
        "unknown",
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(InputError, match=f"^weights.pth .*{message}"):
        load_weights(tiny(), weights(), "weights.pth")


@pytest.mark.parametrize("change", [{"in_chans": 2}, {"out_chans": 4}])
def test_strict_adapts_nothing(change):
    with pytest.raises(InputError, match=r"does not fit the network.*[23] of another shape"):
        load_weights(tiny(**change), tiny().state_dict(), "weights.pth", strict=True)


def test_a_refused_file_leaves_the_network_as_it_was():
    network = tiny()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    half = {key: value + 1 for key, value in list(tiny().state_dict().items())[::2]}
    with pytest.raises(InputError, match="at least 90% by name"):
        load_weights(network, half, "weights.pth")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("REP3D", "REP3D_NONE"),
        ("REP3D_NONE", "REP3D"),
        ("REP3D", "REP3D_FIXED"),
        ("REP3D_FIXED", "REP3D"),
        ("REP3D_FIXED", "REPOPT"),
        ("3DUXNET_LRBM", "3DUXNET"),
    ],
)
def test_networks_that_differ_only_in_the_mask_exchange_weights_with_the_same_output(old, new):
    torch.manual_seed(0)
    source, network = tiny(old).eval(), tiny(new).eval()
    for module in source.modules():
        if isinstance(module, LRBM):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 1, *ROI)
    expected = source(x)
    report = load_weights(network, source.state_dict(), "weights.pth")
    torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4)
    assert report.missing == report.skipped == ()
    assert ("other masks, 4 of them folded" in str(report)) == any("lrbm" in key for key in source.state_dict())
    assert ("4 masks start anew" in str(report)) == any("lrbm" in key for key in network.state_dict())


def test_strict_refuses_a_mask_of_another_kind():
    for old, new in (("REP3D", "REP3D_FIXED"), ("REP3D_FIXED", "REP3D"), ("REP3D", "REP3D_NONE")):
        for deploy in (False, True):
            with pytest.raises(InputError, match="does not fit the network"):
                load_weights(tiny(new, deploy=deploy), tiny(old).state_dict(), "weights.pth", strict=True)


def test_a_kernel_of_one_voxel_does_not_fit_a_large_one():
    weights = build_network("REP3D_NONE", 1, 3, ROI, **{**TINY, "kernel_size": 1}).state_dict()
    with pytest.raises(InputError, match=r"4 of another shape, such as rep3d.stages.0.0.dwconv.weight"):
        load_weights(tiny("REP3D"), weights, "weights.pth", strict=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nnUNet", {"filters": (2, 2, 4, 4, 4, 4)}),
        ("ResEncUNet", {"feat_size": (4, 8), "n_blocks": (1, 1)}),
    ],
)
def test_files_with_one_name_for_a_shared_tensor(name, options):
    source, network = (build_network(name, 1, 3, (32, 32, 64), **options) for _ in range(2))
    once = {id(value): (key, value) for key, value in source.state_dict(keep_vars=True).items()}
    weights = {key: value.detach() for key, value in once.values()}
    assert len(weights) < len(source.state_dict())
    load_weights(network, weights, "weights.pth", strict=True)
    assert_same_weights(network, source)


def test_nnformer_loads_only_the_finest_head_of_deep_supervision():
    options = {"embed_dim": 8, "num_heads": (1, 1, 2, 2)}
    source, network = (build_network("nnFormer", 1, 3, (16, 32, 32), **options) for _ in range(2))
    weights = source.state_dict()
    for stage, dim in ((1, 16), (2, 32)):  # heads of the coarser stages, as in official checkpoints
        weights[f"final.{stage}.up.weight"] = torch.ones(dim, 3, 2, 4, 4)
        weights[f"final.{stage}.up.bias"] = torch.ones(3)
    report = load_weights(network, weights, "weights.pth", strict=True)
    assert report.skipped == ("final.1.up.bias", "final.1.up.weight", "final.2.up.bias", "final.2.up.weight")
    assert torch.equal(network.final[0].up.weight, source.final[0].up.weight)


def test_reported_counts_refer_to_the_file():
    """From one channel to three, the unused linear_encoding cannot be loaded."""
    options = {"embed_dim": 16, "num_layers": 1, "mlp_dim": 16}
    source, network = (build_network("TransBTS", channels, 3, (8, 8, 16), **options) for channels in (1, 3))
    report = load_weights(network, source.state_dict(), "weights.pth")
    assert report.skipped == ("linear_encoding.weight",)
    assert report.loaded == len(source.state_dict()) - 1
    folded = tiny("REP3D", deploy=True).state_dict()
    report = load_weights(tiny("REP3D"), folded, "weights.pth")
    assert (report.loaded, report.changes) == (len(folded), ("4 masks start anew, the kernels divided by them",))
    assert load_weights(tiny("REP3D"), tiny("REP3D").state_dict(), "weights.pth").changes == ()
