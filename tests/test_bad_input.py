"""Every mistake gives one line that names the file or flag, exit status 2, and no training."""

import gzip
import json
import pickle
import re
import resource
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TRAINED, train_arguments, write_nifti

from engine import training_loop


def assert_one_line(result, *parts):
    """Exit status 2, one line on stderr with every one of ``parts``; progress bars wipe themselves out."""
    status, _, err = result
    lines = [line for line in re.split("[\r\n]|\x1b\\[A", err) if line.strip() and "%|" not in line]
    assert status == 2, err
    assert len(lines) == 1, err
    assert all(str(part) in lines[0] for part in parts), lines[0]


def damage_image(change):
    """Rewrite the first validation image with changed voxels and affine."""

    def apply(root):
        path = root / "imagesVal" / "box_8.nii.gz"
        image = nib.load(path)
        voxels, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
        write_nifti(path, voxels, affine)

    return apply


def damage_label(change):
    """Rewrite the first training label with changed voxels."""

    def apply(root):
        path = root / "labelsTr" / "box_0.nii.gz"
        write_nifti(path, change(np.asarray(nib.load(path).dataobj).copy()))

    return apply


def put(value):
    def change(voxels, affine):
        voxels[3, 4, 5] = value
        return voxels, affine

    return change


def shift(voxels, affine):
    affine[0, 3] += 5
    return voxels, affine


def flatten_affine(root):
    path = root / "imagesVal" / "box_8.nii.gz"
    image = nib.load(path)
    image.header["srow_z"] = 0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)


def truncate(root):
    path = root / "imagesTr" / "box_1.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])


def empty(folder):
    def apply(root):
        for path in (root / folder).iterdir():
            path.unlink()

    return apply


def remove(folder):
    def apply(root):
        empty(folder)(root)
        (root / folder).rmdir()

    return apply


def label_with(value, dtype):
    def change(voxels):
        changed = voxels.astype(dtype)
        changed[0, 0, 0] = value
        return changed

    return damage_label(change)


def rewrite_header(**fields):
    """Change fields of the first validation image's header, and of its label's, which so stays on the same grid."""

    def apply(root):
        for folder in ("imagesVal", "labelsVal"):
            path = root / folder / "box_8.nii.gz"
            content = bytearray(gzip.decompress(path.read_bytes()))
            header = np.frombuffer(content, nib.Nifti1Header.template_dtype, 1)
            for name, value in fields.items():
                header[name] = value
            path.write_bytes(gzip.compress(content))

    return apply


def cut_uncompressed(root):
    path = root / "imagesTr" / "box_1.nii.gz"
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes())[:-1])
    path.unlink()


def link_into_training(root):
    for kind in ("images", "labels"):
        (root / f"{kind}Tr" / "other.nii.gz").symlink_to(root / f"{kind}Val" / "box_9.nii.gz")


def copy_into_training(root):
    for kind in ("images", "labels"):
        image = nib.load(root / f"{kind}Val" / "box_9.nii.gz")
        nib.save(image, root / f"{kind}Tr" / "other.nii")


BROKEN_HEADERS = {
    "missing root": (shutil.rmtree, ("boxes", "imagesTr", "not found", "expected")),
    "missing folder": (remove("labelsVal"), ("labelsVal", "not found", "expected")),
    "empty folder": (empty("imagesTr"), ("imagesTr", "no volume", "expected")),
    "image without label": (lambda root: (root / "labelsTr" / "box_2.nii.gz").unlink(), ("box_2", "without a label")),
    "label without image": (lambda root: (root / "imagesVal" / "box_9.nii.gz").unlink(), ("box_9", "without an image")),
    "two files of one id": (
        lambda root: nib.save(nib.load(root / "imagesTr" / "box_0.nii.gz"), root / "imagesTr" / "box_0.nii"),
        ("box_0", "twice"),
    ),
    "shape mismatch": (damage_image(lambda v, a: (v[:-1], a)), ("labelsVal/box_8", "36 x 28 x 18", "35 x 28 x 18")),
    "affine mismatch": (damage_image(shift), ("labelsVal/box_8", "5 mm", "same affine")),
    "singular affine": (flatten_affine, ("imagesVal/box_8", "affine")),
    "not NIfTI": (
        lambda root: (root / "imagesTr" / "box_1.nii.gz").write_bytes(b"hello"),
        ("imagesTr/box_1", "cannot be read"),
    ),
    "4D": (damage_image(lambda v, a: (np.stack([v, v], -1), a)), ("imagesVal/box_8", "4D", "expected a 3D")),
    "2D": (damage_image(lambda v, a: (v[..., 0], a)), ("imagesVal/box_8", "2D", "expected a 3D")),
    "complex voxels": (damage_image(lambda v, a: (v.astype(np.complex64), a)), ("imagesVal/box_8", "complex64")),
    "cut off": (cut_uncompressed, ("imagesTr/box_1.nii", "72927 bytes", "expected the 72928")),
    "far too coarse": (
        rewrite_header(srow_x=(1e3, 0, 0, 0), srow_y=(0, 1e3, 0, 0), srow_z=(0, 0, 1e3, 0)),
        ("imagesVal/box_8", "1000 x 1000 x 1000 mm", "expected at most"),
    ),
    "a validation case in training": (link_into_training, ("imagesTr/other", "imagesVal/box_9", "two splits")),
}

BROKEN_VOXELS = {
    "truncated": (truncate, ("imagesTr/box_1", "cannot be read", "expected a whole NIfTI")),
    "NaN": (damage_image(put(np.nan)), ("imagesVal/box_8", "1 NaN or infinite")),
    "infinite": (damage_image(put(np.inf)), ("imagesVal/box_8", "1 NaN or infinite")),
    "undeclared class": (label_with(7, np.uint8), ("labelsTr/box_0", "values 7", "from 0 to 2")),
    "a class that uint8 would wrap": (label_with(257, np.int16), ("labelsTr/box_0", "values 257", "from 0 to 2")),
    "negative class": (label_with(-1, np.int16), ("labelsTr/box_0", "values -1", "from 0 to 2")),
    "fractional label": (label_with(1.5, np.float32), ("labelsTr/box_0", "values 1.5", "whole numbers")),
    "NaN label": (label_with(np.nan, np.float32), ("labelsTr/box_0", "values nan")),
}


@pytest.mark.parametrize(("damage", "parts"), BROKEN_HEADERS.values(), ids=BROKEN_HEADERS)
def test_what_headers_show_is_found_before_anything_is_written(boxes, tmp_path, train, damage, parts):
    description = shutil.move(boxes / "boxes.json", tmp_path)
    damage(boxes)
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", "--dataset", description)), *parts)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("damage", "parts"),
    [*BROKEN_VOXELS.values(), (copy_into_training, ("imagesTr/other.nii", "imagesVal/box_9", "two splits"))],
    ids=[*BROKEN_VOXELS, "a copy of a validation case in training"],
)
def test_what_voxels_show_is_found_first_if_asked_for(boxes, tmp_path, train, damage, parts):
    damage(boxes)
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", "--full_check")), *parts)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("damage", "parts"), BROKEN_VOXELS.values(), ids=BROKEN_VOXELS)
def test_broken_voxels_are_one_line_where_they_are_met(boxes, tmp_path, train, damage, parts):
    damage(boxes)
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out")), *parts)


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("cache", ["--cache_rate", "--cache_dir"])
def test_broken_voxels_are_one_line_whoever_meets_them(boxes, tmp_path, train, cache, workers):
    truncate(boxes)
    where = (cache, tmp_path / "cache" if cache == "--cache_dir" else "0", "--num_workers", workers)
    arguments = train_arguments(boxes, tmp_path / "out", *where)
    assert_one_line(train(*arguments), "imagesTr/box_1", "cannot be read", "expected a whole NIfTI")


def test_every_broken_case_has_its_line(boxes, tmp_path, train):
    truncate(boxes)
    label_with(7, np.uint8)(boxes)
    damage_image(put(np.nan))(boxes)
    status, _, err = train(*train_arguments(boxes, tmp_path / "out", "--full_check"))
    assert status == 2
    found = [line.split(": ")[1] for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    expected = ["labelsTr/box_0.nii.gz", "imagesTr/box_1.nii.gz", "imagesVal/box_8.nii.gz"]
    assert found == [str(boxes / name) for name in expected]


def test_everything_that_does_not_pair_has_its_line(boxes, tmp_path, train):
    (boxes / "labelsTr" / "box_2.nii.gz").unlink()
    (boxes / "imagesVal" / "box_9.nii.gz").unlink()
    status, _, err = train(*train_arguments(boxes, tmp_path / "out"))
    assert status == 2
    assert ["box_2 without a label" in err, "box_9 without an image" in err] == [True, True]


def test_float_labels_that_hold_whole_numbers_are_fine(boxes, tmp_path, train):
    damage_label(lambda voxels: voxels.astype(np.float32))(boxes)
    assert train(*train_arguments(boxes, tmp_path / "out"))[0] == 0


BAD_FLAGS = {
    "unknown dataset": (["--dataset", "brain"], ("--dataset", "'brain'", "amos", ".json")),
    "missing description": (["--dataset", "nowhere.json"], ("--dataset", "nowhere.json")),
    "unknown network": (["--network", "REP4D"], ("--network", "REP4D", "REP3D")),
    "unknown optimiser": (["--optim", "Adamw"], ("--optim", "Adamw", "AdamW")),
    "unwritable output": (["--output", "/dev/null/run"], ("--output", "/dev/null/run")),
    "crop not divisible": (["--roi_size", "30", "32", "32"], ("roi_size", "30 x 32 x 32", "divisible by 16")),
    "crop too small": (["--roi_size", "16", "16", "16"], ("roi_size", "16 x 16 x 16", "32 or more")),
    "even kernel": (["--kernel_size", "20"], ("--kernel_size", "'20'", "odd")),
    "no iterations": (["--max_iter", "0"], ("--max_iter", "'0'", "from 1")),
    "no number": (["--lr", "fast"], ("--lr", "'fast'")),
    "cache rate": (["--cache_rate", "2"], ("--cache_rate", "'2'", "from 0 to 1")),
    "overlap": (["--overlap", "1"], ("--overlap", "'1'", "below 1")),
    "device": (["--gpu", "first"], ("--gpu", "'first'", "cpu")),
    "no boolean": (["--pretrain", "yes"], ("--pretrain", "'yes'", "True or False")),
    "pretrain without weights": (["--pretrain", "True"], ("--pretrain", "--pretrained_weights")),
    "weights not there": (
        ["--pretrain", "True", "--pretrained_weights", "none.pth"],
        ("--pretrained_weights", "none.pth"),
    ),
    "more hours than a timer takes": (["--max_hours", "1e9"], ("--max_hours", "8760")),
    "no time": (["--max_hours", "0"], ("--max_hours", "above 0")),
    "huge seed": (["--seed", "18446744073709551616"], ("--seed", "from 0")),
    "nothing to resume": (["--resume"], ("--resume", "last_checkpoint.pth")),
    "unknown flag": (["--learning_rate", "1"], ("--learning_rate",)),
}


@pytest.mark.parametrize(("flags", "parts"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flag(boxes, tmp_path, train, flags, parts):
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", *flags)), *parts)


BAD_DESCRIPTIONS = {
    "not an object": ([1, 2], "expected the fields"),
    "missing field": ({"spacing": None}, "spacing"),
    "unknown field": ({"spacings": [1, 1, 1]}, "expected the fields"),
    "gap in labels": ({"labels": {"background": 0, "liver": 2}}, "labels"),
    "labels as list": ({"labels": ["background", "liver"]}, "labels"),
    "one class": ({"labels": {"background": 0}}, "labels"),
    "too many classes": ({"labels": {str(value): value for value in range(257)}}, "labels"),
    "boolean label": ({"labels": {"background": False, "liver": True}}, "labels"),
    "two spacings": ({"spacing": [1.0, 1.0]}, "spacing"),
    "negative spacing": ({"spacing": [1.0, -1.0, 1.0]}, "spacing"),
    "huge spacing": ({"spacing": [1, 1, 10**400]}, "spacing"),
    "spacing as text": ({"spacing": "1 1 1"}, "spacing"),
    "no intensity": ({"intensity": {}}, "intensity"),
    "zscore false": ({"intensity": {"zscore": False}}, "intensity"),
    "both intensities": ({"intensity": {"zscore": True, "window": [0, 1]}}, "intensity"),
    "window upside down": ({"intensity": {"window": [275, -125]}}, "intensity"),
    "same channel twice": ({"channels": ["T1", "T1"]}, "channels"),
    "no channels": ({"channels": []}, "channels"),
    "empty name": ({"name": ""}, "name"),
}


@pytest.mark.parametrize(("change", "part"), BAD_DESCRIPTIONS.values(), ids=BAD_DESCRIPTIONS)
def test_bad_description(boxes, tmp_path, train, change, part):
    path = boxes / "boxes.json"
    values = json.loads(path.read_text()) | change if isinstance(change, dict) else change
    path.write_text(json.dumps(values))
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out")), "boxes.json", part)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_description_that_is_no_json(boxes, tmp_path, train, content):
    (boxes / "boxes.json").write_bytes(content)
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out")), "boxes.json", "JSON")


def test_a_finished_run_is_not_overwritten(boxes, tmp_path, trained, train):
    before = (trained / "last_checkpoint.pth").read_bytes()
    assert_one_line(train(*train_arguments(boxes, trained)), "--output", "holds a run", "--resume")
    assert (trained / "last_checkpoint.pth").read_bytes() == before


@pytest.mark.parametrize(
    "flags", [("--lr", "0.5"), ("--kernel_size", "7"), ("--roi_size", "32", "32", "32"), ("--seed", "3")]
)
def test_resume_of_another_course(boxes, trained, train, flags):
    arguments = train_arguments(boxes, trained, *TRAINED, *flags, "--resume")
    assert_one_line(train(*arguments), flags[0], "the run to resume")


def test_resume_with_other_cases(boxes, trained, train):
    for folder in ("imagesTr", "labelsTr"):
        (boxes / folder / "box_2.nii.gz").unlink()
    arguments = train_arguments(boxes, trained, *TRAINED, "--resume")
    assert_one_line(train(*arguments), "--root", "training cases")


def test_resume_in_another_precision(boxes, trained, train):
    arguments = train_arguments(boxes, trained, *TRAINED, "--amp", "fp16", "--resume")
    assert_one_line(train(*arguments), "--amp", "float16", "None")


class Malicious:
    def __reduce__(self):
        return (print, ("pickled code ran",))


def write_malicious(path):
    path.write_bytes(pickle.dumps({"model": Malicious()}))


def write_malicious_archive(path):
    torch.save({"model": Malicious()}, path)


def write_half(path):
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


BAD_CHECKPOINTS = {
    "pickle": (write_malicious, "never run"),
    "archive with code": (write_malicious_archive, "never run"),
    "damaged": (write_half, "expected"),
    "empty file": (lambda path: path.write_bytes(b""), "expected"),
    "text": (lambda path: path.write_text("weights"), "expected"),
    "no weights": (lambda path: torch.save({"iteration": 3}, path), "holds no weights"),
    "a list": (lambda path: torch.save([torch.zeros(3)], path), "expected a dictionary"),
    "a folder": (lambda path: path.mkdir(), "cannot be read"),
    "other network": (lambda path: torch.save({"a": torch.zeros(3)}, path), "0 of them known"),
}


@pytest.mark.parametrize(("write", "part"), BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS)
def test_bad_checkpoint(boxes, tmp_path, train, predict, write, part):
    path = tmp_path / "weights.pth"
    write(path)
    arguments = ("--root", boxes, "--output", tmp_path / "out", "--gpu", "cpu", "--dataset", boxes / "boxes.json")
    assert_one_line(predict(*arguments, "--trained_weights", path), "--trained_weights", path, part)
    pretrain = ("--pretrain", "True", "--pretrained_weights", path)
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", *pretrain)), "--pretrained_weights", path, part)


BAD_CONFIGS = [
    ("network", ["REP3D"]),
    ("network", "REP4D"),
    ("in_chans", "1"),
    ("out_chans", 3.0),
    ("roi_size", ["a", "b", "c"]),
    ("overrides", {"feat_size": "abcd"}),
    ("overrides", {"feat_size": None}),
    ("overrides", {"kernel_size": "5"}),
    ("overrides", {"deploy": True}),
    ("overrides", {"norm_name": "group"}),
    ("overrides", {"dropout": 1}),
]


@pytest.mark.parametrize(("key", "value"), BAD_CONFIGS)
def test_a_checkpoint_that_describes_no_network(boxes, tmp_path, trained, predict, key, value):
    content = torch.load(trained / "best_metric_model.pth", weights_only=True)
    content["config"][key] = value
    path = tmp_path / "strange.pth"
    torch.save(content, path)
    common = ("--root", boxes, "--output", tmp_path / "out", "--gpu", "cpu")
    assert_one_line(predict(*common, "--trained_weights", path), "--trained_weights", path)


@pytest.mark.parametrize("flags", [("--kernel_size", "99999"), ("--feat_size", "4", "4", "4", "10000000000000")])
def test_a_network_that_does_not_fit_in_memory(boxes, tmp_path, train, flags):
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", *flags)), "--network REP3D", "fit in memory")


def test_a_disk_that_fills_up_while_training_leaves_the_last_checkpoint(boxes, tmp_path, train, monkeypatch):
    last = tmp_path / "run" / "last_checkpoint.pth"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log_validation = training_loop.log_validation

    def log_on_a_full_disk(writer, state, *rest):
        log_validation(writer, state, *rest)
        if state.iteration == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (last.stat().st_size // 2, hard))

    monkeypatch.setattr(training_loop, "log_validation", log_on_a_full_disk)
    try:
        status, _, err = train(*train_arguments(boxes, tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: {last}: cannot be written")
    assert torch.load(last, weights_only=True)["progress"]["awaits_evaluation"]  # saved before it
    assert not list(last.parent.glob(".*"))


def test_flags_of_which_one_rules_the_other_out(boxes, tmp_path, train):
    both = ("--cache_dir", tmp_path / "cache", "--cache_rate", "0.5")
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", *both)), "--cache_dir", "without --cache_rate")
    plain = ("--network", "UNet3D", "--checkpointing")
    assert_one_line(train(*train_arguments(boxes, tmp_path / "out", *plain)), "--network")


def test_a_cache_where_none_can_be(boxes, tmp_path, train):
    arguments = train_arguments(boxes, tmp_path / "out", "--cache_dir", boxes / "boxes.json")
    assert_one_line(train(*arguments), "--cache_dir", boxes / "boxes.json", "expected a folder")


def test_prediction_refuses_what_the_checkpoint_contradicts(boxes, tmp_path, trained, predict):
    weights = ("--trained_weights", trained / "best_metric_model.pth", "--gpu", "cpu")
    common = ("--root", boxes, "--output", tmp_path / "out", *weights)
    assert_one_line(predict(*common, "--dataset", "amos"), "--dataset", "16 classes", "3")
    assert_one_line(predict(*common, "--network", "REP3D_FIXED"), "does not fit the network")
    assert_one_line(predict(*common, "--kernel_size", "7"), "does not fit the network", "5, 5, 5")
    assert_one_line(predict(*common, "--feat_size", "4", "4", "8", "8"), "does not fit the network")
    assert_one_line(predict(*common, "--roi_size", "20", "32", "32"), "roi_size", "20 x 32 x 32")
    assert_one_line(predict("--root", boxes, "--output", "/dev/null/out", *weights), "--output", "/dev/null/out")


@pytest.mark.parametrize("change", ["shape", "affine", "count"])
def test_channels_that_do_not_fit_each_other(boxes, tmp_path, train, change):
    description = json.loads((boxes / "boxes.json").read_text()) | {"channels": ["T1", "T2"]}
    (boxes / "boxes.json").write_text(json.dumps(description))
    for path in [*boxes.glob("imagesTr/*"), *boxes.glob("imagesVal/*")]:
        image = nib.load(path)
        voxels, affine = np.asarray(image.dataobj), image.affine
        path.unlink()
        if change == "count":
            write_nifti(path, np.stack([voxels] * 3, axis=-1))
            continue
        write_nifti(path.with_name(path.name.replace(".nii", "_0000.nii")), voxels)
        other = voxels[:-1] if change == "shape" else voxels
        moved = affine + np.eye(4)[:, [3, 0, 1, 2]] * 4 if change == "affine" else affine
        write_nifti(path.with_name(path.name.replace(".nii", "_0001.nii")), other, moved)
    status, _, err = train(*train_arguments(boxes, tmp_path / "out"))
    expected = {"shape": "35 x 28 x 18", "affine": "same affine", "count": "with 2 channels last"}
    assert status == 2
    assert err.count(expected[change]) == 5  # a line a case


def test_prediction_of_nothing(boxes, tmp_path, trained, predict):
    common = ("--output", tmp_path / "out", "--trained_weights", trained / "best_metric_model.pth", "--gpu", "cpu")
    assert_one_line(predict(*common), "--root", "--images")
    assert_one_line(predict(*common, "--images", tmp_path / "nowhere"), "nowhere", "not found")


def test_class_count_of_a_state_dict(boxes, tmp_path, trained, predict):
    path = tmp_path / "bare.pth"
    torch.save(torch.load(trained / "best_metric_model.pth", weights_only=True)["model"], path)
    common = ("--root", boxes, "--output", tmp_path / "out", "--trained_weights", path, "--gpu", "cpu")
    assert_one_line(predict(*common), "--dataset", "bare state dict")
    flags = ("--feat_size", "8", "8", "8", "8", "--kernel_size", "5")
    assert_one_line(predict(*common, "--dataset", "amos", *flags), "--trained_weights", "out.conv.conv.weight", "class")
