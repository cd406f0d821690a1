"""Fit of the constants of ``choose_method`` (networks/large_kernel_conv.py) to measured seconds of its two methods."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Comparison:
    """One pass of one problem, measured with both methods.

    Args:
        volumes: samples times channels.
        multiply_adds: multiply-adds of the direct path per volume.
        fft_work: n log2(n + 1) for the n points of a volume's circular grid.
        direct_s, fft_s: seconds of the two methods.
    """

    volumes: int
    multiply_adds: float
    fft_work: float
    direct_s: float
    fft_s: float

    @property
    def ratio(self) -> float:
        """Ratio of the two kinds of work: up to some ratio, the choice is the direct method."""
        return self.multiply_adds / self.fft_work


@dataclass(frozen=True)
class Costs:
    """Entries of ``DIRECT_COST`` and ``FFT_COST`` for one pass, and the quality of the resulting choices.

    Args:
        direct, fft: nanoseconds per multiply-add and per unit of fft_work.
        over_best: seconds of the chosen methods over those of the faster methods, summed over all comparisons.
    """

    direct: float
    fft: float
    over_best: float


def fit_costs(comparisons: Sequence[Comparison]) -> Costs:
    """Find the costs whose choices take the fewest seconds over all comparisons.

    The choice depends only on the ratio of the costs. The FFT's cost is the measured median; the direct cost follows
    from the border between the methods, and is therefore not a measurement if the FFT always wins.
    """
    ratios = sorted(comparison.ratio for comparison in comparisons)
    borders = [ratios[0] / 2, *(math.sqrt(a * b) for a, b in itertools.pairwise(ratios)), ratios[-1] * 2]

    def seconds(border: float) -> float:
        return sum(each.direct_s if each.ratio <= border else each.fft_s for each in comparisons)

    border = min(borders, key=seconds)
    fft = median(1e9 * each.fft_s / (each.volumes * each.fft_work) for each in comparisons)
    best = sum(min(each.direct_s, each.fft_s) for each in comparisons)
    return Costs(direct=fft / border, fft=fft, over_best=seconds(border) / best)


def ready_to_paste(costs: dict[str, Costs]) -> list[str]:
    """Format the entries of both dictionaries for "cuda", by pass."""
    lines = []
    for name, field in (("DIRECT_COST", "direct"), ("FFT_COST", "fft")):
        entries = [f'("cuda", "{key}"): {getattr(each, field):.3g}' for key, each in costs.items()]
        lines.append(f"{name} |= {{{', '.join(entries)}}}")
    return lines
