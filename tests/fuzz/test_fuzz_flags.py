"""Random command lines: valid values, invalid values, valid values that exclude each other, and strange paths."""

import argparse
import contextlib
import io
from unittest import mock

from conftest import TRAINED, train_arguments
from fuzzing import MISTAKE, copies, end_well, examples, predict_arguments
from hypothesis import given
from hypothesis import strategies as st

import main_train
import test_seg
from engine.runtime.errors import OneLineParser
from tools import check_data

# Flags without an upper limit: large numbers are valid, and take unlimited time, memory or processes.
SIZES = ("--max_iter", "--crop_sample", "--batch_size", "--num_workers", "--feat_size", "--kernel_size", "--overlap")
# Flags that are not drawn: a compiler takes minutes, and the help ends a script before the other flags matter.
LEFT_OUT = ("--compile", "-h")
SMALL_NUMBERS = ("-1", "0", "1", "2", "3", "0.5", "1e-9", "nan", "-inf", "x", "", "1_0", " 1", "\uff13", "1e0", "0x1")
LARGE_NUMBERS = ("7", "1e9", "inf", "4294967295", "18446744073709551616", "1" * 400, "1" * 5000)
# Paths to a dataset, a run and predictions, relative to the working directory two folders below.
PATHS = (
    *("../../boxes", "../../boxes/boxes.json", "../../boxes/imagesTr", "../../boxes/imagesVal/box_8.nii.gz"),
    *("../../run", "../../run/best_metric_model.pth", "../../run/args.json", "../../predictions", "new", "new/deep"),
    *("", ".", "..", "nowhere", "/dev/null", "/dev/null/x", "a\0b", "a\nb", "x" * 300, "ü", "\udcff", "-", "%s{0}"),
)
names = st.text(st.characters(exclude_characters="/"), max_size=20)


def flags_of(script):
    """List the flags of a script's parser."""
    parse = mock.patch.object(OneLineParser, "parse_args", autospec=True, side_effect=InterruptedError)
    with parse as parse_args, contextlib.suppress(InterruptedError):
        script.parse_args([])
    (parser,) = parse_args.call_args.args[:1]
    return [action for action in parser._actions if action.option_strings[0] not in LEFT_OUT]


def words_of(flag):
    """Draw words for a flag: suitable ones, and arbitrary ones."""
    name = flag.option_strings[0]
    if flag.choices:
        return st.sampled_from(list(flag.choices)), names
    if name == "--roi_size":
        return st.sampled_from(("16", "32", "32", "48")), st.sampled_from(("17", "0", "-16", "1e2"))
    if flag.type is None:
        return st.sampled_from(PATHS), names
    numbers = SMALL_NUMBERS + (() if name in SIZES else LARGE_NUMBERS)
    fine = [word for word in numbers if is_fine(flag, word)]
    return st.sampled_from(fine or numbers), st.sampled_from(numbers)


def is_fine(flag, word):
    """Return whether the type of a flag accepts a word."""
    try:
        flag.type(word)
    except (argparse.ArgumentTypeError, ValueError):
        return False
    return True


def values_of(flag):
    """Draw the words after a flag, most of which are valid by themselves."""
    if flag.nargs == 0:
        return st.just([])
    own, others = words_of(flag)
    count = flag.nargs if isinstance(flag.nargs, int) else 4 if flag.nargs == "+" else 1
    fine = st.lists(own, min_size=count, max_size=count)
    return st.one_of(*[fine] * 6, st.lists(others, min_size=count, max_size=count), st.lists(others, max_size=5))


def command_lines(script, most):
    """Draw some flags of a script with values, mostly in the right number."""
    flag = st.sampled_from(flags_of(script))
    drawn = flag.flatmap(lambda flag: values_of(flag).map(lambda words: [flag.option_strings[0], *words]))
    return st.lists(drawn, min_size=1, max_size=most).map(lambda parts: [word for part in parts for word in part])


@examples(200)
@given(data=st.data(), script=st.sampled_from((main_train, test_seg, check_data)))
def test_parsing(script, data):
    words = data.draw(command_lines(script, most=8))
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        try:
            script.parse_args(words)
            status = 0
        except SystemExit as stop:
            status = stop.code
    assert status == 0 or (status == 2 and MISTAKE.match(err.getvalue())), err.getvalue()


@examples(4)
@given(flags=command_lines(main_train, most=4))
def test_training(box_template, trained, flags):
    with copies(boxes=box_template, run=trained) as folder:
        base = train_arguments(folder / "boxes", folder / "new", "--max_iter", "1")
        end_well("main_train.py", *base, *flags, statuses=(0, 2, 75))


@examples(4)
@given(flags=command_lines(main_train, most=2))
def test_resuming(box_template, trained, flags):
    with copies(boxes=box_template, run=trained) as folder:
        base = train_arguments(folder / "boxes", folder / "run", *TRAINED, "--resume")
        end_well("main_train.py", *base, *flags, statuses=(0, 2, 75))


@examples(8)
@given(flags=command_lines(test_seg, most=4))
def test_prediction(box_template, trained, flags):
    with copies(boxes=box_template, run=trained) as folder:
        base = predict_arguments(folder / "boxes", folder / "new", folder / "run")
        end_well("test_seg.py", *base, *flags, statuses=(0, 1, 2))


@examples(10)
@given(flags=command_lines(check_data, most=4))
def test_the_check(box_template, trained, flags):
    with copies(boxes=box_template, run=trained) as folder:
        base = ("--root", folder / "boxes", "--dataset", folder / "boxes" / "boxes.json", "--headers_only")
        end_well("tools/check_data.py", *base, *flags)
