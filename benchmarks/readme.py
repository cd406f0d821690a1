"""Write what the benchmarks found into README.md, between its two marks.

    python -m benchmarks.readme

Reads benchmarks/results/<benchmark>_cpu.json and, where a GPU was at hand, <benchmark>_cuda.json. A row that nobody
measured says so.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import name_machine
from engine.errors import InputError, OneLineParser, run
from engine.files import write_text

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks -->\n", "<!-- end of benchmarks -->\n"
NOT_MEASURED = "not measured"
Results = dict[str, Any]

# What the claims are about.
STEP: dict[str, Any] = {"kernel_size": 21, "roi_size": [96, 96, 96], "feat_size": [48, 96, 192, 384], "classes": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "large_kernel_conv": {"kernel_size": 21},
    "training_step": STEP,
    "training_step_published": STEP,
    "data_loading": {"shape": [512, 512, 120], "roi_size": [96, 96, 96], "num_workers": 2},
    "prediction": {"shape": [512, 512, 200], "roi_size": [96, 96, 96]},
    "prediction_REP3D": {"shape": [512, 512, 200], "roi_size": [96, 96, 96], "network": "REP3D"},
}
# Commands, where a file's name is not enough of one.
COMMANDS = {
    "training_step_published": "training_step --published",
    "prediction_REP3D": "prediction --network REP3D --overlap 0 --cases 2 --loop_only",
}
# What was promised, by which benchmark, with what target, and how its results tell.
CLAIMS: tuple[tuple[str, str, str, Callable[[Results], str]], ...] = (
    (
        "training step, kernel 21³ over kernel 3³",
        "training_step",
        "at most 1.10",
        lambda found: f"{found['large_over_small']:.2f}",
    ),
    (
        "training step, published recipe over ours",
        "training_step_published",
        "at least 15 (CPU)",
        lambda found: f"{found['published_over_large']:.1f}",
    ),
    (
        "crops a second from CTs, `--cache_dir` over the published pipeline",
        "data_loading",
        "at least 20",
        lambda found: f"{found['cache_dir_over_published']:.1f}",
    ),
    (
        "the same, from a disk of which nothing is in memory yet",
        "data_loading",
        "",
        lambda found: f"{found['crops_per_s']['cache_dir_cold'] / found['crops_per_s']['published']:.1f}",
    ),
    (
        "prediction without the network, published way over ours",
        "prediction",
        "at least 3",
        lambda found: f"{found['ratio']:.1f}",
    ),
    (
        "peak memory of `test_seg.py` with REP3D on a 512 x 512 x 200 CT, all processes, GB",
        "prediction_REP3D",
        "below 6",
        lambda found: f"{found['rows'][-1]['peak_bytes'] / 1e9:.1f}",
    ),
    (
        "share of voxels with another label than the published way",
        "prediction",
        "0",
        lambda found: f"{found['differing']:.1e}" if found["differing"] else "0",
    ),
)


def read_results(benchmark: str, device: str) -> Results | None:
    """What a benchmark wrote on a kind of device; None where it never ran.

    Raises:
        InputError: it ran with other settings than the claims are about.
    """
    path = ROOT / "benchmarks" / "results" / f"{benchmark}_{device}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    for name, expected in SETTINGS[benchmark].items():
        if found.get(name) != expected:
            raise InputError(f"{path}: {name}: found {found.get(name)}, expected {expected}: run the benchmark again")
    return found


def claims_table() -> list[str]:
    """A row a claim, with its target and what was found on each kind of device."""
    lines = ["| ratio | target | CPU | GPU |", "|---|---|---|---|"]
    for claim, benchmark, target, tell in CLAIMS:
        found = (read_results(benchmark, device) for device in ("cpu", "cuda"))
        cells = (NOT_MEASURED if results is None else tell(results) for results in found)
        lines.append(f"| {claim} | {target} | {' | '.join(cells)} |")
    return lines


def convolution_table() -> list[str]:
    """Seconds of the convolution alone at the four stages of a 96^3 crop, on a CPU."""
    found = read_results("large_kernel_conv", "cpu")
    if found is None or "native" not in found["totals"]:
        raise InputError("benchmarks/results: found no native timing, expected one of benchmarks.large_kernel_conv")
    header = "| channels, grid | native forward, s | native backward, s | here forward, s | here backward, s | ratio |"
    rows = [(f"{row['channels']}, {row['side']}³", row) for row in found["rows"]] + [("the four", found["totals"])]
    lines = [header, "|---|---|---|---|---|---|"]
    for name, row in rows:
        seconds = (row[method][key] for method in ("native", "auto") for key in ("forward_s", "backward_s"))
        lines.append(f"| {name} | {' | '.join(f'{s:.3f}' for s in seconds)} | {row['native_over_auto']:.0f} |")
    return lines


def machines() -> list[str]:
    """What each benchmark ran on."""
    lines = []
    for benchmark in dict.fromkeys(["large_kernel_conv", *(claim[1] for claim in CLAIMS)]):
        for device in ("cpu", "cuda"):
            if (found := read_results(benchmark, device)) is not None:
                command = f"python -m benchmarks.{COMMANDS.get(benchmark, benchmark)}"
                lines.append(f"- `{command}`: {name_machine(found)}")
    return lines


def section() -> str:
    """The Markdown between the marks."""
    return "\n".join([*claims_table(), "", *convolution_table(), "", "Measured by", "", *machines(), ""])


def replace_section(readme: str) -> str:
    """README's text with the section made anew; InputError where its marks are missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"README.md: found no {BEGIN.strip()} or {END.strip()}, expected both on lines of their own")
    return f"{before}{BEGIN}{section()}{END}{after}"


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The command line: no flags."""
    return OneLineParser("benchmarks.readme", description=__doc__.splitlines()[0]).parse_args(argv)


def main(args: Namespace) -> None:
    """Rewrite the section."""
    path = ROOT / "README.md"
    write_text(path, replace_section(path.read_text()))


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
