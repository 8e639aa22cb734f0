"""What losses over all pairs of a batch share: one matrix, masks of positives and negatives, statistics."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from metricli.core.distances import Distance, batch_distances
from metricli.core.mining import check_batch, label_masks

__all__ = ["PairwiseLoss"]


class PairwiseLoss(nn.Module):
    """A loss over the distances of a batch to its reference: itself without self, or a memory bank.

    Distances are at least float32, whatever the embeddings or autocast. After each call `stats` holds
    detached 0-dim tensors: `positive_distance` and `negative_distance`, the means over all pairs (0 where
    there is none), and what the loss adds. A subclass says in `of_distances` what the loss is; a batch
    without a positive or without a negative pair must give a zero with zero gradient where the paper leaves
    nothing to learn.
    """

    distance: Distance = "cosine"
    stats: dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.stats = {}

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        """The scalar loss of embeddings (B, D) with labels (B,).

        Positives and negatives come from the batch without self, or from a reference (R, D) with labels
        (R,), a memory bank that must not hold the batch itself.

        Raises:
            ValueError: shapes that do not fit, or a reference without its labels.
        """
        check_batch(embeddings, labels, reference, reference_labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            distances = batch_distances(embeddings, reference, self.distance)
            positives, negatives = self.pairs(embeddings, labels, reference, reference_labels)
            loss, more = self.of_distances(distances, positives, negatives)
        known = distances.detach()
        self.stats = {
            **more,
            "positive_distance": masked_mean(known, positives),
            "negative_distance": masked_mean(known, negatives),
        }
        return loss

    def pairs(
        self, embeddings: Tensor, labels: Tensor, reference: Tensor | None, reference_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Bool masks (B, R) of the positive and the negative pairs that count: all of them."""
        del embeddings, reference
        return label_masks(labels, reference_labels)

    @abstractmethod
    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of `distances` (B, R) with bool masks (B, R), and further detached statistics."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` where `mask` is true, 0 if it nowhere is."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
