"""Loss of the recipe, with or without voxels to ignore, and its mean over the grids of deep supervision."""

from collections.abc import Sequence

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


class DeepSupervisionLoss(nn.Module):
    """Mean of a loss over the grids of the logits, with the weights 1, 1/2, 1/4, ... of nnU-Net.

    A label on a coarser grid is that of the voxel nearest to the coarse voxel's centre, the upper one of two.

    Args:
        loss: loss on one grid.
    Shape: logits of grids (N, classes, D / f, H / f, W / f), finest first, with a whole f for each grid and axis, and
        label (N, 1, D, H, W) -> ().
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Sequence[Tensor], label: Tensor) -> Tensor:
        weights = [0.5**place for place in range(len(logits))]
        losses = [self.loss(grid, pick_nearest(label, grid.shape[2:])) for grid in logits]
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)


def pick_nearest(label: Tensor, size: Sequence[int]) -> Tensor:
    """Pick the label of each voxel of a coarser grid, as ``interpolate(mode="nearest-exact")`` does, of any type.

    Shape: (N, 1, D, H, W) -> (N, 1, *size), each side of ``size`` a divisor of the label's; a view.
    """
    for axis, coarse in enumerate(size, start=2):
        factor = label.shape[axis] // coarse
        label = label[(slice(None),) * axis + (slice(factor // 2, None, factor),)]
    return label


def make_loss(with_ignored: bool, deep_supervision: bool = False) -> nn.Module:
    """Make the sum of Dice loss and cross-entropy.

    Args:
        with_ignored: whether labels may hold ``IGNORED_INDEX``.
        deep_supervision: whether the logits are those of several grids.
    """
    loss = KnownDiceCELoss() if with_ignored else DiceCELoss(to_onehot_y=True, softmax=True)
    return DeepSupervisionLoss(loss) if deep_supervision else loss
