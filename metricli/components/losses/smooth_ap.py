"""Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval (Brown et al. 2020)."""

from __future__ import annotations

import math

from torch import Tensor

from metricli.components.losses.pairwise import PairwiseLoss
from metricli.core.losses.rankings import average_precision, smooth_ap_loss

__all__ = ["SmoothAPLoss"]


class SmoothAPLoss(PairwiseLoss):
    """1 - average precision by cosine distance, its ranks counted by sigmoids.

    The anchor itself is neither ranked nor a positive of its own. Anchors may have any number of positives;
    those without one are left out of the mean, and a batch without any gives a zero with zero gradient.
    Only positives are ranked, in blocks, so memory stays O(B R) for (B, R) distances, not O(B R R).
    `stats` adds `average_precision`, the true one of the batch.

    Args:
        temperature: of the sigmoids, in units of the cosine; the ranks are exact as it goes to 0.

    Raises:
        ValueError: the temperature is not positive and finite.
    """

    def __init__(self, *, temperature: float = 0.01) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature!r}")
        self.temperature = temperature

    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of cosine distances (B, R) with bool masks (B, R), and `average_precision`."""
        loss = smooth_ap_loss(distances, positives, negatives, self.temperature)
        return loss, {"average_precision": average_precision(distances, positives, negatives)}

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"temperature={self.temperature}"
