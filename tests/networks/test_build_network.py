"""build_network: names, arguments, and the deployed form."""

import sys

import pytest
import torch

import networks
from networks import NETWORKS, build_network
from networks.monai_networks import MedNeXt
from networks.Rep3D import rep3d_block
from networks.RepOptimizer import csla_block
from networks.UXNet_3D import ux_block

TINY = {"depths": (1, 1, 1, 1), "feat_size": (4, 8, 12, 16)}
FOLDING = [
    *((name, {}) for name in ("REP3D", "REP3D_FIXED", "REP3D_NONE", "3DUXNET", "3DUXNET_LRBM", "REPUXNET", "REPOPT")),
    ("REPOPT", {"branches": True, "large_scale": 0.5}),
]


@pytest.mark.parametrize(("name", "mask"), [("REP3D", "gated"), ("REP3D_FIXED", "fixed"), ("REP3D_NONE", "none")])
def test_each_name_builds_its_mask(name, mask):
    network = build_network(name, 2, 5, roi_size=(32, 32, 16), **TINY, kernel_size=9)
    blocks = [module for module in network.modules() if isinstance(module, rep3d_block)]
    assert {block.kind for block in blocks} == {mask}
    assert {block.dwconv.weight.shape[2:] for block in blocks} == {(9, 9, 9)}
    assert network(torch.zeros(1, 2, 32, 32, 16)).shape == (1, 5, 32, 32, 16)


@pytest.mark.parametrize(
    ("name", "kernel", "mask"), [("3DUXNET", 7, "none"), ("3DUXNET_K21", 21, "none"), ("3DUXNET_LRBM", 21, "gated")]
)
def test_each_3d_uxnet_has_its_kernel_and_mask(name, kernel, mask):
    blocks = [module for module in build_network(name, 1, 2, **TINY).modules() if isinstance(module, ux_block)]
    assert {(block.dwconv.kernel_size, block.kind) for block in blocks} == {((kernel,) * 3, mask)}


def test_repux_prior_falls_with_alpha():
    network = build_network("REPUXNET", 1, 2, **TINY, alpha=2.0)
    assert network.encoder.stages[0][0].lrbm.prior[10, 10, 12] == pytest.approx(2 / (2 + 2))


@pytest.mark.parametrize(("name", "options"), FOLDING)
def test_a_training_checkpoint_predicts_the_same_in_the_deployed_network(name, options):
    torch.manual_seed(0)
    arguments = {"roi_size": (32, 32, 16), **TINY, "kernel_size": 5, **options}
    network = build_network(name, 1, 3, **arguments)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    deployed = build_network(name, 1, 3, deploy=True, **arguments)
    deployed.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 32, 32, 16)
    torch.testing.assert_close(deployed.eval()(x), network.eval()(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.switch_to_deploy()(x), deployed(x), rtol=1e-4, atol=1e-5)
    assert network.state_dict().keys() == deployed.state_dict().keys()


def test_a_network_without_anything_to_fold_deploys_as_it_is():
    network = build_network("UNet3D", 1, 3, deploy=True)
    keys = network.state_dict().keys()
    assert network.switch_to_deploy(fuse_norm=True).state_dict().keys() == keys


def test_csla_folds_into_the_plain_network():
    torch.manual_seed(0)
    arguments = {"roi_size": (32, 32, 16), **TINY, "kernel_size": 5, "branches": True, "small_scale": 0.5}
    network = build_network("REPOPT", 1, 3, **arguments).eval()
    assert any(isinstance(module, csla_block) for module in network.modules())
    x = torch.randn(1, 1, 32, 32, 16)
    expected = network(x)
    plain = build_network("REP3D_NONE", 1, 3, (32, 32, 16), **TINY, kernel_size=5).eval()
    plain.load_state_dict(network.switch_to_deploy().state_dict())
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)
    again = build_network("REPOPT", 1, 3, **arguments, large_scale=2.0).eval()
    again.load_state_dict(plain.state_dict())
    torch.testing.assert_close(again(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("REP4D", {}, f"network: found 'REP4D', expected one of {', '.join(NETWORKS)}"),
        ("REP3D", {"dropout": 0.5}, "REP3D: found argument dropout, expected some of .*feat_size"),
        ("REP3D", {"mask": "none"}, "REP3D: found argument mask, expected some of"),
        (
            "REP3D",
            {"kernelsize": 7},
            "REP3D: found argument kernelsize, expected some of .* kernel_size, le",
        ),
        ("MedNeXt_S", {"size": "L"}, "MedNeXt_S: found argument size, expected some of channels, kernel_size"),
        ("REP3D", {"roi_size": (96, 96, 90)}, "found 96 x 96 x 90"),
        ("REP3D", {"kernel_size": 8}, "found 8, expected an odd"),
        ("REP3D", {"kernel_size": 7, "ks": 7}, "REP3D: found both kernel_size and ks"),
        ("UNETR", {"proj_type": "linear"}, r"^UNETR: .*'linear'.*Available options are .*'\}\.$"),
        ("UNETR", {"kernel_size": 7}, "UNETR: found argument kernel_size, expected some of dropout_rate, feature_size"),
        ("MedNeXt_S", {"kernel_size": 7}, "kernel_size: found 7, expected 3 or 5"),
        ("REPOPT", {"kernel_size": 3, "small_ks": 5}, "small_ks: found 5, expected at most ks, 3"),
        ("REPOPT", {"field": "csla", "start": "plain", "small_ks": 2}, "small_ks: found 2, expected an odd positive"),
        ("REPOPT", {"branches": True, "deploy": True, "small_ks": -1}, "small_ks: found -1, expected an odd positive"),
        ("REP3D_NONE", {"deploy": True, "generator_depth": 0}, "generator_depth: found 0, expected at least 1"),
        ("REPOPT", {"small_scale": 0.0}, "small_scale: found 0.0, expected a finite positive number"),
        ("REPOPT", {"large_scale": float("nan")}, "large_scale: found nan, expected a finite positive number"),
        ("REPOPT", {"small_rate": -1.0}, "small_rate: found -1.0, expected a finite positive number"),
        ("REPOPT", {"field": "spiral"}, "field: found 'spiral', expected csla or prior or uniform"),
        ("REPOPT", {"branches": True, "field": "prior"}, "branches: found true with field prior and start csla"),
        (
            "REPOPT",
            {"field": "prior", "start": "plain", "small_rate": 2.0},
            "found constants of branches with field prior",
        ),
        (
            "REP3D_FIXED",
            {"product": "summed"},
            "product: found 'summed', expected functional or compounding or published",
        ),
        (
            "HyenaNDUNETR",
            {"hyena_stages": [True, False]},
            r"hyena_stages: found \(True, False\), expected 4 of true or false",
        ),
        ("UNet3D", {"channels": (8, 16)}, r"channels: found \(8, 16\), expected 5 positive numbers"),
        ("UNet3D", {"num_res_units": 0}, "num_res_units: found 0, expected a positive number"),
        ("nnUNet", {"filters": (8, 16)}, r"filters: found \(8, 16\), expected four or more positive numbers"),
        ("ResEncUNet", {"feat_size": (8, 16)}, r"feat_size: found \(8, 16\), expected 6 positive numbers"),
        ("ResEncUNet", {"n_blocks": ()}, "n_blocks: found 0, expected a positive number"),
        ("SwinUNETR", {"window_size": 0}, "window_size: found 0, expected a positive number"),
        ("SwinUNETR", {"depths": (2, 2)}, r"depths: found \(2, 2\), expected 4 positive numbers"),
        ("SwinUNETR", {"feature_size": 13}, "feature_size: found 13, expected a multiple of 12"),
        ("SwinUNETR", {"num_heads": (5, 6, 12, 24)}, r"num_heads: found \(5, .*, expected divisors of .*\(48, 96, 192"),
        ("UNETR", {"hidden_size": 0}, "hidden_size: found 0, expected a positive number"),
    ],
)
def test_build_network_refuses_invalid_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, 1, 3, **options)


def test_a_missing_optional_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    with pytest.raises(ValueError, match=r"found no package dynamic-network-architectures.*pip install"):
        build_network("ResEncUNet", 1, 3)


def test_a_missing_package_of_hyena_is_named(monkeypatch):
    monkeypatch.setattr("networks.monai_networks.is_nvsubquadratic_available", lambda: False)
    with pytest.raises(ValueError, match=r"found no package nvsubquadratic.*pip install --no-deps"):
        build_network("HyenaNDUNETR", 1, 2)
    build_network("SwinUNETR", 1, 2, feature_size=12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("counts", [(0, 3), (1, 0), (-1, 3)])
def test_no_channels_or_classes_are_refused(name, counts):
    with pytest.raises(ValueError, match=r"_chans: found (0|-1), expected a positive number"):
        build_network(name, *counts)


def test_resenc_unet_starts_as_nnunet_starts_it():
    """Kaiming normal with slope 0.01 and zero biases; each residual branch starts at zero."""
    torch.manual_seed(0)
    network = build_network("ResEncUNet", 1, 3, (32, 32, 32), feat_size=(32, 32, 32), n_blocks=(1, 1, 1))
    branch = network.encoder.stages[1].blocks[0].conv2
    assert branch.conv.weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (32 * 27)) ** 0.5, rel=0.05)
    assert not branch.conv.bias.any()
    assert not branch.norm.weight.any()


def test_mednext_comes_in_four_sizes():
    with pytest.raises(ValueError, match="size: found 'XL', expected one of S, B, M, L"):
        MedNeXt(size="XL")


def test_a_network_knows_the_arguments_that_built_it():
    network = build_network("REP3D", 2, 3, (32, 32, 16), deploy=True, feat_size=(4, 4, 4, 4), kernel_size=5)
    sizes = {"in_chans": 2, "out_chans": 3, "roi_size": [32, 32, 16]}
    assert network.config == {"network": "REP3D", **sizes, "overrides": {"feat_size": (4, 4, 4, 4), "kernel_size": 5}}


def test_the_package_has_no_other_names():
    assert not hasattr(networks, "load_pretrained")
    assert set(networks.__all__) <= set(vars(networks)) | {"from_pretrained", "save_pretrained"}
    assert all(hasattr(networks, name) for name in networks.__all__)
