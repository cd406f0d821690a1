"""Write the benchmark results into docs/speed.md and docs/gpu.md, between their markers, and draw docs/kernel_size.png.

    python -m benchmarks.readme

Reads benchmarks/results/<benchmark>_cpu.json and, for each GPU, the files that ``benchmarks.gpu`` wrote, from
benchmarks/results/<card>/<step>_cuda.json. A ratio without results is marked as not measured.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import many_cases, onnx_runtime
from benchmarks.gpu.report import table
from benchmarks.gpu.schedule import STEPS
from benchmarks.gpu.steps import convolution, training_step
from benchmarks.gpu.steps.prediction import script_row
from benchmarks.kernel_size import draw
from benchmarks.report import name_machine, replace_section
from engine.evaluation.pictures import save_png
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import write_text

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks -->\n", "<!-- end of benchmarks -->\n"
RESULTS = ROOT / "benchmarks" / "results"
NOT_MEASURED = "not measured"
Results = dict[str, Any]
Format = Callable[[Results], str]

# Settings that the results must have been measured with.
STEP: dict[str, Any] = {"kernel_size": 21, "roi_size": [96, 96, 96], "feat_size": [48, 96, 192, 384], "classes": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "large_kernel_conv": {"kernel_size": 21},
    "training_step": STEP,
    "training_step_published": STEP,
    "data_loading": {"shape": [512, 512, 120], "roi_size": [96, 96, 96], "num_workers": 2},
    "prediction": {"shape": [512, 512, 200], "roi_size": [96, 96, 96]},
    "prediction_REP3D": {"shape": [512, 512, 200], "roi_size": [96, 96, 96], "network": "REP3D"},
    "whole_ct": {"shape": [512, 512, 200], "roi_size": [96, 96, 96], "network": "REP3D"},
    "kernel_size": {"feat_size": [48, 96, 192, 384]},
    "many_cases": {"cases": [250, 500, 1000]},
    "onnx_runtime": {"kernel_size": 21, "roi_size": [96, 96, 96], "feat_size": [48, 96, 192, 384]},
}
# Commands of results whose file name is not the module's name.
COMMANDS = {
    "training_step_published": "training_step --published",
    "prediction_REP3D": "prediction --network REP3D --overlap 0 --cases 2 --loop_only",
}


@dataclass(frozen=True)
class Card:
    """Results of one GPU.

    Args:
        folder: folder of its JSON files.
        steps: contents of the files by step.
    """

    folder: Path
    steps: dict[str, Results]


@dataclass(frozen=True)
class Claim:
    """A row of the table: a measured quantity, its target, and how it is computed from results.

    Args:
        text: name of the quantity.
        target: target in words.
        cpu: benchmark, and function that formats the quantity from its results; None if it is not measured on CPUs.
        gpu: step of benchmarks.gpu, and function that formats the quantity from its results; None if it is not measured
            on GPUs. KeyError, IndexError or TypeError from the function means that it was not measured.
    """

    text: str
    target: str
    cpu: tuple[str, Format] | None = None
    gpu: tuple[str, Format] | None = None


CLAIMS = (
    Claim(
        "training step, kernel 21³ over kernel 3³",
        "at most 1.10",
        cpu=("training_step", lambda found: f"{found['large_over_small']:.2f}"),
        gpu=("training_step", lambda found: f"{training_step.ratios(found)['large_over_small']:.2f}"),
    ),
    Claim(
        "training step, published recipe over ours",
        "at least 15 (CPU), 10 (GPU)",
        cpu=("training_step_published", lambda found: f"{found['published_over_large']:.1f}"),
        gpu=("training_step", lambda found: f"{training_step.ratios(found)['published_over_large']:.1f}"),
    ),
    Claim(
        "training step, share of the measured bf16 matrix rate",
        "at least 40 %",
        gpu=("training_step", lambda found: f"{found['rows'][0]['matrix_share']:.0%}"),
    ),
    Claim(
        "the eight large convolutions, all passes, share of a training step",
        "at most 8 %",
        gpu=("training_step", lambda found: f"{training_step.ratios(found)['convolutions_share']:.1%}"),
    ),
    Claim(
        "the eight large convolutions, all passes, over the time of their own memory traffic",
        "at most 2",
        gpu=("convolution", lambda found: f"{convolution.fft_over_floor(found):.1f}"),
    ),
    Claim(
        "`main_train.py`, share of time spent waiting for data",
        "below 5 %",
        gpu=("training_run", lambda found: f"{found['rows'][0]['wait_share']:.1%}"),
    ),
    Claim(
        "crops per second from CTs, `--cache_dir` over the published pipeline",
        "at least 20",
        cpu=("data_loading", lambda found: f"{found['cache_dir_over_published']:.1f}"),
    ),
    Claim(
        "the same, with nothing of the cache in memory yet",
        "",
        cpu=(
            "data_loading",
            lambda found: f"{found['crops_per_s']['cache_dir_cold'] / found['crops_per_s']['published']:.1f}",
        ),
    ),
    Claim(
        "prediction without the network, published method over ours",
        "at least 3",
        cpu=("prediction", lambda found: f"{found['ratio']:.1f}"),
    ),
    Claim(
        "seconds of `test_seg.py` with REP3D on a 512 x 512 x 200 CT at overlap 0.5",
        "",
        gpu=("prediction", lambda found: f"{script_row(found)['total_s']:.1f}"),
    ),
    Claim(
        "peak host memory of that run, shared pages counted once, GB",
        "",
        gpu=("prediction", lambda found: f"{script_row(found)['host_peak_bytes'] / 1e9:.1f}"),
    ),
    Claim(
        "peak memory of `test_seg.py` with REP3D on a 512 x 512 x 200 CT, all processes, GB",
        "below 6",
        cpu=("prediction_REP3D", lambda found: f"{found['rows'][-1]['peak_bytes'] / 1e9:.1f}"),
    ),
    Claim(
        "seconds per case of that run, float32 at overlap 0",
        "",
        cpu=("prediction_REP3D", lambda found: f"{found['rows'][-1]['total']:.0f}"),
    ),
    Claim(
        "seconds of REP3D alone on that CT, by `--amp` and `--overlap`",
        "",
        cpu=(
            "whole_ct",
            lambda found: ", ".join(f"{row['amp']} {row['overlap']:g}: {row['seconds']:.0f}" for row in found["rows"]),
        ),
    ),
    Claim(
        "share of voxels labelled differently from the published method",
        "0",
        cpu=("prediction", lambda found: f"{found['differing']:.1e}" if found["differing"] else "0"),
    ),
    Claim(
        f"seconds of a 96³ window of REP3D: {', '.join(onnx_runtime.WAYS)}",
        "",
        cpu=("onnx_runtime", lambda found: ", ".join(map(onnx_runtime.format_seconds, found["rows"]))),
    ),
)


def read_results(benchmark: str) -> Results | None:
    """Read the results of a benchmark on a CPU; None if there are none.

    Raises:
        InputError: they were measured with other settings than the claims require.
    """
    path = RESULTS / f"{benchmark}_cpu.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    for name, expected in SETTINGS[benchmark].items():
        if found.get(name) != expected:
            raise InputError(f"{path}: {name}: found {found.get(name)}, expected {expected}: run the benchmark again")
    return found


def read_cards() -> dict[str, Card]:
    """Read the results of benchmarks.gpu for each card, by name of the card.

    Raises:
        InputError: a file is damaged, or the results of a card are in two folders.
    """
    cards: dict[str, Card] = {}
    for path in sorted(RESULTS.glob("*/*_cuda.json")):
        try:
            found = json.loads(path.read_text())
            device, step = found["device"], found["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: found no complete results, expected a file of benchmarks.gpu") from error
        card = cards.setdefault(device, Card(path.parent, {}))
        if card.folder != path.parent:
            raise InputError(f"{path.parent}: found results of {device}, expected all of them in {card.folder}")
        card.steps[step] = found
    return cards


def claims_table(cards: dict[str, Card]) -> list[str]:
    """Format one row per claim: target, value on a CPU, and value on each card."""
    columns = list(cards) or ["GPU"]
    lines = [f"| ratio | target | CPU | {' | '.join(columns)} |", f"|{'---|' * (3 + len(columns))}"]
    for claim in CLAIMS:
        cells = [cpu_cell(claim), *(gpu_cell(claim, cards.get(column)) for column in columns)]
        lines.append(f"| {claim.text} | {claim.target} | {' | '.join(cells)} |")
    return lines


def cpu_cell(claim: Claim) -> str:
    """Format a claim's value on a CPU."""
    if claim.cpu is None:
        return ""
    benchmark, format_value = claim.cpu
    found = read_results(benchmark)
    return NOT_MEASURED if found is None else format_value(found)


def gpu_cell(claim: Claim, card: Card | None) -> str:
    """Format a claim's value on a card."""
    if claim.gpu is None:
        return ""
    step, format_value = claim.gpu
    if card is None or step not in card.steps:
        return NOT_MEASURED
    try:
        return format_value(card.steps[step])
    except (KeyError, IndexError, TypeError):  # the step failed or ran out of time before this measurement
        return NOT_MEASURED


def convolution_table() -> list[str]:
    """Format the seconds of the convolution alone on a CPU, at the four stages of a 96^3 crop."""
    found = read_results("large_kernel_conv")
    if found is None or "native" not in found["totals"]:
        raise InputError("benchmarks/results: found no native timing, expected one of benchmarks.large_kernel_conv")
    header = "| channels, grid | native forward, s | native backward, s | ours forward, s | ours backward, s | ratio |"
    rows = [(f"{row['channels']}, {row['side']}³", row) for row in found["rows"]] + [("total", found["totals"])]
    lines = [header, "|---|---|---|---|---|---|"]
    for name, row in rows:
        seconds = (row[method][key] for method in ("native", "auto") for key in ("forward_s", "backward_s"))
        lines.append(f"| {name} | {' | '.join(f'{s:.3f}' for s in seconds)} | {row['native_over_auto']:.0f} |")
    return lines


def many_cases_table() -> list[str]:
    """Format the seconds and memory of every command on many small volumes."""
    found = read_results("many_cases")
    if found is None:
        return [f"Many cases: {NOT_MEASURED}"]
    header = many_cases.columns(found["cases"])
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in many_cases.rows(found)),
    ]


def machines(cards: dict[str, Card]) -> list[str]:
    """List the machine on which each benchmark was run."""
    benchmarks = ["large_kernel_conv", *(claim.cpu[0] for claim in CLAIMS if claim.cpu), "kernel_size", "many_cases"]
    lines = []
    for benchmark in dict.fromkeys(benchmarks):
        if (found := read_results(benchmark)) is not None:
            command = f"python -m benchmarks.{COMMANDS.get(benchmark, benchmark)}"
            lines.append(f"- `{command}`: {name_machine(found)}")
    for card in cards.values():
        lines.append(f"- `python -m benchmarks.gpu`: {name_machine(next(iter(card.steps.values())))}")
    return lines


def speed_section(cards: dict[str, Card]) -> str:
    """Format the Markdown between the markers of docs/speed.md."""
    return "\n".join(
        [
            *claims_table(cards),
            "",
            *convolution_table(),
            "",
            *many_cases_table(),
            "",
            "Measured by",
            "",
            *machines(cards),
            "",
        ]
    )


def cards_section(cards: dict[str, Card]) -> str:
    """Format the Markdown between the markers of docs/gpu.md: the table of benchmarks.gpu for each card."""
    if not cards:
        return "No results from a GPU yet.\n"
    tables = [
        f"### {name}\n\n```text\n{chr(10).join(table(list(STEPS), card.folder, 'cuda'))}\n```\n"
        for name, card in cards.items()
    ]
    return "\n".join(tables)


def documents() -> dict[Path, str]:
    """Generate the current text of each document with measured tables."""
    cards = read_cards()
    sections = {ROOT / "docs" / "speed.md": speed_section(cards), ROOT / "docs" / "gpu.md": cards_section(cards)}
    return {path: replace_section(path, BEGIN, section, END) for path, section in sections.items()}


def kernel_size_results() -> list[Results]:
    """Read the results that docs/kernel_size.png shows: those of the CPU and of each card."""
    found = [read_results("kernel_size"), *(card.steps.get("kernel_size") for card in read_cards().values())]
    return [results for results in found if results and any(row["step_s"] for row in results["rows"])]


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Parse the command line, which has no flags."""
    return OneLineParser("benchmarks.readme", description=__doc__.splitlines()[0]).parse_args(argv)


def main(args: Namespace) -> None:
    """Rewrite the sections and draw the picture."""
    for path, text in documents().items():
        write_text(path, text)
    save_png(draw(kernel_size_results()), ROOT / "docs" / "kernel_size.png")


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
