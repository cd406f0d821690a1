"""Digests of files: a file is read once, and again only if its size or modification time changes."""

import json
import os
from pathlib import Path

import pytest

from engine.data import digests
from engine.data.cases import make_case
from engine.data.digests import digest_cases
from engine.runtime.errors import InputError


@pytest.fixture
def cases(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    return [
        make_case("one", str(tmp_path / "a"), str(tmp_path / "c")),
        make_case("two", [str(tmp_path / "b"), str(tmp_path / "a")]),
    ]


@pytest.fixture
def reads(monkeypatch):
    """List that records the names of the files that are read."""

    def count(path):
        names.append(Path(path).name)
        return digest_file(path)

    names, digest_file = [], digests.digest_file
    monkeypatch.setattr(digests, "digest_file", count)
    return names


def test_files_are_read_once(cases, reads, tmp_path):
    first = digest_cases(cases, tmp_path / "digests", num_workers=2)
    assert sorted(reads) == ["a", "b", "c"]  # a belongs to two cases
    assert digest_cases(cases[::-1], tmp_path / "digests", num_workers=0) == first[::-1]
    assert len(reads) == 3
    assert len(set(first)) == 2


@pytest.mark.parametrize("change", [lambda path: path.write_text("aa"), lambda path: os.utime(path, ns=(0, 0))])
def test_another_size_or_time_is_read_again(cases, reads, tmp_path, change):
    first = digest_cases(cases, tmp_path / "digests", num_workers=0)
    reads.clear()
    change(tmp_path / "a")
    second = digest_cases(cases, tmp_path / "digests", num_workers=0)
    assert reads == ["a"]
    assert (second == first) == ((tmp_path / "a").read_text() == "a")


def test_digests_of_other_datasets_are_kept(cases, reads, tmp_path):
    for part in (cases[:1], cases[1:], cases):
        digest_cases(part, tmp_path / "digests", num_workers=0)
    assert sorted(reads) == ["a", "b", "c"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": ["x", 1, "y"]}', "[" * 100_000])
def test_a_damaged_store_is_rebuilt(cases, reads, tmp_path, text):
    (tmp_path / "digests").write_text(text)
    digest_cases(cases, tmp_path / "digests", num_workers=0)
    assert len(reads) == 3
    assert len(json.loads((tmp_path / "digests").read_text())) == 3


def test_a_store_that_cannot_be_written_only_costs_time(cases, reads, tmp_path):
    for _ in range(2):
        digest_cases(cases, tmp_path / "nowhere" / "digests", num_workers=0)
    assert len(reads) == 6


def test_unreadable_file_is_named(cases, tmp_path):
    (tmp_path / "b").unlink()
    with pytest.raises(InputError, match=f"{tmp_path / 'b'}: cannot be read"):
        digest_cases(cases, tmp_path / "digests", num_workers=0)


def test_a_damaged_digest_is_computed_again(cases, reads, tmp_path):
    expected = digest_cases(cases, tmp_path / "digests", num_workers=0)
    stored = json.loads((tmp_path / "digests").read_text())
    stored[str(tmp_path / "a")][-1] = "no digest"
    (tmp_path / "digests").write_text(json.dumps(stored))
    assert digest_cases(cases, tmp_path / "digests", num_workers=0) == expected


def test_files_that_are_gone_are_forgotten(cases, tmp_path):
    digest_cases(cases, tmp_path / "digests", num_workers=0)
    (tmp_path / "c").unlink()
    (tmp_path / "a").write_text("aa")
    digest_cases(cases[1:], tmp_path / "digests", num_workers=0)
    assert json.loads((tmp_path / "digests").read_text()).keys() == {str(tmp_path / "a"), str(tmp_path / "b")}
