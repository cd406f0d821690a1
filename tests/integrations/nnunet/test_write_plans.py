"""The command that writes plans for nnU-Net."""

import importlib
import json

import pytest
from conftest import assert_one_line
from nnunet_plans import SMALL, make_configuration, make_plans

NEW = "nnUNetRep3DPlans.json"


@pytest.fixture(scope="module")
def command(rep3d):
    return importlib.import_module("rep3d.nnunet.write_plans")


@pytest.fixture
def write(command, capsys, tmp_path):
    """Run the command on the plans in ``tmp_path``; returns (exit status, stdout, stderr)."""

    def run(*words):
        status = 0
        try:
            command.run(command.main, command.parse_args(["--folder", str(tmp_path), *map(str, words)]))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def plans(tmp_path):
    """Plans with configurations of all kinds, written to ``tmp_path``."""
    low, full = (make_configuration(patch) for patch in ([40, 56, 40], [96, 160, 160]))
    content = make_plans(
        **{"2d": make_configuration([56, 40]), "3d_lowres": {**low, "next_stage": "3d_cascade_fullres"}},
        **{"3d_fullres": full, "3d_big": {"inherits_from": "3d_fullres", "batch_size": 7}},
        **{"3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}},
    )
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(content))
    return content


def test_new_plans_differ_in_network_and_patch_only(write, command, plans, tmp_path):
    status, out, _ = write("--network_args", "kernel_size=5", "feat_size=[4,4,4,4]", "norm_name=batch")
    assert status == 0
    new = json.loads((tmp_path / NEW).read_text())
    assert {**new, "configurations": {}} == {**plans, "configurations": {}, "plans_name": "nnUNetRep3DPlans"}
    assert set(new["configurations"]) == {"3d_lowres", "3d_fullres", "3d_big"}
    low, big = (new["configurations"][name] for name in ("3d_lowres", "3d_big"))
    arguments = {"network": "REP3D", "patch_size": [48, 64, 48], "kernel_size": 5, "feat_size": [4, 4, 4, 4]}
    assert low == {
        "data_identifier": "nnUNetPlans_3d",  # so nothing is preprocessed again
        "batch_size": 2,
        "batch_dice": False,
        "patch_size": [48, 64, 48],
        "architecture": {
            "network_class_name": command.CLASS,
            "arch_kwargs": {**arguments, "norm_name": "batch"},
            "_kw_requires_import": [],
        },
    }
    assert (big["patch_size"], big["batch_size"], "inherits_from" in big) == ([96, 160, 160], 7, False)
    assert "48 x 64 x 48 voxels (Z, Y, X) instead of 40 x 56 x 40" in out
    assert "96 x 160 x 160 voxels (Z, Y, X), 2 in a batch" in out
    assert "2d: left out, the networks are 3D" in out
    assert "3d_cascade_fullres: left out, cascades" in out


def test_nnunet_reads_them(write, command, plans, tmp_path):
    write("--network_args", *(f"{name}={json.dumps(value)}" for name, value in SMALL.items()))
    handler = importlib.import_module("nnunetv2.utilities.plans_handling.plans_handler")
    read = handler.PlansManager(str(tmp_path / NEW)).get_configuration("3d_big")
    assert (read.batch_size, read.patch_size, read.next_stage_names) == (7, [96, 160, 160], None)
    assert (read.network_arch_class_name, read.data_identifier) == (command.CLASS, "nnUNetPlans_3d")


def test_flags_choose_network_patch_batch_and_name(write, plans, tmp_path):
    flags = ("--network", "3DUXNET", "--patch_size", 32, 48, 64, "--batch_size", 4, "--name", "UXPlans")
    assert write(*flags)[0] == 0
    new = json.loads((tmp_path / "UXPlans.json").read_text())
    chosen = [content["architecture"]["arch_kwargs"] for content in new["configurations"].values()]
    assert chosen == 3 * [{"network": "3DUXNET", "patch_size": [32, 48, 64]}]
    assert {content["batch_size"] for content in new["configurations"].values()} == {4}
    assert write("--plans", "UXPlans")[0] == 0  # from plans of the command itself
    new = json.loads((tmp_path / NEW).read_text())
    assert new["configurations"]["3d_big"]["architecture"]["arch_kwargs"]["network"] == "REP3D"


def test_existing_plans_are_kept_unless_told_otherwise(write, plans, tmp_path):
    (tmp_path / NEW).write_text("mine")
    assert_one_line(write(), "--name", NEW, "--overwrite")
    assert (tmp_path / NEW).read_text() == "mine"
    assert write("--overwrite")[0] == 0
    assert json.loads((tmp_path / NEW).read_text())["plans_name"] == "nnUNetRep3DPlans"


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--folder", "/nowhere"), ("/nowhere/nnUNetPlans.json", "No such file")),
        (("--plans", "other"), ("other.json",)),
        (("--name", "nnUNetPlans"), ("--name", "nnUNetPlans", "another")),
        (("--name", "a__b"), ("--name", "a__b")),
        (("--name", "../plans"), ("--name", "../plans")),
        (("--patch_size", "40", "56", "40"), ("40 x 56 x 40", "48 x 64 x 48")),
        (("--patch_size", "0", "16", "16"), ("--patch_size", "'0'")),
        (("--batch_size", "two"), ("--batch_size", "'two'")),
        (("--network", "REP4D"), ("REP4D", "REP3D")),
        (("--network_args", "kernel_size=4"), ("REP3D", "4", "odd")),
        (("--network_args", "colour=red"), ("colour", "feat_size")),
        (("--network_args", "deploy=true"), ("--network_args", "found deploy,")),
        (("--network_args", "roi_size=[32,32,32]"), ("--network_args", "found roi_size,")),
        (("--patch_size", 32, 32, 32, "--network_args", "patch_size=[48,48,48]"), ("found patch_size,",)),
        (("--patch_size", 32, 32, 32, "--network_args", "network=3DUXNET", "name=a"), ("found name, network,",)),
        (("--patch_size", 32, 32, 32, "--network_args", "input_channels=2"), ("found input_channels,",)),
        (("--patch_size", 32, 32, 32, "--network_args", "deep_supervision=false"), ("found deep_supervision,",)),
        (("--network_args", "feat_size=[1000000000,4,4,4]"), ("1000000000",)),
        (("--network_args", "kernel_size"), ("--network_args", "NAME=VALUE")),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(write, plans, tmp_path, flags, parts):
    assert_one_line(write(*flags), *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["nnUNetPlans.json"]


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"configurations": []}', '{"configurations": {"3d_fullres": 3}}'),
        *('{"configurations": {"3d_fullres": {"inherits_from": "3d_fullres"}}}', '{"configurations": {}}'),
        json.dumps(make_plans(**{"2d": make_configuration([56, 40])})),
    ],
)
def test_files_that_are_no_plans_are_one_line(write, tmp_path, content):
    (tmp_path / "nnUNetPlans.json").write_text(content)
    assert_one_line(write(), tmp_path / "nnUNetPlans.json", "expected")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_one_line(write, plans, tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr("os.replace", fail)
    assert_one_line(write(), f"--folder: {tmp_path / NEW} cannot be written (Permission denied)")
    assert [path.name for path in tmp_path.iterdir()] == ["nnUNetPlans.json"]
