"""Recall@k Surrogate Loss with Large Batches and Similarity Mixup (Patel et al. 2022), without the mixup."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from metricli.components.losses.pairwise import PairwiseLoss
from metricli.core.losses.rankings import average_precision, recall_at_k_loss

__all__ = ["RecallAtKLoss"]


class RecallAtKLoss(PairwiseLoss):
    """1 - soft recall within the nearest k by cosine distance, averaged over several k.

    The soft rank r of a positive among all items but the anchor counts as sigmoid((k - r) / k_temperature),
    one half at rank k itself, and an anchor's sum is divided by min(k, its positives). Anchors without
    a positive are left out of the mean, and a batch without any gives a zero with zero gradient. Memory is
    O(B R) for (B, R) distances.
    `stats` adds `average_precision`, the true one of the batch.

    Args:
        k: depths of the list of nearest items, each 1 or more.
        k_temperature: of the sigmoid at depth k, in ranks (the paper's tau 1).
        rank_temperature: of the sigmoids that count ranks, in units of the cosine (the paper's tau 2).

    Raises:
        ValueError: no k or one below 1, or a temperature that is not positive and finite.
    """

    def __init__(
        self,
        *,
        k: Sequence[int] = (1, 2, 4, 8, 16),
        k_temperature: float = 1.0,
        rank_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if not k or min(k) < 1:
            raise ValueError(f"k must be one or more numbers of at least 1, got {k!r}")
        for name, value in (("k_temperature", k_temperature), ("rank_temperature", rank_temperature)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        self.k = tuple(k)
        self.k_temperature = k_temperature
        self.rank_temperature = rank_temperature

    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of cosine distances (B, R) with bool masks (B, R), and `average_precision`."""
        loss = recall_at_k_loss(
            distances, positives, negatives, self.k, self.k_temperature, self.rank_temperature
        )
        return loss, {"average_precision": average_precision(distances, positives, negatives)}

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"k={self.k}, k_temperature={self.k_temperature}, rank_temperature={self.rank_temperature}"
