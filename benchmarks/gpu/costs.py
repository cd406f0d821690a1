"""The constants of ``choose_method`` (networks/large_kernel_conv.py) from measured seconds of its two methods."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Comparison:
    """One pass of one problem, by both methods.

    Args:
        volumes: samples times channels.
        multiply_adds: of the direct path on a volume.
        fft_work: n log2(n + 1) for the n points of a volume's circular grid.
        direct_s, fft_s: seconds.
    """

    volumes: int
    multiply_adds: float
    fft_work: float
    direct_s: float
    fft_s: float

    @property
    def ratio(self) -> float:
        """Of the two kinds of work: the choice is direct up to some ratio."""
        return self.multiply_adds / self.fft_work


@dataclass(frozen=True)
class Costs:
    """What ``DIRECT_COST`` and ``FFT_COST`` hold of one pass, and what their choices cost.

    Args:
        direct, fft: nanoseconds by multiply-add and by fft_work.
        over_best: seconds of all the comparisons as chosen, over those of the faster method each time.
    """

    direct: float
    fft: float
    over_best: float


def fit_costs(comparisons: Sequence[Comparison]) -> Costs:
    """Costs whose choices take the fewest seconds over all the comparisons.

    The choice depends on the costs' ratio alone. The FFT's is the median of what was measured, the direct path's then
    says where the border lies: it is no measurement where the FFT always wins.
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
    """The entries of both dictionaries for "cuda", by pass."""
    lines = []
    for name, field in (("DIRECT_COST", "direct"), ("FFT_COST", "fft")):
        entries = [f'("cuda", "{key}"): {getattr(each, field):.3g}' for key, each in costs.items()]
        lines.append(f"{name} |= {{{', '.join(entries)}}}")
    return lines
