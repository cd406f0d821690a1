"""The disk cache: equal to no cache, rebuilt when it has to be, never half-written, and read a crop at a time."""

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import DESCRIPTION, REPOSITORY, write_nifti
from monai.data import CacheDataset, list_data_collate
from torch.utils.data import DataLoader

import engine.data.cache
from engine.data.cache import largest_bytes, open_cache, read_entry, write_entry
from engine.data.cases import find_training_cases, make_case
from engine.data.crops import BACKGROUND, FOREGROUND
from engine.data.datasets import DatasetDescription
from engine.data.loading import EndlessBatches, SeededDataset
from engine.runtime.errors import InputError
from engine.runtime.memory import return_freed_memory
from load_datasets_transforms import training_pipelines

ZSCORE = DatasetDescription.from_json(DESCRIPTION, "test")
WINDOW = DatasetDescription.from_json(DESCRIPTION | {"intensity": {"window": [60, 200]}}, "test")


def pipelines(description=ZSCORE, roi_size=(24, 16, 20)):
    """(training, validation); the crop is larger than the boxes along the last axis."""
    return training_pipelines(description, roi_size, crop_sample=2)


@pytest.fixture
def cases(boxes):
    return find_training_cases(boxes, ZSCORE)[0]


def entries(folder):
    """The entries of a cache; hidden files are partial ones."""
    return sorted(path for path in folder.glob("*/*") if path.is_dir() and not path.name.startswith("."))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[key].dtype == value.dtype
            assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(value))
        else:
            assert ours[key] == value


@pytest.mark.parametrize("description", [ZSCORE, WINDOW], ids=["zscore", "window"])
@pytest.mark.parametrize("rate", [0.0, 1.0], ids=["no cache", "memory"])
def test_crops_are_bit_equal_to_those_of_the_other_caches(cases, tmp_path, description, rate):
    training, _ = pipelines(description)
    disk = SeededDataset(open_cache(cases, training, tmp_path / "cache", num_workers=0), seed=3)
    other = SeededDataset(CacheDataset(cases, pipelines(description)[0], cache_rate=rate, progress=False), seed=3)
    for draw in [(0, 1), (1, 0), (2, 2), (3, 1)]:
        for ours, theirs in zip(disk[draw], other[draw], strict=True):
            assert_equal(ours, theirs)


def test_validation_cases_are_bit_equal(cases, tmp_path):
    _, validation = pipelines()
    for ours, case in zip(open_cache(cases, validation, tmp_path / "cache", num_workers=0), cases, strict=True):
        assert_equal(ours, validation(case))


def test_loader_processes_read_what_this_one_reads(cases, tmp_path):
    dataset = SeededDataset(open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=2), seed=0)
    batches = EndlessBatches(len(cases), 2, seed=0, start=0, stop=3)
    alone, helped = (
        list(DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=list_data_collate))
        for workers in (0, 2)
    )
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_second_start_preprocesses_nothing(cases, tmp_path, capsys, monkeypatch):
    training, _ = pipelines()
    open_cache(cases, training, tmp_path / "cache", num_workers=0)
    said = capsys.readouterr().out
    assert "3 of 3 cases to preprocess" in said
    assert "at most" in said
    assert "free" in said
    before = files(tmp_path / "cache")
    monkeypatch.setattr(engine.data.cache, "write_entry", None)
    open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=0)
    assert capsys.readouterr().out == ""
    assert files(tmp_path / "cache") == before


def test_filling_leaves_the_random_numbers_alone(cases, tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=0)
    assert torch.equal(torch.rand(3), expected)


def test_a_write_into_a_read_case_stays_private(cases, tmp_path):
    dataset = open_cache(cases, pipelines()[1], tmp_path / "cache", num_workers=0)
    before = files(tmp_path / "cache")
    dataset[0]["image"].fill_(7)
    dataset[0]["label"].fill_(7)
    assert files(tmp_path / "cache") == before
    assert (dataset[0]["label"] != 7).all()


def settings_key(description=ZSCORE, roi_size=(24, 16, 20)):
    return engine.data.cache._make_home(Path(os.environ["TEST_CACHE"]), pipelines(description, roi_size)[0]).name


def test_settings_have_one_key_in_every_process(cases, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_CACHE", str(tmp_path))
    key = settings_key()
    training, _ = pipelines()
    CacheDataset(cases, training, progress=False)[0]  # used transforms have the key of new ones
    assert engine.data.cache._make_home(tmp_path, training).name == key
    code = "import test_cache; print(test_cache.settings_key())"
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "5"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == key
    settings = json.loads((tmp_path / key / "settings.json").read_text())
    assert settings["versions"]["torch"] == version("torch")
    assert settings["transforms"][0]["class name"].endswith("LoadVolumed")


def test_settings_decide_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_CACHE", str(tmp_path))
    described = [
        settings_key(),
        settings_key(WINDOW),
        settings_key(DatasetDescription.from_json(DESCRIPTION | {"intensity": {"window": [60, 201]}}, "test")),
        settings_key(DatasetDescription.from_json(DESCRIPTION | {"spacing": [1, 1, 1.5]}, "test")),
        settings_key(roi_size=(24, 16, 21)),
    ]
    monkeypatch.setattr("engine.data.cache.library_versions", lambda: {"monai": "0"})
    assert len({*described, settings_key()}) == len(described) + 1


def test_changed_file_replaces_its_entry_alone(cases, tmp_path):
    training, validation = pipelines()
    folder = tmp_path / "cache"
    for transform in (training, validation):
        open_cache(cases, transform, folder, num_workers=0)
    before = entries(folder)
    assert len(before) == 6
    label = nib.load(cases[1]["label"])
    write_nifti(Path(cases[1]["label"]), np.flip(label.get_fdata(), 0).astype(np.uint8), label.affine)
    dataset = open_cache(cases, validation, folder, num_workers=0)
    assert_equal(dataset[1], validation(cases[1]))
    after = entries(folder)
    assert len(after) == 6
    assert [path.name.split("-")[0] for path in set(before) - set(after)] == ["box_1"]


def test_cases_of_one_name_from_two_datasets_live_side_by_side(cases, tmp_path):
    copies = shutil.copytree(Path(cases[0]["image"]).parent, tmp_path / "other")
    others = [make_case(case["id"], str(copies / Path(case["image"]).name), case["label"]) for case in cases]
    volume = nib.load(others[0]["image"])
    write_nifti(Path(others[0]["image"]), volume.get_fdata().astype(np.float32) + 1, volume.affine)
    for turn in (cases, others, cases):
        open_cache(turn, pipelines()[0], tmp_path / "cache", num_workers=0)
    assert [path.name.split("-")[0] for path in entries(tmp_path / "cache")] == ["box_0", "box_0", "box_1", "box_2"]


def cut(entry):
    os.truncate(entry / "image.npy", (entry / "image.npy").stat().st_size - 1)


def lose(entry):
    (entry / "label.npy").unlink()


def lose_manifest(entry):
    (entry / "entry.json").unlink()


def change_type(entry):
    np.save(entry / "image.npy", np.load(entry / "image.npy").astype(np.float64))


def change_shape(entry):
    np.save(entry / "label.npy", np.load(entry / "label.npy")[:, 1:])


def empty(entry):
    (entry / "image.npy").write_bytes(b"")


def garble_manifest(entry):
    (entry / "entry.json").write_text("[]")


def lead_away(entry):
    """To an array that is there, and would be read with what the manifest says of it."""
    manifest = json.loads((entry / "entry.json").read_text())
    shutil.copy(entry / "image.npy", entry.parents[2] / "stolen.npy")
    manifest["arrays"]["../../../stolen"] = manifest["arrays"]["image"]
    (entry / "entry.json").write_text(json.dumps(manifest))


def lead_to_an_absolute_path(entry):
    manifest = json.loads((entry / "entry.json").read_text())
    manifest["arrays"][str(entry / "image")] = manifest["arrays"]["image"]
    (entry / "entry.json").write_text(json.dumps(manifest))


def nest(entry):
    (entry / "entry.json").write_text("[" * 100_000)


class Malicious:
    def __reduce__(self):
        return (os.mkdir, (os.environ["MADE_BY_A_PICKLE"],))


def put_pickled_object(entry):
    np.save(entry / "image.npy", np.array([Malicious()], dtype=object), allow_pickle=True)


def put_pickle(entry):
    (entry / "label.npy").write_bytes(pickle.dumps(Malicious()))


@pytest.mark.parametrize("damage", [put_pickled_object, put_pickle])
def test_nothing_in_a_cache_is_run(cases, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("MADE_BY_A_PICKLE", str(tmp_path / "made"))
    training, _ = pipelines()
    dataset = open_cache(cases, training, tmp_path / "cache", num_workers=0)
    before = files(tmp_path / "cache")
    damage(dataset.entries[1])
    with pytest.raises(InputError, match="gone or damaged"):
        dataset[1]
    open_cache(cases, training, tmp_path / "cache", num_workers=0)
    assert files(tmp_path / "cache") == before
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "damage",
    [
        *(cut, lose, lose_manifest, change_type, change_shape, empty, garble_manifest),
        *(lead_away, lead_to_an_absolute_path, nest),
    ],
)
def test_damaged_entry_is_made_again_and_named(cases, tmp_path, capsys, damage):
    training, _ = pipelines()
    dataset = open_cache(cases, training, tmp_path / "cache", num_workers=0)
    before = files(tmp_path / "cache")
    damage(dataset.entries[1])
    with pytest.raises(InputError, match=f"{dataset.entries[1].name} gone or damaged"):
        dataset[1]
    capsys.readouterr()
    open_cache(cases, training, tmp_path / "cache", num_workers=0)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert "1 of 3 cases" in said[0]
    assert f"{dataset.entries[1]} damaged" in said[1]
    assert files(tmp_path / "cache") == before


def test_partial_entries_are_not_read_and_old_ones_go(cases, tmp_path):
    training, _ = pipelines()
    home = open_cache(cases, training, tmp_path / "cache", num_workers=0).entries[0].parent
    young, old = home / ".young.part", home / ".old.part"
    for path in (young, old):
        path.mkdir()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    open_cache(cases, training, tmp_path / "cache", num_workers=0)
    assert young.exists()
    assert not old.exists()


def race(cases, folder, gate, failures):
    torch.set_num_threads(1)  # a forked process must not wait for the threads of the other
    try:
        gate.wait(30)
        dataset = open_cache(cases, pipelines()[0], folder, num_workers=0)
        SeededDataset(dataset, 0)[(0, 1)]
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_processes_racing_for_one_cache(cases, tmp_path):
    context = multiprocessing.get_context("fork")
    gate, failures = context.Barrier(3), context.Queue()
    racers = [context.Process(target=race, args=(cases, tmp_path / "cache", gate, failures)) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0], failures.get(timeout=1)
    open_cache(cases, pipelines()[0], tmp_path / "alone", num_workers=0)
    assert files(tmp_path / "cache") == files(tmp_path / "alone")
    assert not list((tmp_path / "cache").rglob(".*"))


def test_the_first_of_two_writers_wins_unless_its_entry_is_damaged(tmp_path):
    entry = tmp_path / f"case-{'0' * 16}"
    write_entry(entry, {"image": np.zeros(3)}, ["a"])
    write_entry(entry, {"image": np.ones(3)}, ["a"])
    assert read_entry(entry)["image"].sum() == 0
    cut(entry)
    write_entry(entry, {"image": np.ones(3)}, ["a"])
    assert read_entry(entry)["image"].sum() == 3
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]


def fail_after(monkeypatch, calls, number):
    """Let a file be flushed so many times, and fail then, as a full disk does."""
    real, flushed = os.fsync, []

    def flush(file):
        flushed.append(file)
        if len(flushed) > calls:
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr(os, "fsync", flush)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_one_line_and_leaves_whole_entries(cases, tmp_path, monkeypatch, workers, number):
    folder = tmp_path / "cache"
    with monkeypatch.context() as full:
        fail_after(full, 11, number)  # an entry is five files; settings and digests are two each, with their folders
        with pytest.raises(InputError) as caught:
            open_cache(cases, pipelines()[0], folder, num_workers=workers)
    line = str(caught.value)
    assert "\n" not in line
    assert "--cache_dir" in line
    assert "1 of 3 cases" in line
    assert "at most" in line
    assert [path.name.split("-")[0] for path in entries(folder)] == ["box_0"]
    assert not list(folder.rglob(".*"))
    dataset = open_cache(cases, pipelines()[0], folder, num_workers=0)
    assert len(dataset[2]) == 2


def test_other_write_errors_name_the_flag(cases, tmp_path, monkeypatch):
    fail_after(monkeypatch, 0, errno.EIO)
    with pytest.raises(InputError, match=r"--cache_dir: .* cannot be written to \(Input/output error\)"):
        open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=0)


def test_a_complete_cache_need_not_be_writable(cases, tmp_path, monkeypatch):
    open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=0)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for name in ("write_text", "rename", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    dataset = open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=0)
    shutil.rmtree(dataset.entries[0])
    monkeypatch.setattr(engine.data.cache, "_fill", None)  # refused before any case is preprocessed
    with pytest.raises(InputError, match=r"--cache_dir: .* cannot be written to \(Permission denied\)"):
        open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=0)


def test_a_file_is_no_cache(cases, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("")
    monkeypatch.setattr(engine.data.cache, "digest_cases", None)  # refused before any case is read
    with pytest.raises(InputError, match=r"--cache_dir: .* cannot be written to"):
        open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=0)


@pytest.mark.parametrize("codes", ["RAS", "PIR", "AIL"])
def test_stated_size_is_that_of_an_uncropped_case(tmp_path, codes):
    target = nib.orientations.axcodes2ornt(codes)
    paths = {"image": tmp_path / "image.nii.gz", "label": tmp_path / "label.nii.gz"}
    voxels = np.random.default_rng(0).random((13, 17, 9)).astype(np.float32)
    voxels[0] = voxels[-1] = 2  # so that the foreground is the whole volume, whatever is resampled
    for name, path in paths.items():
        volume = nib.Nifti1Image(voxels if name == "image" else np.ones((13, 17, 9), np.uint8), np.diag([2, 3, 4, 1]))
        turn = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), target)
        nib.save(volume.as_reoriented(turn), path)
    case = make_case("case", *map(str, paths.values()))
    training, _ = pipelines(DatasetDescription.from_json(DESCRIPTION | {"spacing": [1.1, 1.5, 3]}, "test"))
    (entry,) = open_cache([case], training, tmp_path / "cache", num_workers=0).entries
    arrays = read_entry(entry)
    assert arrays["image"].shape[3] == 20  # padded
    assert arrays[FOREGROUND].shape == arrays[BACKGROUND].shape == (np.prod(arrays["image"].shape[1:3]),)
    assert largest_bytes(case, training) == sum(array.nbytes for array in arrays.values())


def peak_growth(run):
    """Bytes by which ``run`` raised the resident memory of this process at most."""
    return_freed_memory()  # of which else may be enough for what follows
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's account of resident memory")
@pytest.mark.parametrize("description", [ZSCORE, WINDOW], ids=["zscore", "window"])
@pytest.mark.filterwarnings("ignore:Num foregrounds")
def test_a_crop_does_not_read_the_volume(tmp_path, description):
    """Of 1.25 GB, as far as the files tell: they have holes. One voxel is labelled, none counts as background."""
    shape, labelled = (1, 1000, 500, 500), (0, 600, 3, 5)
    counts = np.zeros(shape[1] * shape[2], np.int64)
    counts[labelled[1] * shape[2] + labelled[2] :] = 1
    write_entry(tmp_path / "entry", {FOREGROUND: counts, BACKGROUND: np.zeros_like(counts)}, [])
    entry = json.loads((tmp_path / "entry" / "entry.json").read_text())
    for name, kind in {"image": np.float32, "label": np.uint8}.items():
        array = np.lib.format.open_memmap(tmp_path / "entry" / f"{name}.npy", "w+", kind, shape)
        array[labelled] = 1
        entry["arrays"][name] = [str(array.dtype), list(shape)]
        del array
    (tmp_path / "entry" / "entry.json").write_text(json.dumps(entry))
    case = make_case("case", "image.nii", "label.nii")
    dataset = SeededDataset(
        engine.data.cache.CachedCases([case], pipelines(description)[0], [tmp_path / "entry"]), seed=1
    )
    crops = []
    assert peak_growth(lambda: crops.extend(dataset[(0, 0)])) < 100e6
    assert all(crop["label"].any() for crop in crops)
    assert peak_growth(lambda: np.load(tmp_path / "entry" / "label.npy")) > 200e6  # the measure can tell
