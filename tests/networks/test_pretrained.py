"""Networks come back from files as they were; files that are damaged or of another program are refused in one line."""

import importlib
import json
import os
import shutil
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from smallest import build_narrow, smallest_input

from networks import NETWORKS, build_network, from_pretrained, pretrained, save_pretrained

DESCRIPTION = {"name": "boxes", "labels": {"background": 0, "left": 1, "right": 2}, "spacing": [1.0, 1.0, 2.5]}
UNKNOWN = {"network": "REP4D", "in_chans": 1, "out_chans": 3, "roi_size": [32, 32, 16], "overrides": {}}
FOLDING = ("REP3D", "REP3D_FIXED", "3DUXNET_LRBM", "REPUXNET")  # networks whose deployed form differs
TINY = {"feat_size": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "kernel_size": 5}


def randomise(network):
    """Make all normalisation statistics and masks matter, in evaluation mode."""
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.1)
    return network.eval()


def build_tiny(name="REP3D", **arguments):
    torch.manual_seed(0)
    return randomise(build_network(name, 1, 3, (32, 32, 16), **TINY, **arguments))


@pytest.fixture
def saved(tmp_path):
    save_pretrained(build_tiny(), tmp_path / "saved", DESCRIPTION)
    return tmp_path / "saved"


def predict(network, name="REP3D"):
    torch.manual_seed(1)
    with torch.no_grad():
        return network(torch.randn(1, 1, *smallest_input(name)))


@pytest.mark.parametrize(
    ("name", "deploy"), [*((name, False) for name in NETWORKS), *((name, True) for name in FOLDING)]
)
def test_every_network_comes_back_in_its_form(name, deploy, tmp_path):
    torch.manual_seed(0)
    network = randomise(build_narrow(name))
    if deploy:
        network.switch_to_deploy()
    save_pretrained(network, tmp_path / "saved", DESCRIPTION)
    found = from_pretrained(tmp_path / "saved")
    assert not found.training
    assert (found.config["network"], found.description) == (name, DESCRIPTION)
    own, other = network.state_dict(), found.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)
    assert torch.equal(predict(found, name), predict(network, name))
    save_pretrained(found, tmp_path / "again")  # with the description that it has
    first, second = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("saved", "again"))
    assert first == second


def test_the_forms_are_told_apart(tmp_path):
    for name in ("REP3D", "REP3D_FIXED", "REPOPT"):
        network = build_tiny(name, **({"branches": True} if name == "REPOPT" else {}))
        assert pretrained.settings_of(network)["deploy"] is False
        assert pretrained.settings_of(network.switch_to_deploy())["deploy"] is True
    network.switch_to_deploy(fuse_norm=True)
    with pytest.raises(ValueError, match="found other weights than its config builds"):
        save_pretrained(network, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_network_as_prediction_places_it(tmp_path):
    from engine.runtime.devices import to_device

    network = to_device(build_tiny(deploy=True), torch.device("cpu"), "channels_last")
    assert not all(value.is_contiguous() for value in network.state_dict().values())
    save_pretrained(network, tmp_path / "saved")
    torch.testing.assert_close(predict(from_pretrained(tmp_path / "saved")), predict(network))


def test_the_weights_alone_are_enough(saved, tmp_path):
    shutil.copy(saved / "model.safetensors", tmp_path / "alone.safetensors")
    found = from_pretrained(tmp_path / "alone.safetensors")
    assert found.description == DESCRIPTION
    assert torch.equal(predict(found), predict(build_tiny()))
    (tmp_path / "config.json").write_text("that of another program")
    assert from_pretrained(tmp_path / "alone.safetensors").description == DESCRIPTION


def test_config_json_is_enough_beside_weights_without_metadata(saved):
    save_file(load_file(saved / "model.safetensors"), saved / "model.safetensors")
    assert from_pretrained(saved).description == DESCRIPTION
    (saved / "config.json").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors does not describe its network"):
        from_pretrained(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, saved, tmp_path):
    network = build_tiny()
    save_pretrained(network, tmp_path / "half", dtype=dtype)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", saved)]
    assert sizes[0] < 0.6 * sizes[1]
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["rep3d.stages.0.0.dwconv.weight"].dtype == dtype
    assert stored["rep3d.stages.0.0.norm.running_var"].dtype == torch.float32
    found = from_pretrained(tmp_path / "half")
    assert {value.dtype for value in found.parameters()} == {torch.float32}
    expected = predict(network)
    assert 0 < (predict(found) - expected).abs().max() < 10 * torch.finfo(dtype).eps * expected.abs().max()


def test_a_weight_beyond_half_precision(tmp_path):
    network = build_tiny()
    network.out.conv.conv.weight.data[0] = 1e5
    with pytest.raises(ValueError, match=r"larger values in out\.conv\.conv\.weight, expected torch\.bfloat16"):
        save_pretrained(network, tmp_path / "half", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn, "float16"])
def test_other_types_of_weights_are_refused(dtype, tmp_path):
    with pytest.raises(ValueError, match=r"dtype: found .*, expected torch\.float32, torch\.float16, torch\.bfloat16"):
        save_pretrained(build_tiny(), tmp_path / "saved", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_the_card_as_the_hub_reads_it(saved, tmp_path):
    save_pretrained(build_tiny(deploy=True), tmp_path / "deployed", DESCRIPTION, license="cc-by-4.0")
    card = huggingface_hub.ModelCard.load(tmp_path / "deployed" / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "rep3d")
    assert (card.data.pipeline_tag, "medical" in card.data.tags) == ("image-segmentation", True)
    assert "# REP3D for boxes" in card.text
    assert "2.5" in card.text
    assert "folded" in card.text
    plain = huggingface_hub.ModelCard.load(saved / "README.md")
    assert plain.data.license == "unknown"
    assert "folded" not in plain.text


@pytest.mark.parametrize("name", ["CC BY 4.0", "", "MIT\n", "MIT"])
def test_what_is_no_name_of_a_licence(name, tmp_path):
    with pytest.raises(ValueError, match=r"license: found '.*', expected a name of the Hub"):
        save_pretrained(build_tiny(), tmp_path / "saved", license=name)
    assert list(tmp_path.iterdir()) == []


def test_the_layout_of_the_hub(saved):
    assert {path.name for path in saved.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((saved / "config.json").read_text())["config"]
    assert config.keys() == {"network", "in_chans", "out_chans", "roi_size", "overrides"}


@pytest.mark.parametrize("content", ["folder", "file"])
def test_nothing_is_overwritten(content, tmp_path):
    path = tmp_path / "mine"
    if content == "folder":
        path.mkdir()
        path = path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ValueError, match="mine exists, expected a new or an empty folder"):
        save_pretrained(build_tiny(), tmp_path / "mine")
    assert path.read_text() == "mine"


def test_an_empty_folder_is_filled_and_the_rest_of_a_killed_call_removed(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / ".saved.part").mkdir()
    (tmp_path / ".saved.part" / "rest").write_text("")
    save_pretrained(build_tiny(), tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert not (tmp_path / "saved" / "rest").exists()


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "write_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_pretrained(build_tiny(), tmp_path / "deep" / "saved")
    assert list((tmp_path / "deep").iterdir()) == []


def test_networks_that_cannot_be_described(tmp_path):
    module = importlib.import_module("networks.Rep3D")
    with pytest.raises(ValueError, match="found a REP3D without config, expected one of build_network"):
        save_pretrained(module.REP3D(1, 3, ks=5), tmp_path / "new")
    for other in (torch.nn.DataParallel(build_tiny()), torch.compile(build_tiny()), torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=f"found a {type(other).__name__} without config, expected one of build"):
            save_pretrained(other, tmp_path / "new")
    with pytest.raises(ValueError, match="JSON does not have"):
        save_pretrained(build_tiny(), tmp_path / "new", {"spacing": torch.ones(3)})


DAMAGES = {
    "truncated": lambda content: content[:-7],
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a bit in the weights": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "the description": lambda content: content.replace(b"2.5", b"3.5"),
    "a huge header": lambda content: (2**40).to_bytes(8, "little") + content[8:],
    "text": lambda content: b"no weights, but a text",
    "more bytes": lambda content: content + b"more",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_files(damage, saved):
    path = saved / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged.*expected") as error:
        from_pretrained(saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(deploy=True), r"config\.json differs from the metadata"),
        (lambda config: config["config"].update(in_chans=2), r"config\.json differs from the metadata"),
        (lambda config: config.clear(), r"config\.json differs from the metadata"),
    ],
)
def test_a_config_that_contradicts_the_weights(change, message, saved):
    config = json.loads((saved / "config.json").read_text())
    change(config)
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        from_pretrained(saved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "config.json cannot be read"),
        ("[]", "does not describe its network"),
        ('{"config": {}}', "does not describe its network"),
        ('{"config": {"network": "REP3D"}, "deploy": false}', "does not describe its network"),
        ('{"config": [], "deploy": false}', "does not describe its network"),
        (json.dumps({"config": UNKNOWN, "deploy": False}), r"model\.safetensors: network: found 'REP4D'"),
    ],
)
def test_a_config_of_another_program(settings, message, saved):
    save_file(load_file(saved / "model.safetensors"), saved / "model.safetensors")
    (saved / "config.json").write_text(settings)
    with pytest.raises(ValueError, match=message):
        from_pretrained(saved)


def test_a_config_of_a_network_that_fits_in_no_memory(saved):
    save_file(load_file(saved / "model.safetensors"), saved / "model.safetensors")
    huge = {"config": {**UNKNOWN, "network": "REP3D", "out_chans": 10**15}, "deploy": False}
    (saved / "config.json").write_text(json.dumps(huge))
    with pytest.raises(ValueError, match=r"model\.safetensors describes a network that cannot be built: .*memory"):
        from_pretrained(saved)


def test_weights_of_another_network(saved):
    weights = load_file(saved / "model.safetensors")
    weights.pop("out.conv.conv.bias")
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the network of its description: .*out\.conv\.conv\.bias"):
        from_pretrained(saved)


def test_what_is_no_folder_of_a_network(tmp_path):
    (tmp_path / "weights.pth").write_text("")
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"found no such file, expected a folder with model\.safetensors"):
            from_pretrained(path)
    with pytest.raises(
        ValueError, match=r"weights\.pth: found another kind of file, .*tools\.export --format safetens"
    ):
        from_pretrained(tmp_path / "weights.pth")


@pytest.fixture
def hub(monkeypatch, saved):
    """Hub with the repository user/boxes; records the requests."""
    requests = []

    def download(name, revision, allow_patterns):
        requests.append((name, revision, sorted(allow_patterns)))
        if name != "user/boxes":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no\nnetwork")
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return requests


def test_a_repository_of_the_hub(hub):
    assert from_pretrained("user/boxes", revision="v1").description == DESCRIPTION
    assert hub == [("user/boxes", "v1", ["config.json", "model.safetensors"])]
    with pytest.raises(ValueError, match="user/other: found no such folder, and none on the Hub: no network"):
        from_pretrained("user/other")


def test_folders_are_not_downloaded(hub, saved, tmp_path, monkeypatch):
    (tmp_path / "user").mkdir()
    shutil.copytree(saved, tmp_path / "user" / "boxes")
    monkeypatch.chdir(tmp_path)
    from_pretrained("user/boxes")
    for name in ("boxes", "./user/other", os.path.join("a", "b", "c"), "user/model.safetensors"):
        with pytest.raises(ValueError, match="found no such file"):
            from_pretrained(name)
    assert hub == []


def test_missing_packages(saved, tmp_path, monkeypatch):
    network = build_tiny()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"found no package huggingface_hub, .* pip install huggingface_hub"):
        from_pretrained("user/boxes")
    assert from_pretrained(saved).description == DESCRIPTION  # a folder does not need it
    for module in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"found no package safetensors, .* pip install safetensors"):
        from_pretrained(saved)
    with pytest.raises(ImportError, match=r"found no package safetensors"):
        save_pretrained(network, tmp_path / "new")
    assert not (tmp_path / "new").exists()
