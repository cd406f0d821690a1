"""Damaged checkpoints and valid files with other content are refused in one line, or the previous one is used."""

import shutil

import torch
from conftest import TRAINED, train_arguments
from fuzzing import copies, end_well, examples, predict_arguments
from hypothesis import given
from hypothesis import strategies as st

from engine.runtime.files import BEST, LAST, PREVIOUS
from engine.weights.load_network import load_trained
from networks import save_pretrained

plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        [0, 1, -1, 32, "REP3D", "UNet3D", "\ud800", (), [], {}, torch.zeros(3), torch.tensor(float("nan"))]
    )
)
anything = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=3)
    ),
)


def cut(content, where, _):
    return content[: where % len(content)]


def flip(content, where, byte):
    where %= len(content)
    return content[:where] + bytes([content[where] ^ byte]) + content[where + 1 :]


def flip_at_the_end(content, where, byte):
    """Flip bits in the archive's directory, which has no checksum."""
    return flip(content, len(content) - 1 - where % 8000, byte)


def append(content, where, byte):
    return content + bytes([byte]) * (where % 100_000)


def prepend(content, where, byte):
    return bytes([byte]) * (where % 100) + content


def twice(content, *_):
    return content + content


def zeros(content, where, _):
    """Replace the end by zeros, like blocks that were never written to the disk."""
    return cut(content, where, 0).ljust(len(content), b"\0")


byte_damages = st.lists(
    st.tuples(
        st.sampled_from((cut, flip, flip, flip_at_the_end, append, prepend, twice, zeros)),
        st.integers(0, 2**24),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=3,
)


def damage_bytes(path, damages):
    content = path.read_bytes()
    for damage, where, byte in damages:
        content = damage(content, where, byte) or b"\0"
    path.write_bytes(content)


def places_in(values, most=3):
    """Draw keys that lead to a value in nested dictionaries and lists, but not into tensors."""
    keys = list(values) if isinstance(values, dict) else list(range(len(values)))[:4]

    def deeper(key):
        inner = values[key]
        if most > 1 and isinstance(inner, dict | list) and inner:
            return st.just((key,)) | places_in(inner, most - 1).map(lambda rest: (key, *rest))
        return st.just((key,))

    return st.sampled_from(keys).flatmap(deeper)


def change_values(path, content, changes):
    """Write a checkpoint with some values replaced, or removed if a change has no value."""
    for place, *value in changes:
        inner = content
        try:
            for key in place[:-1]:
                inner = inner[key]
            if value:
                inner[place[-1]] = value[0]
            else:
                del inner[place[-1]]
        except (TypeError, KeyError, IndexError):  # an earlier change removed it
            continue
    torch.save(content, path)


def changes_of(content):
    place = places_in({key: value for key, value in content.items() if key != "model"})
    weights = st.sampled_from(list(content["model"])).map(lambda key: ("model", key)) | st.just(("model",))
    place = place | place | place | weights
    return st.lists(st.tuples(place, anything) | st.tuples(place), min_size=1, max_size=2)


def load(path):
    return torch.load(path, weights_only=True)


@examples(3)
@given(damages=byte_damages, both=st.booleans())
def test_resuming_from_damaged_bytes(box_template, trained, damages, both):
    with copies(boxes=box_template, run=trained) as folder:
        for name in (LAST, PREVIOUS)[: 1 + both]:
            damage_bytes(folder / "run" / name, damages)
        end_well("main_train.py", *train_arguments(folder / "boxes", folder / "run", *TRAINED, "--resume"))


@examples(6)
@given(damages=byte_damages)
def test_predicting_with_damaged_bytes(box_template, trained, damages):
    with copies(boxes=box_template, run=trained) as folder:
        damage_bytes(folder / "run" / BEST, damages)
        end_well("test_seg.py", *predict_arguments(folder / "boxes", folder / "new", folder / "run"))


@examples(6)
@given(damages=byte_damages)
def test_predicting_with_damaged_safetensors(box_template, trained, damages):
    with copies(boxes=box_template) as folder:
        network, _, description, _ = load_trained(trained / BEST, "")
        save_pretrained(network, folder / "run", description.to_json())
        path = folder / "run" / "model.safetensors"
        damage_bytes(path, damages)
        weights = ("--trained_weights", path)
        end_well("test_seg.py", *predict_arguments(folder / "boxes", folder / "new", folder / "run", *weights))


@examples(10)
@given(data=st.data())
def test_resuming_from_other_values(box_template, trained, data):
    changes = data.draw(changes_of(load(trained / LAST)))
    with copies(boxes=box_template, run=trained) as folder:
        change_values(folder / "run" / LAST, load(trained / LAST), changes)
        end_well("main_train.py", *train_arguments(folder / "boxes", folder / "run", *TRAINED, "--resume"))


@examples(10)
@given(data=st.data())
def test_predicting_with_other_values(box_template, trained, data):
    changes = data.draw(changes_of(load(trained / BEST)))
    with copies(boxes=box_template, run=trained) as folder:
        change_values(folder / "run" / BEST, load(trained / BEST), changes)
        end_well("test_seg.py", *predict_arguments(folder / "boxes", folder / "new", folder / "run"))


@examples(6)
@given(content=anything | st.dictionaries(st.sampled_from(["model", "config", "description", "args"]), anything))
def test_any_content(box_template, trained, content):
    with copies(boxes=box_template, run=trained) as folder:
        torch.save(content, folder / "run" / BEST)
        shutil.copy(folder / "run" / BEST, folder / "run" / LAST)
        end_well("test_seg.py", *predict_arguments(folder / "boxes", folder / "new", folder / "run"))
        start = ("--pretrain", "True", "--pretrained_weights", folder / "run" / BEST)
        for flags in (("--output", folder / "run", "--resume"), start):
            end_well("main_train.py", *train_arguments(folder / "boxes", folder / "new", "--max_iter", "1", *flags))
