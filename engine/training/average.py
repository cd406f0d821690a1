"""Exponential moving average of the weights of a network."""

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from networks.base import SegmentationNetwork


class WeightAverage:
    """Copy of a network whose weights are the exponential moving average of the network's.

    The n-th update, counted from 0, has the decay min(decay, (1 + n) / (10 + n)): at the start, when the weights move
    fast, the average is short. Running statistics of batch normalisations are averaged like weights, so that they
    belong to the averaged network; counters are copied. Other buffers are constants, which averaging does not change.

    ``torch.optim.swa_utils.AveragedModel`` counts its updates on the host, where it is not known yet whether a step was
    skipped. Here the count is on the device, and no host sync is needed.

    Args:
        network: network on its device.
        decay: share of the average that an update keeps, from 0 to below 1.
    """

    def __init__(self, network: SegmentationNetwork, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.updates = torch.zeros((), dtype=torch.int64, device=next(network.parameters()).device)

    @torch.no_grad()
    def start_from(self, network: SegmentationNetwork) -> None:
        """Replace the average by the weights of the network, as before the first update."""
        for average, value in self._pairs(network):
            average.copy_(value)
        self.updates.zero_()

    @torch.no_grad()
    def update(self, network: SegmentationNetwork, skipped: Tensor) -> None:
        """Average the weights after a step; nothing changes if ``skipped`` (one boolean) is true.

        Args:
            network: network after the step.
            skipped: whether the step changed nothing.
        """
        share = (9 / (10 + self.updates)).clamp(min=1 - self.decay)  # 1 - (1 + n) / (10 + n), at least 1 - decay
        share = torch.where(skipped, 0, share)
        for average, value in self._pairs(network):
            if average.is_floating_point():
                average.lerp_(value, share.to(average.dtype))
            else:
                average.copy_(value)
        self.updates += ~skipped

    def _pairs(self, network: SegmentationNetwork) -> Iterator[tuple[Tensor, Tensor]]:
        """Pair each parameter and buffer of the average with that of the network; shared tensors occur once."""
        averages, values = (chain(net.parameters(), net.buffers()) for net in (self.network, network))
        return ((average, value.detach()) for average, value in zip(averages, values, strict=True))
