"""Scores of label maps by case, structure and metric, and their summary over the cases.

One rule for a structure that is absent: from both maps, it has no score (NaN) and is left out; from one of them, it has
the worst score of each metric: 0, and for HD95 the diagonal of the volume.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.data.header_checks import Grid
from engine.data.labels import IGNORED_INDEX
from engine.evaluation.metrics import count_overlap, mean_over_cases, mean_over_classes
from engine.evaluation.surface import SurfaceScores, compare_surfaces, find_boxes, join_boxes

MM3_PER_ML = 1000
MEAN = "mean"  # the row of the mean over classes
# P: voxels of the prediction, L: those of the label.
METRICS = {
    "dice": "2 |P and L| / (|P| + |L|)",
    "iou": "|P and L| / |P or L|",
    "hd95_mm": "95th percentile of the distances from surface voxels to the nearest of the other mask, the larger of "
    "both directions (MONAI)",
    "nsd": "share of both surfaces by area within the tolerance of the other one (MONAI, use_subvoxels)",
    "sensitivity": "|P and L| / |L|",
    "precision": "|P and L| / |P|",
    "volume_ml": "volume of P",
    "label_volume_ml": "volume of L",
    "volume_error_ml": "volume of P - volume of L",
    "relative_volume_error": "(volume of P - volume of L) / volume of L, without a value if L is empty",
}
TITLES = {  # of the metrics that tables and pictures show
    "dice": "Dice",
    "iou": "IoU",
    "hd95_mm": "HD95, mm",
    "nsd": "NSD",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "volume_error_ml": "error, ml",
    "relative_volume_error": "relative",
}
ABSENT_RULE = (
    "a structure that is absent from prediction and label has no score and is left out; absent from one of them, it "
    "has dice, iou, nsd, sensitivity and precision 0, and as hd95_mm the diagonal of the volume"
)


def score_structures(
    prediction: NDArray[np.uint8],
    label: NDArray[np.uint8],
    grid: Grid,
    structures: Mapping[str, Sequence[int]],
    tolerances: Mapping[str, float],
) -> NDArray[np.float64]:
    """Compute the scores of each structure in a pair of label maps.

    Args:
        prediction: label map of class indices.
        label: label map of class indices or ``IGNORED_INDEX``, whose voxels belong to neither map.
        grid: grid of both.
        structures: classes of which each structure consists, by its name; together all foreground classes.
        tolerances: tolerance of the surface Dice of each structure, mm.
    Shape: (X, Y, Z), (X, Y, Z) -> (structures, metrics), in the order of ``METRICS``.
    """
    overlap = count_overlap(prediction, label, list(structures.values()))
    classes = 1 + max(map(max, structures.values()))
    boxes = [find_boxes(volume, classes) for volume in (prediction, label)]
    voxel_ml = abs(float(np.linalg.det(grid.affine[:3, :3]))) / MM3_PER_ML
    scores = np.full((len(structures), len(METRICS)), math.nan)
    for row, (name, members) in enumerate(structures.items()):
        shared, predicted, labelled = (int(counts[row]) for counts in overlap)
        if not predicted and not labelled:
            continue
        surfaces = SurfaceScores(diagonal(grid), 0.0)
        if predicted and labelled:
            box = join_boxes([by_class[index - 1] for by_class in boxes for index in members])
            known = label[box] != IGNORED_INDEX
            found, true = (select(volume[box], members) & known for volume in (prediction, label))
            surfaces = compare_surfaces(found, true, grid.spacing, tolerances[name])
        volume, label_volume = predicted * voxel_ml, labelled * voxel_ml
        scores[row] = (
            overlap.dice()[row],
            shared / (predicted + labelled - shared),
            *surfaces,
            shared / labelled if labelled else 0,
            shared / predicted if predicted else 0,
            *(volume, label_volume, volume - label_volume),
            (predicted - labelled) / labelled if labelled else math.nan,
        )
    return scores


def diagonal(grid: Grid) -> float:
    """Compute the largest distance between two voxels of a grid with right angles, mm."""
    return float(np.linalg.norm((np.array(grid.shape) - 1) * grid.spacing))


def select(volume: NDArray[np.uint8], members: Sequence[int]) -> NDArray[np.bool_]:
    """Mark the voxels of some classes."""
    table = np.zeros(IGNORED_INDEX + 1, np.bool_)
    table[[*members]] = True
    return table[volume]


def absent_from(scores: NDArray[np.float64]) -> str:
    """Name the maps without the structure that has these scores (metrics,): "both", "prediction", "label" or ""."""
    named = dict(zip(METRICS, scores, strict=True))
    if math.isnan(named["dice"]):
        return "both"
    return "prediction" if named["volume_ml"] == 0 else "label" if named["label_volume_ml"] == 0 else ""


class Summary(NamedTuple):
    """Scores of several cases.

    Args:
        mean: mean of the cases that have a score; NaN without any.
        sd: their standard deviation; NaN for fewer than two.
        n: their number.
    """

    mean: float
    sd: float
    n: int


def summarise(
    scores: Sequence[NDArray[np.float64]], structures: Sequence[str], classes: int
) -> dict[str, dict[str, Summary]]:
    """Summarise scores over the cases, by structure and metric, and over the classes as ``MEAN``.

    The mean over the classes is the mean of their means. Its deviation and number are those of the cases' own means
    over the classes that they have.

    Args:
        scores: scores of each case (structures, metrics).
        structures: names of the structures, classes first.
        classes: number of classes.
    """
    table, means_by_structure = np.asarray(scores), mean_over_cases(scores)
    by_structure = {
        name: [_summarise(column, float(mean)) for column, mean in zip(rows.T, means, strict=True)]
        for name, rows, means in zip(structures, table.swapaxes(0, 1), means_by_structure, strict=True)
    }
    by_case = np.array([[mean_over_classes(column) for column in case[:classes].T] for case in table])
    class_means = [mean_over_classes(column) for column in means_by_structure[:classes].T]
    by_structure[MEAN] = [_summarise(column, mean) for column, mean in zip(by_case.T, class_means, strict=True)]
    return {name: dict(zip(METRICS, summaries, strict=True)) for name, summaries in by_structure.items()}


def _summarise(values: NDArray[np.float64], mean: float) -> Summary:
    present = values[~np.isnan(values)]
    return Summary(mean, float(present.std(ddof=1)) if present.size > 1 else math.nan, present.size)
