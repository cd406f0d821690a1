"""Any JSON for --dataset is accepted, or refused in one line that names the file."""

import json
import operator
from pathlib import Path

from conftest import DESCRIPTION, train_arguments
from fuzzing import copies, end_well, examples
from hypothesis import given
from hypothesis import strategies as st

from engine.data.datasets import LARGEST, DatasetDescription
from engine.runtime.errors import InputError

# Everything that Python's JSON reader accepts: NaN, Infinity, lone surrogates, 1e400.
texts = st.text(max_size=20) | st.sampled_from(["", "\x00", "\ud800", "a\nb", "x" * 300, "a/b", "background", "%s{0}"])
numbers = st.integers() | st.floats() | st.sampled_from([0, 1, 2, -1, 1e-320, 1e9, 10**400, 0.5, 100])
plain = st.none() | st.booleans() | numbers | texts
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


def number_them(names):
    return {name: number for number, name in enumerate(names)}


FIELDS = {
    "name": texts,
    "modality": texts,
    "labels": st.lists(texts, min_size=1, max_size=5, unique=True).map(number_them),
    "spacing": st.lists(numbers, min_size=3, max_size=3),
    "intensity": st.just({"zscore": True}) | st.lists(numbers, min_size=2, max_size=2).map(lambda w: {"window": w}),
    "channels": st.lists(texts, min_size=1, max_size=3),
}


@st.composite
def changed_descriptions(draw):
    """Draw the description of the boxes with fields changed, replaced, removed, added or duplicated, as JSON text."""
    values = dict(DESCRIPTION)
    for name in draw(st.lists(st.sampled_from(list(FIELDS)), min_size=1, max_size=3, unique=True)):
        values[name] = draw(FIELDS[name] | FIELDS[name] | anything)
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
    """Read a description; None if it is refused in one line."""
    path.write_bytes(content)
    try:
        return DatasetDescription.read(path)
    except InputError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return None


@examples(200)
@given(content=descriptions)
def test_a_description_is_refused_or_read(content):
    with copies() as folder:
        description = read(content, folder / "some.json")
        if description is not None:
            again = read(json.dumps(description.to_json()).encode(), folder / "again.json")
            assert again == description


printable = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
positive = st.floats(min_value=0, max_value=LARGEST, exclude_min=True, exclude_max=True)
windows = st.lists(positive | positive.map(operator.neg), min_size=2, max_size=2, unique=True).map(sorted)
# Spacings that turn the boxes of 36 x 28 x 18 mm into few voxels, one, or far too many; values in between take long.
sides = st.floats(0.5, 5) | st.floats(40, LARGEST, exclude_max=True) | st.floats(0, 1e-9, exclude_min=True)
unusual = st.fixed_dictionaries(
    {
        "name": printable,
        "modality": printable,
        "labels": st.lists(printable, min_size=3, max_size=6, unique=True).map(number_them),
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
