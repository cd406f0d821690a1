"""Step 6: training step over kernels of 3 to 31 and crops of 64 to 160, published recipe and ours."""

from collections.abc import Sequence
from typing import Any

from benchmarks import kernel_size
from benchmarks.gpu.bench import LEFT_OUT, Bench, describe_failure
from benchmarks.measure import UNMEASURED, measure_step

BATCH = 2
FEAT_SIZE, REDUCED_FEAT_SIZE = (48, 96, 192, 384), (4, 4, 4, 4)
REDUCED_GRID = (3, 7), (32,), 32  # kernels, crops, the crop of the kernels
REPEATS, LONG_S = 2, 3.0  # timed runs; a first run of at least so many seconds is the only one
LIMIT_S = 12  # points whose step is expected to take longer are left out
LEAST_S = 5  # a point needs so many seconds to be started


def measure(bench: Bench) -> None:
    """Record one row per point."""
    feat_size = REDUCED_FEAT_SIZE if bench.reduced else FEAT_SIZE
    bench.note(batch_size=BATCH, feat_size=list(feat_size))

    def measure_point(point: kernel_size.Point) -> dict[str, Any]:
        if bench.seconds_left() < LEAST_S:
            return {**UNMEASURED, "reason": LEFT_OUT}
        try:
            return measure_step(kernel_size.make_step(point, bench.device, BATCH, feat_size), REPEATS, long_s=LONG_S)
        except Exception as error:
            return {**UNMEASURED, "reason": describe_failure(error)}

    grid = REDUCED_GRID if bench.reduced else (kernel_size.KERNEL_SIZES, kernel_size.CROPS, kernel_size.CROP)
    todo = kernel_size.points(*grid)
    for row in kernel_size.measure(todo, (), measure_point, LIMIT_S):
        bench.record(**row)


def lines(results: dict[str, Any]) -> list[str]:
    """Format one line per way and kind of point: sides and milliseconds."""
    crops = [row["crop"] for row in results["rows"]]
    if not crops:
        return []
    fixed = {
        "kernel_size": {"crop": max(crops, key=crops.count)},
        "crop": {"kernel_size": kernel_size.KERNEL_SIZE},
    }
    return [line(way, name, fixed[name], results["rows"]) for way in kernel_size.WAYS for name in fixed]


def line(way: str, name: str, fixed: dict[str, int], rows: Sequence[dict[str, Any]]) -> str:
    """Format the points of a way that differ only in ``name``."""
    wanted = {"way": way, **fixed}
    found = [row for row in rows if row["step_s"] and wanted.items() <= row.items()]
    cells = [f"{row[name]}: {1e3 * row['step_s']:.0f}" for row in sorted(found, key=lambda row: row[name])]
    return f"{way}, ms by {name.replace('_', ' ')}: {', '.join(cells)}"
