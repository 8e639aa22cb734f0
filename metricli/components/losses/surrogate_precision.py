"""Surrogate precision: precision@k with the two sigmoids of the recall@k surrogate (Patel et al. 2022)."""

from __future__ import annotations

import math

from torch import Tensor

from metricli.components.losses.pairwise import PairwiseLoss
from metricli.core.distances import Distance
from metricli.core.losses.rankings import average_precision, precision_at_k_loss

__all__ = ["SurrogatePrecisionLoss"]


class SurrogatePrecisionLoss(PairwiseLoss):
    """1 - soft precision within the nearest k, divided by the most that is possible, min(k, positives).

    The soft rank r of a positive counts as sigmoid((k + 1/2 - r) / k_temperature). Anchors without
    a positive are left out of the mean, and a batch without any gives a zero with zero gradient. Memory is
    O(B R) for (B, R) distances. `stats` adds `average_precision`, the true one of the batch.

    open-metric-learning's SurrogatePrecision counts each anchor as a positive of its own at rank 1, and
    takes k + 1 for it; given the batch as its own `reference` and k + 1, this loss has the same value.

    Args:
        k: depth of the list of nearest items; None for each anchor's number of positives (R-precision).
        k_temperature: of the sigmoid at depth k, in ranks.
        rank_temperature: of the sigmoids that count ranks, in units of the distance.
        distance: "euclidean", or "cosine" (1 - cos, in [0, 2]).

    Raises:
        ValueError: k below 1, a temperature that is not positive and finite, or an unknown distance.
    """

    def __init__(
        self,
        *,
        k: int | None = None,
        k_temperature: float = 1.0,
        rank_temperature: float = 0.01,
        distance: Distance = "euclidean",
    ) -> None:
        super().__init__()
        if k is not None and k < 1:
            raise ValueError(f"k must be at least 1, or None for the number of positives, got {k!r}")
        for name, value in (("k_temperature", k_temperature), ("rank_temperature", rank_temperature)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
        self.k = k
        self.k_temperature = k_temperature
        self.rank_temperature = rank_temperature
        self.distance = distance

    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of distances (B, R) with bool masks (B, R), and `average_precision`."""
        loss = precision_at_k_loss(
            distances, positives, negatives, self.k, self.k_temperature, self.rank_temperature
        )
        return loss, {"average_precision": average_precision(distances, positives, negatives)}

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return (
            f"k={self.k}, k_temperature={self.k_temperature}, rank_temperature={self.rank_temperature}, "
            f"distance={self.distance!r}"
        )
