"""Values of flags: their types, and the messages for values that a flag does not accept."""

import argparse

import pytest

from engine.runtime.arguments import (
    AXES,
    Axes,
    add_network_arguments,
    boolean,
    format_value,
    hours,
    name_network_flags,
    network_overrides,
    number,
    odd,
    positive,
)
from engine.runtime.errors import InputError, OneLineParser


def parse(*words):
    parser = OneLineParser("script")
    add_network_arguments(parser.add_argument_group("network"))
    return parser.parse_args(list(words))


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (number(int, 1), "3", 3),
        (number(float, 0, 1), "1", 1.0),
        (positive, "1e-4", 1e-4),
        (hours, "8760", 8760),
        (odd, "21", 21),
        (boolean, "true", True),
        (boolean, "False", False),
    ],
)
def test_values_are_converted(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (number(int, 1), "0", "a whole number from 1"),
        (number(int, 1), "1.5", "a whole number from 1"),
        (number(int, 1), "9" * 30, "a whole number from 1"),
        (number(float, 0, 1), "nan", "a number from 0 to 1"),
        (number(float, 0, 1, open_high=True), "1", "a number from 0 to below 1"),
        (positive, "0", "a number above 0"),
        (positive, "inf", "a number above 0"),
        (hours, "8761", "at most 8760 hours"),
        (odd, "4", "an odd number"),
        (boolean, "yes", "True or False"),
    ],
)
def test_other_values_are_refused(kind, text, expected):
    with pytest.raises(argparse.ArgumentTypeError, match=f"found '{text}', expected {expected}"):
        kind(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("2", 2), ("0.5", 0.5), ("true", True), ("False", False), ("none", None), ("learned", "learned")),
        *(("2,2,2", [2, 2, 2]), ("(1,2)", [1, 2]), ("[[1,2],[3]]", [[1, 2], [3]]), ("a=b", "a=b"), ("", "")),
        *(("[1j]", "[1j]"), ("[b'x']", "[b'x']"), ("{1}", "{1}"), ("[" * 1000, "[" * 1000), ("1_0", 10)),
    ],
)
def test_network_arguments_are_literals_or_text(text, value):
    assert parse("--network_args", f"name={text}").network_args == {"name": value}


@pytest.mark.parametrize("words", [["beta"], ["2=beta"], ["=2"], ["beta=1", "beta=2"]])
def test_malformed_network_arguments_are_one_line(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--network_args", *words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("script: error: argument --network_args: found ")


def test_the_side_of_the_kernels_has_one_name():
    """So that a flag replaces the argument of a checkpoint, whichever name either was given by."""
    assert network_overrides(parse("--network_args", "ks=5")) == {"kernel_size": 5}
    for words in (["--network_args", "ks=5", "kernel_size=7"], ["--kernel_size", "5", "--network_args", "ks=7"]):
        with pytest.raises(InputError, match="expected it once, as --kernel_size"):
            network_overrides(parse(*words))


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        ([], ""),
        (["feat_size"], "--feat_size"),
        (["beta", "kernel_size", "per_channel"], "--kernel_size, --network_args"),
    ],
)
def test_flags_of_network_arguments_are_named(names, flags):
    assert name_network_flags(names) == flags


def test_flags_and_network_arguments_are_merged():
    assert network_overrides(parse()) == {}
    found = network_overrides(parse("--feat_size", "4", "8", "--kernel_size", "5", "--network_args", "beta=2"))
    assert found == {"feat_size": [4, 8], "kernel_size": 5, "beta": 2}
    with pytest.raises(InputError, match="--network_args: found kernel_size, expected it once, as --kernel_size"):
        network_overrides(parse("--kernel_size", "5", "--network_args", "kernel_size=7"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "none given"), (True, "on"), (False, "off"), ([96, 96, 96], "96 96 96"), (0.5, "0.5"), ("SGD", "SGD")),
        ({"beta": 2, "per_channel": True}, "beta=2 per_channel=true"),
    ],
)
def test_values_are_formatted_as_they_are_typed(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--mirror"], ["RL", "AP", "IS"]),
        (["--mirror", "IS", "RL"], ["RL", "IS"]),
        (["--mirror", "AP", "AP"], ["AP"]),
    ],
)
def test_axes_have_an_order_and_none_named_means_all(words, expected):
    parser = OneLineParser("script")
    parser.add_argument("--mirror", nargs="*", action=Axes, choices=AXES)
    assert parser.parse_args(words).mirror == expected
