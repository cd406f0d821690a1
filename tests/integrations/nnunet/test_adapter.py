"""Networks behind the interface by which nnU-Net builds them."""

import importlib

import pytest
import torch
from nnunet_plans import SMALL

from networks import NETWORKS, build_network

LARGE_KERNELS = ["REP3D", "REP3D_FIXED", "REP3D_NONE", "3DUXNET", "3DUXNET_K21", "3DUXNET_LRBM", "REPUXNET"]


@pytest.fixture(scope="module")
def adapter(rep3d):
    return importlib.import_module("rep3d.nnunet.adapter")


@pytest.fixture(scope="module")
def get_network_from_plans():
    return importlib.import_module("nnunetv2.utilities.get_network_from_plans").get_network_from_plans


@pytest.mark.parametrize("network", LARGE_KERNELS)
def test_nnunet_builds_every_large_kernel_network_with_its_own_initialisation(adapter, get_network_from_plans, network):
    arguments = {"network": network, "patch_size": [16, 32, 16], **SMALL}
    torch.manual_seed(0)
    built = get_network_from_plans(adapter.CLASS, arguments, [], 2, 3, allow_init=True, deep_supervision=False)
    torch.manual_seed(0)
    expected = build_network(network, 2, 3, (16, 32, 16), **SMALL).state_dict()
    assert {name.removeprefix("model.") for name in built.state_dict()} == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(built.state_dict()[f"model.{name}"], value, rtol=0, atol=0)
    image = torch.zeros(2, 2, 16, 32, 16)
    assert built(image).shape == (2, 3, 16, 32, 16)
    built.decoder.deep_supervision = True  # nnU-Net's last act after the validation
    assert built(image).shape == (2, 3, 16, 32, 16)


def test_every_network_can_be_served_at_the_patch_that_is_proposed_for_it(adapter):
    for network in NETWORKS:
        patch = adapter.nearest_patch((90, 100, 110), network, {})
        with torch.device("meta"):
            assert adapter.NetworkFromPlans(1, 3, patch, network).model.out_chans == 3


@pytest.mark.parametrize(
    ("patch", "nearest"),
    [
        ((40, 56, 40), (48, 64, 48)),  # nnU-Net's for the hippocampus
        ((96, 96, 96), (96, 96, 96)),
        ((28, 256, 200), (32, 256, 208)),
        ((1, 16, 20), (16, 16, 32)),  # one side of 32 voxels, the widest
        ((7, 7, 7), (32, 16, 16)),
    ],
)
def test_the_nearest_patch(adapter, patch, nearest):
    assert adapter.nearest_patch(patch, "REP3D", {}) == nearest
    adapter.check_patch(nearest, "REP3D", {})


def test_other_networks_have_other_patches(adapter):
    assert adapter.nearest_patch((40, 56, 40), "SwinUNETR", {}) == (32, 64, 32)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"patch_size": (40, 56, 40)}, ("40 x 56 x 40", "REP3D", "48 x 64 x 48", "rep3d.nnunet.write_plans")),
        ({"patch_size": (56, 40)}, ("56 x 40", "three sides")),
        ({"deep_supervision": True}, ("deep supervision", "nnUNetTrainerNoDeepSupervision")),
        ({"network": "REP4D"}, ("REP4D", "REP3D_FIXED")),
        ({"strides": [2, 2]}, ("strides", "feat_size")),
        ({"in_chans": 2}, ("in_chans",)),
        ({"kernel_size": 4}, ("4", "odd")),
    ],
)
def test_what_the_networks_cannot_do_is_one_line(adapter, arguments, parts):
    errors = importlib.import_module("rep3d.nnunet.errors")
    with pytest.raises(errors.PlansError) as raised:
        adapter.NetworkFromPlans(1, 3, **{"patch_size": (32, 32, 32), **arguments})
    assert "\n" not in str(raised.value)
    assert all(part in str(raised.value) for part in parts), raised.value


def test_weights_of_a_training_form_load_folded_into_the_deployed_one(adapter):
    torch.manual_seed(0)
    trained = adapter.NetworkFromPlans(1, 3, (16, 32, 16), **SMALL).eval()
    deployed = adapter.NetworkFromPlans(1, 3, (16, 32, 16), deploy=True, **SMALL).eval()
    deployed.load_state_dict(trained.state_dict())
    assert len(deployed.state_dict()) < len(trained.state_dict())
    image = torch.randn(1, 1, 16, 32, 16)
    torch.testing.assert_close(deployed(image), trained(image))


def test_it_compiles_as_nnunet_does_on_a_gpu(adapter):
    torch.manual_seed(0)
    network = adapter.NetworkFromPlans(1, 3, (16, 32, 16), **SMALL).eval()
    image = torch.randn(1, 1, 16, 32, 16)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager")
    torch.testing.assert_close(compiled(image), network(image))
    compiled._orig_mod.decoder.deep_supervision = True
    torch.testing.assert_close(compiled(image), network(image))
