"""Failures of the disk cache: damage, races and full disks leave only complete entries, and loading runs no code."""

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_folders import ZSCORE, entries, files, pipelines

import engine.data.cache
from engine.data.cache import open_cache, read_entry, write_entry
from engine.data.cases import find_training_cases
from engine.data.loading import SeededDataset
from engine.runtime.errors import InputError


@pytest.fixture
def cases(boxes):
    return find_training_cases(boxes, ZSCORE)[0]


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


def name_a_file_outside(entry):
    """Add an existing array outside the entry to the manifest, with its correct type and shape."""
    manifest = json.loads((entry / "entry.json").read_text())
    shutil.copy(entry / "image.npy", entry.parents[2] / "stolen.npy")
    manifest["arrays"]["../../../stolen"] = manifest["arrays"]["image"]
    (entry / "entry.json").write_text(json.dumps(manifest))


def name_an_absolute_path(entry):
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
def test_loading_a_cache_runs_no_code(cases, tmp_path, monkeypatch, damage):
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
        *(name_a_file_outside, name_an_absolute_path, nest),
    ],
)
def test_a_damaged_entry_is_reported_and_rebuilt(cases, tmp_path, capsys, damage):
    training, _ = pipelines()
    dataset = open_cache(cases, training, tmp_path / "cache", num_workers=0)
    before = files(tmp_path / "cache")
    damage(dataset.entries[1])
    with pytest.raises(InputError, match=f"{dataset.entries[1].name} gone or damaged"):
        dataset[1]
    capsys.readouterr()
    open_cache(cases, training, tmp_path / "cache", num_workers=0)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert "1 of 3 cases" in printed[0]
    assert f"{dataset.entries[1]} damaged" in printed[1]
    assert files(tmp_path / "cache") == before


def test_partial_entries_are_ignored_and_old_ones_deleted(cases, tmp_path):
    training, _ = pipelines()
    home = open_cache(cases, training, tmp_path / "cache", num_workers=0).entries[0].parent
    young, old = home / ".young.part", home / ".old.part"
    for path in (young, old):
        path.mkdir()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    open_cache(cases, training, tmp_path / "cache", num_workers=0)
    assert young.exists()
    assert not old.exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_case_met_while_the_cache_is_filled(cases, tmp_path, workers):
    truncate(Path(cases[1]["image"]))
    with pytest.raises(InputError, match=f"{cases[1]['image']}: cannot be read"):
        open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=workers)


def test_a_file_deleted_before_the_cache_is_filled(cases, tmp_path):
    Path(cases[1]["label"]).unlink()
    with pytest.raises(InputError, match=f"^{cases[1]['label']}: cannot be read"):
        open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=0)


def race(cases, folder, gate, failures):
    torch.set_num_threads(1)  # a forked process must not wait for threads of its parent
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
    """Let ``calls`` flushes succeed and every later one fail, like on a full disk."""
    real, flushed = os.fsync, []

    def flush(file):
        flushed.append(file)
        if len(flushed) > calls:
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr(os, "fsync", flush)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_complete_entries(cases, tmp_path, monkeypatch, workers, number):
    folder = tmp_path / "cache"
    with monkeypatch.context() as full:
        fail_after(full, 11, number)  # five flushes per entry; two each for settings and digests, with their folders
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


def test_a_file_as_cache_dir_is_refused(cases, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("")
    monkeypatch.setattr(engine.data.cache, "digest_cases", None)  # refused before any case is read
    with pytest.raises(InputError, match=r"--cache_dir: .* cannot be written to"):
        open_cache(cases, pipelines()[0], tmp_path / "cache", num_workers=0)


def test_cases_have_one_writer_whatever_each_process_finds_missing(cases, tmp_path, monkeypatch):
    """Process 1 of 2 lists two missing entries, process 0 three; another run wrote the first in between."""
    folder = tmp_path / "cache"
    dataset = open_cache(cases, pipelines()[0], folder, num_workers=0)
    for entry in dataset.entries[1:]:
        shutil.rmtree(entry)
    monkeypatch.setattr(engine.data.cache, "shard", lambda items: items[1::2])
    with pytest.raises(InputError, match="without 1 of 3 cases"):  # the last one is the other process's
        open_cache(cases, pipelines()[0], folder, num_workers=0)
    assert [entry.exists() for entry in dataset.entries] == [True, True, False]
