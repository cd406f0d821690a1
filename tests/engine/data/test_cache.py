"""The disk cache gives the same cases as no cache, is rebuilt only if necessary, and is read one crop at a time."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cache_folders import WINDOW, ZSCORE, entries, files, pipelines
from conftest import DESCRIPTION, REPOSITORY, write_nifti
from monai.data import CacheDataset, list_data_collate
from torch.utils.data import DataLoader

import engine.data.cache
from engine.data.cache import bytes_needed, open_cache, read_entry, write_entry
from engine.data.cases import find_training_cases, make_case
from engine.data.crops import BACKGROUND, FOREGROUND
from engine.data.datasets import DatasetDescription
from engine.data.loading import EndlessBatches, SeededDataset
from engine.runtime.memory import return_freed_memory


@pytest.fixture
def cases(boxes):
    return find_training_cases(boxes, ZSCORE)[0]


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


@pytest.mark.filterwarnings("ignore:Num foregrounds")
def test_a_volume_below_the_window_without_labels_is_cropped_like_any_other(cases, tmp_path):
    for key, kind in {"image": np.int16, "label": np.uint8}.items():
        write_nifti(Path(cases[1][key]), np.zeros((36, 28, 18), kind))
    cached = SeededDataset(open_cache(cases, pipelines(WINDOW)[0], tmp_path / "cache", num_workers=0), seed=3)
    uncached = SeededDataset(CacheDataset(cases, pipelines(WINDOW)[0], cache_rate=0, progress=False), seed=3)
    crops = list(zip(cached[0, 1], uncached[0, 1], strict=True))
    assert len(crops) == 2
    for ours, theirs in crops:
        assert ours["image"].shape == (1, 24, 16, 20)
        assert torch.equal(ours["image"], theirs["image"])
        assert not ours["label"].any()


def test_validation_cases_are_bit_equal(cases, tmp_path):
    _, validation = pipelines()
    for ours, case in zip(open_cache(cases, validation, tmp_path / "cache", num_workers=0), cases, strict=True):
        assert_equal(ours, validation(case))


def test_loader_processes_read_the_same_batches(cases, tmp_path):
    dataset = SeededDataset(open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=2), seed=0)
    batches = EndlessBatches(len(cases), 2, seed=0, start=0, stop=3)
    alone, helped = (
        list(DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=list_data_collate))
        for workers in (0, 2)
    )
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_a_second_start_preprocesses_nothing(cases, tmp_path, capsys, monkeypatch):
    training, _ = pipelines()
    open_cache(cases, training, tmp_path / "cache", num_workers=0)
    printed = capsys.readouterr().out
    assert "3 of 3 cases to preprocess" in printed
    assert "at most" in printed
    assert "free" in printed
    before = files(tmp_path / "cache")
    monkeypatch.setattr(engine.data.cache, "write_entry", None)
    open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=0)
    assert capsys.readouterr().out == ""
    assert files(tmp_path / "cache") == before


def test_filling_does_not_change_the_random_state(cases, tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=0)
    assert torch.equal(torch.rand(3), expected)


def test_modifying_a_case_does_not_change_the_cache(cases, tmp_path):
    dataset = open_cache(cases, pipelines()[1], tmp_path / "cache", num_workers=0)
    before = files(tmp_path / "cache")
    dataset[0]["image"].fill_(7)
    dataset[0]["label"].fill_(7)
    assert files(tmp_path / "cache") == before
    assert (dataset[0]["label"] != 7).all()


def settings_key(*settings, **options):
    return engine.data.cache._make_home(Path(os.environ["TEST_CACHE"]), pipelines(*settings, **options)[0]).name


def test_settings_have_one_key_in_every_process(cases, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_CACHE", str(tmp_path))
    key = settings_key()
    training, _ = pipelines()
    CacheDataset(cases, training, progress=False)[0]  # using the transforms does not change the key
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
        settings_key(crop_balance="classes"),
    ]
    random = {"foreground_share": 0.3, "augmentation": "strong", "mirror": ["AP"]}
    assert settings_key(**random) == described[0]  # what is cached is the same
    monkeypatch.setattr("engine.data.cache.library_versions", lambda: {"monai": "0"})
    assert len({*described, settings_key()}) == len(described) + 1


def test_a_changed_file_replaces_only_its_entry(cases, tmp_path):
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


def test_cases_with_the_same_id_from_two_datasets_coexist(cases, tmp_path):
    copies = shutil.copytree(Path(cases[0]["image"]).parent, tmp_path / "other")
    others = [make_case(case["id"], str(copies / Path(case["image"]).name), case["label"]) for case in cases]
    volume = nib.load(others[0]["image"])
    write_nifti(Path(others[0]["image"]), volume.get_fdata().astype(np.float32) + 1, volume.affine)
    for turn in (cases, others, cases):
        open_cache(turn, pipelines()[0], tmp_path / "cache", num_workers=0)
    assert [path.name.split("-")[0] for path in entries(tmp_path / "cache")] == ["box_0", "box_0", "box_1", "box_2"]


@pytest.mark.parametrize(("codes", "balance"), [("RAS", "voxels"), ("PIR", "voxels"), ("AIL", "classes")])
def test_stated_size_is_that_of_an_uncropped_case(tmp_path, codes, balance):
    target = nib.orientations.axcodes2ornt(codes)
    paths = {"image": tmp_path / "image.nii.gz", "label": tmp_path / "label.nii.gz"}
    voxels = np.random.default_rng(0).random((13, 17, 9)).astype(np.float32)
    voxels[0] = voxels[-1] = 2  # the foreground is the whole volume, also after resampling
    for name, path in paths.items():
        volume = nib.Nifti1Image(voxels if name == "image" else np.ones((13, 17, 9), np.uint8), np.diag([2, 3, 4, 1]))
        turn = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), target)
        nib.save(volume.as_reoriented(turn), path)
    case = make_case("case", *map(str, paths.values()))
    description = DatasetDescription.from_json(DESCRIPTION | {"spacing": [1.1, 1.5, 3]}, "test")
    training, _ = pipelines(description, crop_balance=balance)
    dataset = open_cache([case], training, tmp_path / "cache", num_workers=0)
    arrays = read_entry(dataset.entries[0])
    assert arrays["image"].shape[3] == 20  # padded
    depth, height = arrays["image"].shape[1:3]
    assert arrays[BACKGROUND].shape == (depth * height,)
    assert arrays[FOREGROUND].shape == ((2, depth) if balance == "classes" else (depth * height,))
    assert bytes_needed(dataset, [0]) == sum(array.nbytes for array in arrays.values())


def peak_growth(run):
    """Measure the peak increase, in bytes, of the resident memory of this process during ``run``."""
    return_freed_memory()  # otherwise freed memory could hide the growth
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's account of resident memory")
@pytest.mark.parametrize(
    ("description", "balance"),
    [(ZSCORE, "voxels"), (WINDOW, "voxels"), (WINDOW, "classes")],
    ids=["zscore", "window", "classes"],
)
@pytest.mark.filterwarnings("ignore:Num foregrounds")
def test_a_crop_does_not_read_the_volume(tmp_path, description, balance):
    """The volume has a nominal 1.25 GB in sparse files. One voxel is labelled, and none counts as background."""
    shape, labelled = (1, 1000, 500, 500), (0, 600, 3, 5)
    counts = np.zeros(shape[1] * shape[2], np.int64)
    counts[labelled[1] * shape[2] + labelled[2] :] = 1
    background = np.zeros_like(counts)
    if balance == "classes":
        counts = np.zeros((2, shape[1]), np.int64)
        counts[0, labelled[1] :] = 1
    write_entry(tmp_path / "entry", {FOREGROUND: counts, BACKGROUND: background}, [])
    entry = json.loads((tmp_path / "entry" / "entry.json").read_text())
    for name, kind in {"image": np.float32, "label": np.uint8}.items():
        array = np.lib.format.open_memmap(tmp_path / "entry" / f"{name}.npy", "w+", kind, shape)
        array[labelled] = 1
        entry["arrays"][name] = [str(array.dtype), list(shape)]
        del array
    (tmp_path / "entry" / "entry.json").write_text(json.dumps(entry))
    case = make_case("case", "image.nii", "label.nii")
    dataset = SeededDataset(
        engine.data.cache.CachedCases([case], pipelines(description, crop_balance=balance)[0], [tmp_path / "entry"]),
        seed=1,
    )
    crops = []
    assert peak_growth(lambda: crops.extend(dataset[(0, 0)])) < 100e6
    assert all(crop["label"].any() for crop in crops)
    assert peak_growth(lambda: np.load(tmp_path / "entry" / "label.npy")) > 200e6  # the measurement detects a full read
