"""Types of constructor arguments: what each annotation accepts, and the message for everything else."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest

from networks import build_network
from networks.argument_types import check_types


class Example:
    def __init__(
        self,
        width: int = 1,
        rate: float = 0.5,
        bias: bool = True,
        norm: str = "instance",
        hidden: int | None = None,
        mode: Literal["learned", "fixed"] = "learned",
        widths: Sequence[int] = (1, 2),
        rates: Sequence[float] = (0.5,),
        depths: Sequence[int] | int = 1,
        strides: Sequence[Sequence[int]] = ((2, 2, 2),),
        names: Sequence[str] = (),
        block: Callable[[int], object] = int,
        anything: Any = None,
        plain=None,
    ) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("width", value) for value in (0, -3, 2**63 - 1, np.int64(4), np.uint8(4))),
        *(("rate", value) for value in (0.5, 2, -1, 1e300, float("nan"), np.float32(0.5), np.float64(2), np.int64(2))),
        *(("bias", value) for value in (True, False)),
        *(("norm", value) for value in ("", "batch")),
        *(("hidden", value) for value in (None, 3, np.int32(3))),
        *(("mode", value) for value in ("learned", "fixed")),
        *(("widths", value) for value in ((), [1], (1, 2, 3), [np.int64(1), 2])),
        *(("rates", value) for value in ([0.5, 1], (np.float32(0.5),))),
        *(("depths", value) for value in (3, (1, 2), [1, 2])),
        *(("strides", value) for value in (((2, 2, 2), (1, 2, 2)), [[2, 2, 2], (1, 2, 2)], [])),
        ("names", ["a", "b"]),
        *(("block", value) for value in (3, int)),
        *(("anything", value) for value in (3, [None])),
        *(("plain", value) for value in (3, [None])),
        ("unknown", 3),
    ],
)
def test_accepted(name, value):
    check_types(Example, {name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(("width", value, "a whole number") for value in (0.5, 2.0, "2", True, None, (2,), np.float64(2), 2**63)),
        *(("rate", value, "a number") for value in ("0.5", False, None, [0.5], 10**400)),
        *(("bias", value, "true or false") for value in (0, 1, "yes", None)),
        *(("norm", value, "text") for value in (3, None, ["batch"])),
        *(("hidden", value, "a whole number or none") for value in (0.5, "3", True)),
        *(("mode", value, "learned or fixed") for value in ("none", None, 1, ["learned"])),
        *(("widths", value, "a list of whole numbers") for value in (2, "12", None, (1, 2.5), [True], [[1]], [2**63])),
        *(("rates", value, "a list of numbers") for value in (0.5, ("a",))),
        *(("depths", value, "a list of whole numbers or a whole number") for value in ("3", 1.5, [1, "2"])),
        *(("strides", value, "a list of lists of whole numbers") for value in (2, [2, 2], [[2, 2.5]], [[[2]]])),
        *(("names", value, "a list of texts") for value in ("ab", [1])),
    ],
)
def test_refused(name, value, expected):
    message = f"{name}: found {value!r}, expected {expected}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_types(Example, {name: value})


def test_functions_are_checked_as_classes_are():
    def build(width: int) -> None:
        pass

    check_types(build, {"width": 3})
    with pytest.raises(ValueError, match=r"^width: found 'a', expected a whole number$"):
        check_types(build, {"width": "a"})


@pytest.mark.parametrize(
    ("network", "name", "value", "expected"),
    [
        ("REP3D", "beta", "2", "a number"),
        ("REP3D", "per_channel", 1, "true or false"),
        ("REP3D", "hidden_size", 2.5, "a whole number or none"),
        ("REP3D", "feat_size", 8, "a list of whole numbers"),
        ("REP3D", "norm_name", 3, "text"),
        ("3DUXNET", "mask", "soft", "learned or fixed or none"),
        ("REPOPT", "branches", "true", "true or false"),
        ("SwinUNETR", "window_size", 7.5, "a whole number"),
        ("UNETR", "proj_type", 1, "text"),
        ("UNet3D", "channels", [8, 16, 32, 64, 128.5], "a list of whole numbers"),
        ("ResEncUNet", "n_blocks", 2, "a list of whole numbers"),
        ("nnFormer", "drop_path_rate", True, "a number"),
        ("TransBTS", "official_keys", 0, "true or false"),
        ("UNesT", "depths", [2, 2, "8"], "a list of whole numbers"),
        ("STUNet_S", "depths", "1", "a list of whole numbers or a whole number"),
        ("STUNet_S", "strides", [2, 2, 2, 2, 2], "a list of lists of whole numbers"),
    ],
)
def test_networks_check_the_types_of_their_arguments(network, name, value, expected):
    message = f"{network}: {name}: found {value!r}, expected {expected}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build_network(network, 1, 3, **{name: value})


def test_the_side_of_large_kernels_has_the_constructors_name_in_messages():
    with pytest.raises(ValueError, match=r"^REP3D: ks: found 5\.5, expected a whole number$"):
        build_network("REP3D", 1, 3, kernel_size=5.5)


def test_lists_and_numbers_of_numpy_build_a_network():
    strides = [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 1, 2]]
    network = build_network("STUNet_S", 1, 3, (16, 32, 32), feat_size=[np.int64(2)] * 6, strides=strides, depths=2)
    assert network.input_sizes.divisors == (16, 16, 32)
