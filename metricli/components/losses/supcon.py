"""Khosla et al., Supervised Contrastive Learning, 2020: the loss L_out."""

from __future__ import annotations

import math

from torch import Tensor

from metricli.components.losses.pairwise import PairwiseLoss, masked_mean
from metricli.core.losses.pairs import anchor_mask, supcon_losses

__all__ = ["SupConLoss"]


class SupConLoss(PairwiseLoss):
    """The cross-entropy of an anchor's positives against everything else, averaged over its positives.

    The denominator holds all other rows, the other positives among them. The loss is the mean over anchors,
    where the paper has a sum; an anchor without a positive or without a negative is left out, and of a
    batch without others the loss is zero.

    Args:
        temperature: divides the cosines; the lower, the more the nearest rows count.

    Raises:
        ValueError: a temperature that is not above 0 or not finite.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a finite number above 0, got {temperature!r}")
        self.temperature = float(temperature)

    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of cosine `distances` (B, R) with bool masks (B, R)."""
        losses = supcon_losses((1 - distances) / self.temperature, positives, negatives)
        return masked_mean(losses, anchor_mask(positives, negatives)), {}

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"temperature={self.temperature}"
