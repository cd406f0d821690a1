"""Training step of REP3D over the size of the kernel and of the crop: PyTorch's convolutions, and ours.

    python -m benchmarks.kernel_size [--kernel_sizes 3 7 11 15 21 27 31] [--crops 64 96 128 160]

A step is that of ``benchmarks.training_step`` with one crop: every kernel at crops of 96^3, every crop with kernel 21.
"native" is the published recipe. This is the measurement on a CPU, where each point has a process of its own;
``benchmarks.gpu`` measures a GPU. Points that the output file already contains are kept, so that the command can be
stopped and repeated. A point is left out if smaller points suggest that it takes more than ``--limit_s``, or if it does
not fit in memory; the output gives the reason.

docs/kernel_size.png (``benchmarks.readme``) shows the results on a CPU and on GPUs.
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
DIVISOR = 16  # the sides of crops of REP3D are multiples of it
KERNEL_SIZE, CROP = 21, 96  # each is fixed while the other varies
WAYS = {"here": False, "native": True}  # True: the published recipe
STYLES = {
    "native": {"label": "published recipe (PyTorch's convolution, float32)", "color": "tab:red"},
    "here": {"label": "here", "color": "tab:blue"},
}
LONG_S = 60  # a first run of at least so many seconds counts, and is the only one
Point = tuple[str, int, int]  # way, kernel's side, crop's side


def points(kernel_sizes: Sequence[int], crops: Sequence[int], crop: int) -> list[Point]:
    """List the points of each way, the cheapest first: kernels at one crop, then crops with one kernel."""
    grid = [*((side, crop) for side in sorted(kernel_sizes)), *((KERNEL_SIZE, side) for side in sorted(crops))]
    return [(way, *point) for way in WAYS for point in dict.fromkeys(grid)]


def make_step(point: Point, device: torch.device, batch_size: int, feat_size: Sequence[int]) -> Step:
    """Build the step of one point: ours in the device's precision, the published one in float32."""
    way, kernel_size, crop = point
    roi_size = (crop,) * 3
    config = NetworkConfig("REP3D", 1, 16, roi_size, {"feat_size": tuple(feat_size), "kernel_size": kernel_size})
    precision = None if WAYS[way] else choose_precision("auto", device, roi_size, InputSizes(DIVISOR))
    return Step(config, batch_size, device, precision, published=WAYS[way])


def expected_seconds(point: Point, rows: Sequence[dict[str, Any]]) -> float:
    """Extrapolate from smaller points of the same way: cost is proportional to the voxels of crop and native kernel."""
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
    """Yield a row for each point that is missing in ``rows``, as soon as it is measured.

    Args:
        todo: points, the cheaper ones first.
        rows: known rows.
        measure_point: function that measures seconds and peak of a point, or reports why it cannot (``measure_step``).
        limit_s: limit of the expected seconds; points beyond it are left out.
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
    """Draw one line per way through the points that differ only in ``name``, with the seconds of the last point."""
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
    """Format the results as text: the machine, and a table of the points."""
    table = [
        [row["way"], f"{row['kernel_size']}", f"{row['crop']}", *format_measurement(row)] for row in results["rows"]
    ]
    head = f"{name_machine(results)}; REP3D, batch {results['batch_size']}"
    return f"{head}\n\n{format_table(['way', 'kernel', 'crop', 'step, s', 'runs', 'peak, GB'], table)}"


def format_measurement(row: dict[str, Any]) -> list[str]:
    """Format seconds, runs and peak memory of a row, or the reason why it has none."""
    if row["step_s"] is None:
        return [row["reason"].partition(":")[0], "-", "-"]
    return [f"{row['step_s']:.3g}", str(len(row["steps_s"])), f"{row['peak_bytes'] / 1e9:.2f}"]


def read_rows(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Read what was measured earlier on this machine with these settings; points that were left out are tried again."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
        if {name: found.get(name) for name in settings} != settings:
            return []
        return [row for row in found["rows"] if row["step_s"] is not None]
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"--output: {path} is not a JSON file of this command, expected one or a new name") from error


def crop_side(text: str) -> int:
    """Convert text to the side of a crop that suits the network."""
    side = int(number(int, DIVISOR)(text))
    if side % DIVISOR:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a multiple of {DIVISOR}")
    return side


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser(prog="benchmarks.kernel_size", description=__doc__)
    what = parser.add_argument_group("network and input")
    kernels, crops = "sides of the kernels, voxels", "sides of the crops, voxels"
    what.add_argument("--kernel_sizes", nargs="+", type=odd, default=KERNEL_SIZES, metavar="SIDE", help=kernels)
    what.add_argument("--crops", nargs="+", type=crop_side, default=CROPS, metavar="SIDE", help=crops)
    widths, channels, names = [48, 96, 192, 384], "channels of the four stages", ("C1", "C2", "C3", "C4")
    what.add_argument("--feat_size", nargs=4, type=number(int, 1), default=widths, metavar=names, help=channels)
    measurement = parser.add_argument_group("measurement")
    measurement.add_argument("--repeats", type=number(int, 1), default=2, metavar="N", help="timed steps per point")
    limit = "leave out points that are expected to take longer"
    measurement.add_argument("--limit_s", type=number(float, 0), default=900, metavar="SECONDS", help=limit)
    output, file = Path("benchmarks/results/kernel_size_cpu.json"), "JSON file to write, or to continue"
    measurement.add_argument("--output", type=Path, default=output, metavar="FILE", help=file)
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the missing points, write the JSON file after each, print the table, and return the file's content."""
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

    todo = points(args.kernel_sizes, args.crops, CROP)
    for row in measure(todo, tuple(rows), measure_point, args.limit_s):
        rows.append(row)
        write_text(args.output, json.dumps({**machine, **settings, "rows": rows}, indent=2) + "\n")
    results = {**machine, **settings, "rows": rows}
    return publish(results, report(results), args.output)


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
