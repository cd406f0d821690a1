"""Dice over the validation cases, on the resampled grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from engine.data.cases import Case
from engine.data.datasets import DatasetDescription
from engine.data.loading import case_loader
from engine.evaluation.masks import compute_masks
from engine.evaluation.metrics import DiceTable, dice_by_structure
from engine.evaluation.pictures import mask_slices, three_planes
from engine.prediction.sliding_window import SlidingWindow, predict_logits
from engine.runtime.distributed import gather, process_rank, share_buffers
from engine.runtime.errors import InputError
from engine.runtime.memory import return_freed_memory
from networks.base import SegmentationNetwork
from networks.large_kernel_conv import keep_kernel_spectra


def put_chosen_first(cases: Sequence[Case], count: int | None, seed: int) -> list[Case]:
    """Move the cases that are validated during training to the front, so that the processes share them evenly.

    Args:
        cases: all validation cases.
        count: value of ``--val_cases``: how many are chosen; None for all.
        seed: seed of the run, which determines the choice.
    Returns: the chosen cases and then the others, both in the given order.
    Raises:
        InputError: there are fewer cases.
    """
    if count is None:
        return list(cases)
    if count > len(cases):
        raise InputError(f"--val_cases: found {count}, expected at most the {len(cases)} validation cases")
    chosen = set(np.random.default_rng(seed).permutation(len(cases))[:count].tolist())
    return [cases[place] for place in sorted(range(len(cases)), key=lambda place: place not in chosen)]


def validate(
    network: SegmentationNetwork,
    dataset: Dataset[Any],
    description: DatasetDescription,
    window: SlidingWindow,
    num_workers: int,
) -> tuple[DiceTable, dict[str, Figure]]:
    """Compute the Dice of every case, and draw the first case and the network's masks.

    The network is left in training mode.

    Args:
        network: bare network, in any mode.
        dataset: this process's shard of the cases (``engine.runtime.distributed.shard``); rank 0 has at least one.
        description: description of the dataset.
        window: sliding window.
        num_workers: processes that load data.
    Returns: a table of all cases, the same in all processes; pictures by name in rank 0, none in the others.
    """
    structures = list(description.structures.values())
    rows: list[tuple[str, NDArray[np.float64]]] = []
    figures: dict[str, Figure] = {}
    first = process_rank() == 0
    share_buffers(network)
    network.eval()
    cases = tqdm(case_loader(dataset, num_workers), "validation", leave=False, disable=not first)
    with keep_kernel_spectra(network):  # for all cases, not only for the windows of one
        for case in cases:
            logits = predict_logits(network, case["image"], window)
            prediction, label = logits.argmax(dim=0).cpu().numpy(), case["label"][0].numpy()
            rows.append((case["id"], dice_by_structure(prediction, label, structures)))
            if first and not figures:
                image = case["image"][0].numpy()
                figures["validation case"] = three_planes(
                    image, prediction, label, description.classes, description.spacing, case["id"]
                )
    if first and (masks := compute_masks(network)):
        figures["mask M, central slice"] = mask_slices(masks)
    network.train()
    return_freed_memory()  # that of the volumes: training allocates other sizes
    table = DiceTable(description.classes[1:], [*dict(description.regions)])
    for name, dice in sorted(gather(rows), key=lambda row: row[0]):  # whatever the order of the cases
        assert name not in table.cases  # each case belongs to one process
        table.add(name, dice)
    return table, figures
