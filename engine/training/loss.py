"""Loss of the recipe, with or without voxels to ignore."""

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn

from engine.data.labels import IGNORED_INDEX


class KnownDiceCELoss(nn.Module):
    """MONAI's DiceCELoss over the voxels of known class; 0 if a batch has none.

    Shape: logits (N, classes, D, H, W), label (N, 1, D, H, W) of class indices or ``IGNORED_INDEX`` -> ().
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss()

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        known = label != IGNORED_INDEX
        classes = torch.where(known, label, 0)[:, 0].long()
        target = torch.zeros_like(logits).scatter_(1, classes[:, None], 1)
        entropy = F.cross_entropy(logits, classes, reduction="none")[:, None]
        dice = self.dice(logits.softmax(dim=1) * known, target * known)
        return dice + (entropy * known).sum() / known.sum().clamp(min=1)


def make_loss(with_ignored: bool) -> nn.Module:
    """Make the sum of Dice loss and cross-entropy.

    Args:
        with_ignored: whether labels may hold ``IGNORED_INDEX``.
    """
    return KnownDiceCELoss() if with_ignored else DiceCELoss(to_onehot_y=True, softmax=True)
