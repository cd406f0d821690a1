"""Any JSON for --dataset is accepted, or refused in lines that name the file."""

import json
import operator
from pathlib import Path

import numpy as np
from conftest import DESCRIPTION, train_arguments
from fuzzing import copies, end_well, examples
from hypothesis import given
from hypothesis import strategies as st

from engine.data.datasets import LARGEST, DatasetDescription
from engine.data.labels import IGNORED_INDEX, to_classes, to_file_values
from engine.runtime.errors import InputError

# Everything that Python's JSON reader accepts: NaN, Infinity, lone surrogates, 1e400.
texts = st.text(max_size=20) | st.sampled_from(["", "\x00", "\ud800", "a\nb", "x" * 300, "a/b", "background", "%s{0}"])
numbers = st.integers() | st.floats() | st.sampled_from([0, 1, 2, -1, 1e-320, 1e9, 10**400, 0.5, 100])
plain = st.none() | st.booleans() | numbers | texts
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


def number_them(words):
    return {word: number for number, word in enumerate(words)}


NAMES = ["background", "left", "right", "ignore", "T1", "T2"]
names = st.sampled_from(NAMES) | texts
values = st.integers(-3, 9) | numbers
rules = st.just({"zscore": True}) | st.lists(numbers, min_size=2, max_size=2).map(lambda w: {"window": w})
FIELDS = {
    "name": texts,
    "modality": texts,
    "labels": st.lists(texts, min_size=1, max_size=5, unique=True).map(number_them)
    | st.dictionaries(names, values | st.lists(values, max_size=3), max_size=5),
    "regions": st.dictionaries(names, st.lists(names, max_size=3), max_size=3),
    "surface_tolerance": numbers | st.dictionaries(names, numbers, max_size=3),
    "spacing": st.lists(numbers, min_size=3, max_size=3),
    "intensity": rules | st.dictionaries(names, rules, max_size=2),
    "channels": st.lists(names, min_size=1, max_size=3) | st.dictionaries(names, texts, max_size=3),
    "nan": st.sampled_from(["minimum", "error"]) | plain,
    # The fields of MSD and nnU-Net.
    "channel_names": st.dictionaries(st.sampled_from(["0", "1", "x", "-1", "10" * 9]), names | plain, max_size=3),
    "modality of MSD": st.dictionaries(st.sampled_from(["0", "1", "x"]), names | plain, max_size=3),
    "labels of MSD": st.dictionaries(st.sampled_from(["0", "1", "2", "x"]), names | plain, max_size=4),
}


@st.composite
def changed_descriptions(draw):
    """Draw the description of the boxes with fields changed, replaced, removed, added or duplicated, as JSON text."""
    values = dict(DESCRIPTION)
    for name in draw(st.lists(st.sampled_from(list(FIELDS)), min_size=1, max_size=3, unique=True)):
        values[name.removesuffix(" of MSD")] = draw(FIELDS[name] | FIELDS[name] | anything)
    for name in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=1)):
        values.pop(name, None)
    values |= draw(st.dictionaries(texts, anything, max_size=1))
    text = json.dumps(values, ensure_ascii=draw(st.booleans()))
    again = draw(st.none() | st.sampled_from(list(FIELDS)))
    return text if again is None else f"{text[:-1]}, {json.dumps(again)}: {json.dumps(draw(anything))}}}"


descriptions = (
    changed_descriptions().map(lambda text: text.encode(errors="surrogatepass"))
    | anything.map(lambda value: json.dumps(value).encode())
    | st.binary()
    | st.integers(1, 10**5).map(lambda depth: b'{"labels": ' + b"[" * depth)
    | st.just(json.dumps(DESCRIPTION).encode("utf-16"))
)


def read(content, path):
    """Read a description; None if it is refused, one line per problem."""
    path.write_bytes(content)
    try:
        return DatasetDescription.read(path)
    except InputError as error:
        message = str(error)
    assert all(str(path) in line for line in message.split("\n"))
    return None


@examples(200)
@given(content=descriptions)
def test_a_description_is_refused_or_read(content):
    with copies() as folder:
        description = read(content, folder / "some.json")
        if description is not None:
            again = read(json.dumps(description.to_json()).encode(), folder / "again.json")
            assert again == description
            everything = [value for merged in description.labels.classes for value in merged]
            indices, problems = to_classes(np.array([[*everything, *description.labels.ignored]]), description.labels)
            assert problems == []
            firsts = to_file_values(np.arange(len(description.classes), dtype=np.uint8), description.labels)
            assert to_classes(firsts[None], description.labels)[0][0].tolist() == list(range(len(firsts)))
            assert set(indices[0].tolist()) <= {*range(len(firsts)), IGNORED_INDEX}


printable = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
positive = st.floats(min_value=0, max_value=LARGEST, exclude_min=True, exclude_max=True)
windows = st.lists(positive | positive.map(operator.neg), min_size=2, max_size=2, unique=True).map(sorted)
# Spacings that turn the boxes of 36 x 28 x 18 mm into few voxels, one, or far too many; values in between take long.
sides = st.floats(0.5, 5) | st.floats(40, LARGEST, exclude_max=True) | st.floats(0, 1e-9, exclude_min=True)
unusual = st.fixed_dictionaries(
    {
        "name": printable,
        "modality": printable,
        "labels": st.lists(printable, min_size=3, max_size=6, unique=True).map(number_them)
        | st.permutations([0, 1, 2]).map(lambda order: dict(zip(["background", "x", "ignore"], order, strict=True)))
        | st.just({"background": [0, 1], "x": 2}),
        "spacing": st.lists(sides, min_size=3, max_size=3),
        "intensity": st.just({"zscore": True}) | windows.map(lambda window: {"window": window}),
    }
)


@examples(3)
@given(values=unusual)
def test_training_on_an_unusual_description(box_template, values):
    with copies(boxes=box_template) as folder:
        root = folder / "boxes"
        (root / "boxes.json").write_text(json.dumps(values))
        result = end_well("main_train.py", *train_arguments(root, Path("run"), "--max_iter", "1"))
        assert "out of memory" not in result.err, result.err
