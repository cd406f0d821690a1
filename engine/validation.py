"""Dice over the validation cases, on the resampled grid."""

import torch
from matplotlib.figure import Figure
from monai.data import CacheDataset
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from engine.description import DatasetDescription
from engine.metrics import DiceTable, dice_by_class
from engine.pictures import three_planes
from engine.prediction import Window, predict_probabilities


def validate(
    network: nn.Module,
    dataset: CacheDataset,
    description: DatasetDescription,
    window: Window,
    device: torch.device,
    num_workers: int,
) -> tuple[DiceTable, Figure]:
    """Dice of every case, and a picture of the first; the network is left in training mode."""
    table = DiceTable(description.classes[1:])
    figure: Figure | None = None
    network.eval()
    for case in tqdm(DataLoader(dataset, batch_size=None, num_workers=num_workers), "validation", leave=False):
        probabilities = predict_probabilities(network, case["image"].to(device), window)
        prediction, label = probabilities.argmax(dim=0).cpu().numpy(), case["label"][0].numpy()
        table.add(case["id"], dice_by_class(prediction, label, len(description.classes)))
        if figure is None:
            image = case["image"][0].numpy()
            figure = three_planes(image, prediction, label, description.classes, description.spacing, case["id"])
    network.train()
    assert figure is not None  # a dataset has at least one case
    return table, figure
