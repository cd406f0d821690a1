"""Write the benchmark results into docs/speed.md and docs/gpu.md, between their marks, and draw docs/kernel_size.png.

    python -m benchmarks.readme

Reads benchmarks/results/<benchmark>_cpu.json and, for each card that was at hand, what ``benchmarks.gpu`` wrote into a
folder of its own there, benchmarks/results/<card>/<step>_cuda.json. What nobody measured says so.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import table
from benchmarks.gpu.schedule import STEPS
from benchmarks.gpu.steps import convolution, training_step
from benchmarks.gpu.steps.prediction import script_row
from benchmarks.kernel_size import draw
from benchmarks.report import name_machine
from engine.evaluation.pictures import save_png
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import write_text

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks -->\n", "<!-- end of benchmarks -->\n"
RESULTS = ROOT / "benchmarks" / "results"
NOT_MEASURED = "not measured"
Results = dict[str, Any]
Tell = Callable[[Results], str]

# What the claims are about.
STEP: dict[str, Any] = {"kernel_size": 21, "roi_size": [96, 96, 96], "feat_size": [48, 96, 192, 384], "classes": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "large_kernel_conv": {"kernel_size": 21},
    "training_step": STEP,
    "training_step_published": STEP,
    "data_loading": {"shape": [512, 512, 120], "roi_size": [96, 96, 96], "num_workers": 2},
    "prediction": {"shape": [512, 512, 200], "roi_size": [96, 96, 96]},
    "prediction_REP3D": {"shape": [512, 512, 200], "roi_size": [96, 96, 96], "network": "REP3D"},
    "kernel_size": {"feat_size": [48, 96, 192, 384]},
}
# Commands, where a file's name is not enough of one.
COMMANDS = {
    "training_step_published": "training_step --published",
    "prediction_REP3D": "prediction --network REP3D --overlap 0 --cases 2 --loop_only",
}


@dataclass(frozen=True)
class Card:
    """A card's results.

    Args:
        folder: of its JSON files.
        steps: their contents by step.
    """

    folder: Path
    steps: dict[str, Results]


@dataclass(frozen=True)
class Claim:
    """Something that was promised, its target, and how results tell it.

    Args:
        text: what it is about.
        target: in words.
        cpu: a benchmark and what its results say, None where it is not about CPUs.
        gpu: a step of benchmarks.gpu and what its results say, None where it is not about GPUs. What raises KeyError,
            IndexError or TypeError was not measured.
    """

    text: str
    target: str
    cpu: tuple[str, Tell] | None = None
    gpu: tuple[str, Tell] | None = None


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
        "the same over the time that their own passes over memory take",
        "at most 2",
        gpu=("convolution", lambda found: f"{convolution.fft_over_floor(found):.1f}"),
    ),
    Claim(
        "`main_train.py`, share of the time that it waits for data",
        "below 5 %",
        gpu=("training_run", lambda found: f"{found['rows'][0]['wait_share']:.1%}"),
    ),
    Claim(
        "crops a second from CTs, `--cache_dir` over the published pipeline",
        "at least 20",
        cpu=("data_loading", lambda found: f"{found['cache_dir_over_published']:.1f}"),
    ),
    Claim(
        "the same, from a disk of which nothing is in memory yet",
        "",
        cpu=(
            "data_loading",
            lambda found: f"{found['crops_per_s']['cache_dir_cold'] / found['crops_per_s']['published']:.1f}",
        ),
    ),
    Claim(
        "prediction without the network, published way over ours",
        "at least 3",
        cpu=("prediction", lambda found: f"{found['ratio']:.1f}"),
    ),
    Claim(
        "seconds of `test_seg.py` with REP3D on a 512 x 512 x 200 CT at overlap 0.5",
        "",
        gpu=("prediction", lambda found: f"{script_row(found)['total_s']:.1f}"),
    ),
    Claim(
        "peak host memory of that, shared pages counted once, GB",
        "",
        gpu=("prediction", lambda found: f"{script_row(found)['host_peak_bytes'] / 1e9:.1f}"),
    ),
    Claim(
        "peak memory of `test_seg.py` with REP3D on a 512 x 512 x 200 CT, all processes, GB",
        "below 6",
        cpu=("prediction_REP3D", lambda found: f"{found['rows'][-1]['peak_bytes'] / 1e9:.1f}"),
    ),
    Claim(
        "share of voxels with another label than the published way",
        "0",
        cpu=("prediction", lambda found: f"{found['differing']:.1e}" if found["differing"] else "0"),
    ),
)


def read_results(benchmark: str) -> Results | None:
    """What a benchmark wrote on a CPU; None where it never ran.

    Raises:
        InputError: it ran with other settings than the claims are about.
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
    """What benchmarks.gpu wrote on each card, by its name; InputError for files that are damaged or misplaced."""
    cards: dict[str, Card] = {}
    for path in sorted(RESULTS.glob("*/*_cuda.json")):
        try:
            found = json.loads(path.read_text())
            device, step = found["device"], found["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: found no results of benchmarks.gpu, expected them whole") from error
        card = cards.setdefault(device, Card(path.parent, {}))
        if card.folder != path.parent:
            raise InputError(f"{path.parent}: found results of {device}, expected them in {card.folder} alone")
        card.steps[step] = found
    return cards


def claims_table(cards: dict[str, Card]) -> list[str]:
    """One row per claim, with its target and what was found on a CPU and on each card."""
    columns = list(cards) or ["GPU"]
    lines = [f"| ratio | target | CPU | {' | '.join(columns)} |", f"|{'---|' * (3 + len(columns))}"]
    for claim in CLAIMS:
        cells = [tell_cpu(claim), *(tell_gpu(claim, cards.get(column)) for column in columns)]
        lines.append(f"| {claim.text} | {claim.target} | {' | '.join(cells)} |")
    return lines


def tell_cpu(claim: Claim) -> str:
    """A claim's cell for CPUs."""
    if claim.cpu is None:
        return ""
    benchmark, tell = claim.cpu
    found = read_results(benchmark)
    return NOT_MEASURED if found is None else tell(found)


def tell_gpu(claim: Claim, card: Card | None) -> str:
    """A claim's cell for a card."""
    if claim.gpu is None:
        return ""
    step, tell = claim.gpu
    if card is None or step not in card.steps:
        return NOT_MEASURED
    try:
        return tell(card.steps[step])
    except (KeyError, IndexError, TypeError):  # the step failed, or was left out, before it came to this
        return NOT_MEASURED


def convolution_table() -> list[str]:
    """Seconds of the convolution alone at the four stages of a 96^3 crop, on a CPU."""
    found = read_results("large_kernel_conv")
    if found is None or "native" not in found["totals"]:
        raise InputError("benchmarks/results: found no native timing, expected one of benchmarks.large_kernel_conv")
    header = "| channels, grid | native forward, s | native backward, s | here forward, s | here backward, s | ratio |"
    rows = [(f"{row['channels']}, {row['side']}³", row) for row in found["rows"]] + [("the four", found["totals"])]
    lines = [header, "|---|---|---|---|---|---|"]
    for name, row in rows:
        seconds = (row[method][key] for method in ("native", "auto") for key in ("forward_s", "backward_s"))
        lines.append(f"| {name} | {' | '.join(f'{s:.3f}' for s in seconds)} | {row['native_over_auto']:.0f} |")
    return lines


def machines(cards: dict[str, Card]) -> list[str]:
    """What each benchmark ran on."""
    benchmarks = ["large_kernel_conv", *(claim.cpu[0] for claim in CLAIMS if claim.cpu), "kernel_size"]
    lines = []
    for benchmark in dict.fromkeys(benchmarks):
        if (found := read_results(benchmark)) is not None:
            command = f"python -m benchmarks.{COMMANDS.get(benchmark, benchmark)}"
            lines.append(f"- `{command}`: {name_machine(found)}")
    for card in cards.values():
        lines.append(f"- `python -m benchmarks.gpu`: {name_machine(next(iter(card.steps.values())))}")
    return lines


def speed_section(cards: dict[str, Card]) -> str:
    """docs/speed.md's Markdown between the marks."""
    return "\n".join([*claims_table(cards), "", *convolution_table(), "", "Measured by", "", *machines(cards), ""])


def cards_section(cards: dict[str, Card]) -> str:
    """docs/gpu.md's Markdown between the marks: the table of benchmarks.gpu, by card."""
    if not cards:
        return "No GPU has been at hand yet: nothing is measured.\n"
    tables = [
        f"### {name}\n\n```text\n{chr(10).join(table(list(STEPS), card.folder, 'cuda'))}\n```\n"
        for name, card in cards.items()
    ]
    return "\n".join(tables)


def replace_section(text: str, section: str) -> str:
    """A document with what is between its marks made anew; InputError where they are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"found no {BEGIN.strip()} or {END.strip()}, expected both on lines of their own")
    return f"{before}{BEGIN}{section}{END}{after}"


def documents() -> dict[Path, str]:
    """Each document with measured tables, as it should be."""
    cards = read_cards()
    sections = {ROOT / "docs" / "speed.md": speed_section(cards), ROOT / "docs" / "gpu.md": cards_section(cards)}
    return {path: replace_section(path.read_text(), section) for path, section in sections.items()}


def kernel_size_results() -> list[Results]:
    """What docs/kernel_size.png shows: the CPU's measurement and each card's."""
    found = [read_results("kernel_size"), *(card.steps.get("kernel_size") for card in read_cards().values())]
    return [results for results in found if results and any(row["step_s"] for row in results["rows"])]


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The command line: no flags."""
    return OneLineParser("benchmarks.readme", description=__doc__.splitlines()[0]).parse_args(argv)


def main(args: Namespace) -> None:
    """Rewrite the sections, draw the picture."""
    for path, text in documents().items():
        write_text(path, text)
    save_png(draw(kernel_size_results()), ROOT / "docs" / "kernel_size.png")


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
