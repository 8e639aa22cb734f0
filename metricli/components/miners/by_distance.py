"""What miners have in common that choose triplets by the distances of a batch to its reference."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from metricli.core.distances import Distance, batch_distances
from metricli.core.mining import Mined, Triplets, check_batch, label_masks

__all__ = ["DistanceMiner", "MinerOfDistance"]


class MinerOfDistance(nn.Module):
    """A miner with a distance.

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

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"distance={self.distance!r}"


class DistanceMiner(MinerOfDistance):
    """A miner that chooses, in `of_distances`, from the distances of a batch to its reference.

    The reference is the batch itself without self, or a memory bank, which must not hold the batch. Distances
    are at least float32, whatever the embeddings or autocast, and nothing has a gradient.
    """

    @torch.no_grad()
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Mined:
        """Choose triplets of embeddings (B, D) with labels (B,), against a reference (R, D) if given.

        Raises:
            ValueError: shapes that do not fit, or a reference without its labels.
        """
        check_batch(embeddings, labels, reference, reference_labels)
        positives, negatives = label_masks(labels, reference_labels)
        if positives.numel() == 0:
            nothing = torch.empty(0, dtype=torch.int64, device=labels.device)
            return Mined(triplets=Triplets(nothing, nothing, nothing))
        distances = batch_distances(embeddings, reference, self.distance)
        return Mined(triplets=self.of_distances(distances, positives, negatives))

    @abstractmethod
    def of_distances(self, distances: Tensor, positives: Tensor, negatives: Tensor) -> Triplets:
        """Triplets by `distances` (B, R) and bool masks (B, R), neither B nor R being 0."""
