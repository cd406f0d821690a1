"""Paired comparison of folders of predictions by the scores of the cases that all of them have."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engine.evaluation.metrics import mean_over_classes
from engine.evaluation.scores import METRICS, TITLES
from engine.evaluation.statistics import Comparison, compare, holm

COMPARED = ("dice", "iou", "hd95_mm", "nsd")  # the metrics that rate a mask as a whole
LOWER_IS_BETTER = "hd95_mm"
Scores = Mapping[str, Sequence[NDArray[np.float64]]]  # by folder: scores (structures, metrics) of the common cases


class Row(NamedTuple):
    """Comparison of a folder with the reference by one metric.

    Args:
        method: name of the folder.
        metric: name of the metric.
        comparison: of the cases' means over the classes, the folder's minus the reference's; p is corrected by Holm.
    """

    method: str
    metric: str
    comparison: Comparison


def compare_folders(scores: Scores, reference: str, classes: int) -> list[Row]:
    """Compare each folder with the reference; Holm's correction is over all rows.

    Of a case, only the classes count that have a score in both folders.

    Args:
        scores: scores of the same cases in each folder.
        reference: name of the folder that the others are compared with.
        classes: number of classes, which are the first structures.
    """
    rows = []
    for method in scores:
        if method != reference:
            differences = np.subtract(scores[method], scores[reference])[:, :classes]
            rows += [Row(method, metric, compare(_means(differences, metric))) for metric in COMPARED]
    corrected = holm([row.comparison.p for row in rows])
    return [row._replace(comparison=replace(row.comparison, p=p)) for row, p in zip(rows, corrected, strict=True)]


def draw_comparison(scores: Scores, classes: int) -> Figure:
    """Draw the means over the classes: a point for each case and folder, lines that join the points of a case.

    Args: as ``compare_folders``.
    """
    figure = Figure(figsize=(max(9.0, 1.6 * len(COMPARED) * len(scores)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    places = range(len(scores))
    for view, metric in zip(figure.subplots(1, len(COMPARED)), COMPARED, strict=True):
        points = np.array([_means(np.asarray(cases)[:, :classes], metric) for cases in scores.values()])
        view.plot(places, points, "o-", color="tab:blue", alpha=0.35, markersize=4, linewidth=0.8)
        averages = [mean_over_classes(row) for row in points]
        view.plot(places, averages, "_", color="black", markersize=28, markeredgewidth=2, label="mean")
        view.set_xticks(places, scores, rotation=30, ha="right", parse_math=False)
        view.set(title=TITLES[metric] + (" (lower is better)" if metric == LOWER_IS_BETTER else ""))
        view.set_xlim(-0.5, len(scores) - 0.5)
    figure.legend(*view.get_legend_handles_labels(), loc="outside lower left", frameon=False)
    figure.suptitle(f"one point per case, mean over classes, {points.shape[1]} cases")
    return figure


def _means(scores: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """Average one metric over the classes that have it, (cases, classes, metrics) -> (cases,)."""
    return np.array([mean_over_classes(case) for case in scores[..., list(METRICS).index(metric)]])
