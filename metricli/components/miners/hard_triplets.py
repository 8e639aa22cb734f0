"""Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017: batch-hard mining."""

from __future__ import annotations

from torch import Tensor

from metricli.components.miners.by_distance import MinerOfDistance
from metricli.core.mining import Mined, hard_triplets

__all__ = ["HardTriplets"]


class HardTriplets(MinerOfDistance):
    """Batch-hard mining: for each anchor its farthest positive and its nearest negative.

    Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017.
    """

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Mined:
        """Choose at most B triplets of embeddings (B, D) with labels (B,), without gradient.

        The reference (R, D) is the batch without self, or a memory bank, which must not hold the batch.

        Raises:
            ValueError: shapes that do not fit, or a reference without its labels.
        """
        return hard_triplets(embeddings, labels, reference, reference_labels, self.distance)
