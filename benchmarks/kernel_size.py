"""How a training step of REP3D grows with the kernel's side and with the crop: PyTorch's convolutions, and ours.

    python -m benchmarks.kernel_size [--kernel_sizes 3 7 11 15 21 27 31] [--crops 64 96 128 160]

A step is that of ``benchmarks.training_step``, one crop a step: every kernel at crops of 96^3, every crop with kernel
21. "native" is the published recipe. This is the measurement on a CPU, where each point has a process of its own;
``benchmarks.gpu`` does it on a GPU. Points that are in the output file already are kept, so that the command
can be stopped and repeated. A point expected to take more than ``--limit_s``, by what smaller ones took, is left
out, and so is one that memory is too small for; the output says so.

docs/kernel_size.png (``benchmarks.readme``) shows what was found, on a CPU and on GPUs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.measure import UNMEASURED, Step, measure_step
from benchmarks.report import describe_machine, format_table, name_machine, publish
from engine.runtime.arguments import number, odd
from engine.runtime.devices import choose_precision
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import make_output_folder, write_text
from engine.weights.checkpoints import NetworkConfig
from networks.base import InputSizes

KERNEL_SIZES, CROPS = (3, 7, 11, 15, 21, 27, 31), (64, 96, 128, 160)
DIVISOR = 16  # of crops of REP3D
KERNEL_SIZE, CROP = 21, 96  # of the points that vary in the other
WAYS = {"here": False, "native": True}  # whether it is the published recipe
STYLES = {
    "native": {"label": "published recipe (PyTorch's convolution, float32)", "color": "tab:red"},
    "here": {"label": "here", "color": "tab:blue"},
}
LONG_S = 60  # a first run of so many seconds counts, and is the only one
Point = tuple[str, int, int]  # way, kernel's side, crop's side


def points(kernel_sizes: Sequence[int], crops: Sequence[int], crop: int = CROP) -> list[Point]:
    """Each way's, the cheapest first: kernels at one crop, then crops with one kernel."""
    grid = [*((side, crop) for side in sorted(kernel_sizes)), *((KERNEL_SIZE, side) for side in sorted(crops))]
    return [(way, *point) for way in WAYS for point in dict.fromkeys(grid)]


def make_step(point: Point, device: torch.device, batch_size: int, feat_size: Sequence[int]) -> Step:
    """The step of one point; ours with the device's precision, the published one in float32."""
    way, kernel_size, crop = point
    roi_size = (crop,) * 3
    config = NetworkConfig("REP3D", 1, 16, roi_size, {"feat_size": tuple(feat_size), "kernel_size": kernel_size})
    precision = None if WAYS[way] else choose_precision("auto", device, roi_size, InputSizes(DIVISOR))
    return Step(config, batch_size, device, precision, published=WAYS[way])


def expected_seconds(point: Point, rows: Sequence[dict[str, Any]]) -> float:
    """A guess from the smaller points of its way: crops and native kernels cost what they have voxels."""
    way, kernel_size, crop = point
    guesses = [0.0]
    for row in rows:
        if row["way"] == way and row["step_s"] and row["kernel_size"] <= kernel_size and row["crop"] <= crop:
            taps = (kernel_size / row["kernel_size"]) ** 3 if WAYS[way] and row["kernel_size"] > 7 else 1
            guesses.append(row["step_s"] * taps * (crop / row["crop"]) ** 3)
    return max(guesses)


def measure(
    todo: Sequence[Point],
    rows: Sequence[dict[str, Any]],
    measure_point: Callable[[Point], dict[str, Any]],
    limit_s: float,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each point that ``rows`` lack, the moment it is known.

    Args:
        todo: points, the cheaper before the dearer.
        rows: that are known.
        measure_point: seconds and peak of a point, or the reason why there are none (``measure_step``).
        limit_s: a point that is expected to take longer is left out.
    """
    known = list(rows)
    for point in todo:
        way, kernel_size, crop = point
        row: dict[str, Any] = {"way": way, "kernel_size": kernel_size, "crop": crop}
        if any(row.items() <= other.items() for other in known):
            continue
        if (expected := expected_seconds(point, known)) > limit_s:
            reason = f"left out: about {expected:.0f} s expected, limit {limit_s:g} s"
            row |= {**UNMEASURED, "reason": reason}
        else:
            row |= measure_point(point)
        known.append(row)
        yield row


def draw(machines: Sequence[dict[str, Any]]) -> Figure:
    """Draw seconds per step over the kernel's side and over the crop's, two panels for each machine's results."""
    figure = Figure(figsize=(10, 4.2 * len(machines)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(machines), 2, squeeze=False, sharey="row")
    for results, (left, right) in zip(machines, panels, strict=True):
        draw_panel(left, results["rows"], "kernel_size", {"crop": CROP})
        draw_panel(right, results["rows"], "crop", {"kernel_size": KERNEL_SIZE})
        left.legend(frameon=False, fontsize=9)
        left.set(xlabel="side of the kernel, voxels", ylabel="training step, seconds")
        right.set(xlabel=f"side of the crop, voxels (kernel {KERNEL_SIZE}³)")
        title = f"{results['device']}, batch {results['batch_size']}"
        left.set_title(f"{title}: crops of {CROP}³", loc="left", fontsize=10)
    return figure


def draw_panel(axes: Axes, rows: Sequence[dict[str, Any]], name: str, fixed: dict[str, int]) -> None:
    """Draw one line per way through the points that differ in ``name`` alone, the last one's seconds beside it."""
    for way, style in STYLES.items():
        found = [row for row in rows if row["way"] == way and row["step_s"] and fixed.items() <= row.items()]
        found.sort(key=lambda row: row[name])
        sides, seconds = [row[name] for row in found], [row["step_s"] for row in found]
        axes.plot(sides, seconds, "o-", label=style["label"], color=style["color"])
        for side, value in list(zip(sides, seconds, strict=True))[-1:]:
            text = f"{value:.0f} s" if value >= 100 else f"{value:.3g} s"
            axes.annotate(text, (side, value), xytext=(6, 4), textcoords="offset points", fontsize=9)
    axes.set_yscale("log")
    axes.set_xticks(sorted({row[name] for row in rows if fixed.items() <= row.items()}))
    axes.margins(x=0.18, y=0.08)  # room for the annotations
    axes.grid(alpha=0.3)


def report(results: dict[str, Any]) -> str:
    """The results as text: the machine, and a table of the points."""
    table = [
        [row["way"], f"{row['kernel_size']}", f"{row['crop']}", *format_measurement(row)] for row in results["rows"]
    ]
    head = f"{name_machine(results)}; REP3D, batch {results['batch_size']}"
    return f"{head}\n\n{format_table(['way', 'kernel', 'crop', 'step, s', 'runs', 'peak, GB'], table)}"


def format_measurement(row: dict[str, Any]) -> list[str]:
    """Seconds, runs and peak memory of a row, or why it has none."""
    if row["step_s"] is None:
        return [row["reason"].partition(":")[0], "-", "-"]
    return [f"{row['step_s']:.3g}", str(len(row["steps_s"])), f"{row['peak_bytes'] / 1e9:.2f}"]


def read_rows(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What this command has measured on this machine with these settings; points that were left out are tried again."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
        if {name: found.get(name) for name in settings} != settings:
            return []
        return [row for row in found["rows"] if row["step_s"] is not None]
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"--output: {path} is no JSON file of this command, expected one or a new name") from error


def crop_side(text: str) -> int:
    """A side that the network takes."""
    side = int(number(int, DIVISOR)(text))
    if side % DIVISOR:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a multiple of {DIVISOR}")
    return side


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(
        prog="benchmarks.kernel_size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--kernel_sizes", nargs="+", type=odd, default=KERNEL_SIZES, help="sides of kernels, voxels (default: 3 to 31)"
    )
    what.add_argument(
        "--crops", nargs="+", type=crop_side, default=CROPS, help="sides of crops, voxels (default: 64 to 160)"
    )
    what.add_argument(
        "--feat_size", nargs=4, type=number(int, 1), default=[48, 96, 192, 384], help="channels of the four stages"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--repeats", type=number(int, 1), default=2, help="timed steps per point (default: %(default)s)")
    how.add_argument(
        "--limit_s",
        type=number(float, 0),
        default=900,
        help="points expected to take more seconds are left out (default: %(default)s)",
    )
    how.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks/results/kernel_size_cpu.json"),
        help="JSON file to write, and to continue (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing, print the table, write the JSON after each point, and return what was written."""
    make_output_folder(args.output.parent)
    device = torch.device("cpu")
    machine = describe_machine(device)
    settings = {name: machine[name] for name in ("device", "threads", "torch")}
    settings |= {"batch_size": 1, "feat_size": list(args.feat_size)}
    rows = read_rows(args.output, settings)

    def measure_point(point: Point) -> dict[str, Any]:
        print(f"measuring {point[0]}, kernel {point[1]}, crop {point[2]} ...", file=sys.stderr, flush=True)
        step = make_step(point, device, 1, args.feat_size)
        return measure_step(step, args.repeats, long_s=LONG_S, own_process=True)

    todo = points(args.kernel_sizes, args.crops)
    for row in measure(todo, tuple(rows), measure_point, args.limit_s):
        rows.append(row)
        write_text(args.output, json.dumps({**machine, **settings, "rows": rows}, indent=2) + "\n")
    results = {**machine, **settings, "rows": rows}
    return publish(results, report(results), args.output)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
