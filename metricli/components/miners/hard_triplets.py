"""Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017: batch-hard mining."""

from __future__ import annotations

from torch import Tensor, nn

from metricli.core.distances import Distance
from metricli.core.mining import Mined, hard_triplets

__all__ = ["HardTriplets"]


class HardTriplets(nn.Module):
    """Batch-hard mining: for each anchor its farthest positive and its nearest negative.

    Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017.

    Args:
        distance: what is far and near, "euclidean" or "cosine"; give it the distance of the loss. On
            normalised embeddings both choose the same triplets.

    Raises:
        ValueError: an unknown distance.
    """

    def __init__(self, *, distance: Distance = "euclidean") -> None:
        super().__init__()
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
        self.distance: Distance = distance

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

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"distance={self.distance!r}"
