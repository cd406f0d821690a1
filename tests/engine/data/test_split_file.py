"""Split files: what is read, the hash of the ids, the choice of a fold, and one line for every mistake."""

import hashlib
import json

import pytest

from engine.data.split_file import SplitFile, find_split, read_split_file, write_split_file
from engine.data.splits import Split, hash_ids
from engine.runtime.errors import InputError

FOLDS = ({"training": ["c", "b"], "validation": ["a"]}, {"training": ["a", "c"], "validation": ["b"]})
CONTENT = SplitFile("mine", "made up", 3, FOLDS, ("t",))


def write(path, values):
    path.write_text(json.dumps(values))
    return path


def test_a_written_file_is_read_back(tmp_path):
    write_split_file(tmp_path / "split.json", CONTENT)
    found = read_split_file(tmp_path / "split.json")
    assert found.to_text() == CONTENT.to_text()
    assert (found.name, found.provenance, found.seed, found.test) == ("mine", "made up", 3, ("t",))
    assert json.loads((tmp_path / "split.json").read_text())["hash"] == CONTENT.digest


def test_the_hash_is_that_of_the_documented_text():
    text = (
        '{"folds":[{"training":["b","c"],"validation":["a"]},{"training":["a","c"],"validation":["b"]}],"test":["t"]}'
    )
    assert CONTENT.digest == hashlib.sha256(text.encode()).hexdigest()


def test_the_hash_depends_on_the_parts_and_not_on_the_order_of_ids():
    turned = [{part: ids[::-1] for part, ids in fold.items()} for fold in FOLDS]
    assert hash_ids(turned, ["t"]) == CONTENT.digest
    swapped = [{"training": fold["validation"], "validation": fold["training"]} for fold in FOLDS]
    assert len({CONTENT.digest, hash_ids(FOLDS), hash_ids(FOLDS[::-1], ["t"]), hash_ids(swapped, ["t"])}) == 4


def test_only_the_folds_are_required(tmp_path):
    found = read_split_file(write(tmp_path / "by_hand.json", {"folds": FOLDS}))
    assert (found.name, found.provenance, found.seed, found.test) == ("by_hand", "", None, ())


def test_a_split_of_nnunet_is_read(tmp_path):
    folds = [{"train": fold["training"], "val": fold["validation"]} for fold in FOLDS]
    found = read_split_file(write(tmp_path / "splits_final.json", folds))
    assert found.digest == hash_ids(FOLDS)
    assert found.choose(1).parts == {"training": ("a", "c"), "validation": ("b",)}


def test_a_fold_is_chosen(tmp_path):
    path = str(write(tmp_path / "split.json", {"folds": FOLDS, "test": ["t"]}))
    split = find_split(path, 0)
    assert split.parts == {"training": ("b", "c"), "validation": ("a",), "test": ("t",)}
    assert str(split) == f"split, fold 0 of 2, hash {CONTENT.digest[:12]}: 2 training, 1 validation, 1 test"
    whole = str(write(tmp_path / "whole.json", {"folds": FOLDS[:1]}))
    assert find_split(whole, None).ids("validation") == find_split(whole, 0).ids("validation") == ("a",)
    assert find_split(None, None) is None


def test_the_test_part_needs_no_fold(tmp_path):
    split = find_split(str(write(tmp_path / "split.json", {"folds": FOLDS, "test": ["t"]})), None)
    assert split.ids("test") == ("t",)
    with pytest.raises(InputError, match="--fold: found none, expected 0 to 1, a fold of the split 'split'"):
        split.ids("training")


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="--part: found test, expected training or validation"):
        Split.of_folders(["a"], ["b"]).ids("test")


@pytest.mark.parametrize(("folds", "fold", "expected"), [(2, 2, "0 to 1"), (1, 1, "expected 0,")])
def test_a_fold_that_does_not_exist_is_refused(tmp_path, folds, fold, expected):
    with pytest.raises(InputError, match=f"--fold: found {fold}, .*{expected}"):
        find_split(str(write(tmp_path / "split.json", {"folds": FOLDS[:folds]})), fold)


def test_a_fold_without_a_file_is_refused():
    with pytest.raises(InputError, match="--fold: found 1 without --split"):
        find_split(None, 1)


ONE = FOLDS[0]
MISTAKES = {
    "not an object": ("a", "found no object"),
    "unknown field": ({"folds": FOLDS, "fold": 5}, 'found the field "fold", expected only name'),
    "no folds": ({"name": "x"}, "folds: expected a list"),
    "empty folds": ({"folds": []}, "folds: expected a list"),
    "empty list": ([], "folds: expected a list"),
    "name": ({"folds": FOLDS, "name": ""}, 'name: found "", expected some text'),
    "provenance": ({"folds": FOLDS, "provenance": 1}, "provenance: found 1, expected some text"),
    "seed": ({"folds": FOLDS, "seed": True}, "seed: found true, expected a whole number"),
    "fold of another type": ({"folds": [["a"]]}, "fold 0: found no object"),
    "missing part": ({"folds": [{"training": ["a"]}]}, 'fold 0: found "training", expected exactly'),
    "unknown part": ([{"train": ["a"], "val": ["b"], "test": ["c"]}], '"test", expected exactly the parts'),
    "empty part": ({"folds": [ONE | {"validation": []}]}, "fold 0: validation: expected a list of ids, at least one"),
    "numbers": ({"folds": [ONE | {"validation": [1]}]}, "fold 0: validation: expected a list of ids"),
    "empty test": ({"folds": FOLDS, "test": []}, "test: expected a list of ids"),
    "twice in a part": ({"folds": [ONE | {"training": ["b", "c", "b"]}]}, "fold 0: training: found b twice"),
    "in two parts": (
        {"folds": [FOLDS[0], {"training": ["a", "b"], "validation": ["b"]}]},
        "fold 1: found b in training and validation, expected no case in two parts",
    ),
    "in the test and a fold": ({"folds": FOLDS[:1], "test": ["a"]}, "fold 0: found a in validation and test"),
    "hash of other ids": ({"folds": FOLDS, "hash": "0" * 64}, f"found the hash {'0' * 64}, expected {hash_ids(FOLDS)}"),
}


@pytest.mark.parametrize(("values", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path, values, expected):
    path = write(tmp_path / "split.json", values)
    with pytest.raises(InputError) as found:
        read_split_file(path)
    (line,) = str(found.value).splitlines()
    assert line.startswith(f"--split: {path}: ")
    assert expected in line


def test_every_mistake_is_reported(tmp_path):
    folds = [{"training": ["a", "a"], "validation": []}, {"training": ["a"], "validation": ["a"]}]
    with pytest.raises(InputError) as found:
        read_split_file(write(tmp_path / "split.json", {"folds": folds, "seeds": 1}))
    assert len(str(found.value).splitlines()) == 4


@pytest.mark.parametrize("text", ["", "{", '{"folds": [], "folds": []}', "[" * 100_000, b"\xff\xfe{"])
def test_what_is_no_json_is_one_line(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"^--split: .*split.json is not JSON \(.*\), expected a split file$"):
        read_split_file(path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"--split: .*none.json cannot be read"):
        read_split_file(tmp_path / "none.json")


def test_another_file_is_not_overwritten(tmp_path):
    path = tmp_path / "split.json"
    write_split_file(path, CONTENT)
    before = path.stat().st_mtime_ns
    write_split_file(path, CONTENT)  # the same, which is left alone
    assert path.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"--output: found another .*split.json, which is kept"):
        write_split_file(path, SplitFile("mine", "made up", 4, FOLDS))
    assert path.read_text() == CONTENT.to_text()
    with pytest.raises(InputError, match="cannot be written"):
        write_split_file(tmp_path, CONTENT)
