"""Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, 2020."""

from __future__ import annotations

import math

from torch import Tensor

from metricli.components.losses.pairwise import PairwiseLoss, masked_mean
from metricli.core.losses.pairs import anchor_mask, circle_losses

__all__ = ["CircleLoss"]


class CircleLoss(PairwiseLoss):
    """Each cosine is pulled to 1 or pushed to 0 the more, the farther it is from there.

    The loss is the mean over anchors; one without a positive or without a negative is left out, and of a
    batch without others the loss is zero.

    Args:
        m: relaxation: positives rest at a cosine of 1 - m, negatives at m, on a circle of radius m√2.
        gamma: scale of the exponents.

    Raises:
        ValueError: an m outside [0, 1), or a gamma that is not above 0 or not finite.
    """

    def __init__(self, *, m: float = 0.4, gamma: float = 80.0) -> None:
        super().__init__()
        if not 0 <= m < 1:
            raise ValueError(f"m must be 0 or more and below 1, got {m!r}")
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma must be a finite number above 0, got {gamma!r}")
        self.m = float(m)
        self.gamma = float(gamma)

    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of cosine `distances` (B, R) with bool masks (B, R)."""
        losses = circle_losses(1 - distances, positives, negatives, self.m, self.gamma)
        return masked_mean(losses, anchor_mask(positives, negatives)), {}

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"m={self.m}, gamma={self.gamma}"
