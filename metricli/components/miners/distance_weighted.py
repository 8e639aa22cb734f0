"""Wu et al., Sampling Matters in Deep Embedding Learning, 2017: negatives drawn evenly over distances."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metricli.core.distances import at_least_float32, batch_distances, unit_rows
from metricli.core.mining import Mined, Triplets, check_batch, label_masks
from metricli.core.selection import distance_weighted

__all__ = ["DistanceWeighted"]


class DistanceWeighted(nn.Module):
    """For each anchor and positive a negative at random, so that all distances come about equally often.

    A negative's weight is the inverse of how densely distances like its own lie on the sphere; embeddings
    are normalised for that. Draws come from torch's global generator. An anchor without a negative nearer
    than `nonzero_loss_cutoff` is left out.
    Wu et al., Sampling Matters in Deep Embedding Learning, 2017.

    Args:
        cutoff: nearer negatives have the weight of this distance, which limits the variance.
        nonzero_loss_cutoff: negatives as far or farther are not drawn.

    Raises:
        ValueError: not 0 < cutoff < nonzero_loss_cutoff <= 2.
    """

    def __init__(self, *, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4) -> None:
        super().__init__()
        if not 0 < cutoff < nonzero_loss_cutoff <= 2:
            raise ValueError(
                "expected 0 < cutoff < nonzero_loss_cutoff <= 2, the largest distance of unit vectors, "
                f"got {cutoff!r} and {nonzero_loss_cutoff!r}"
            )
        self.cutoff = cutoff
        self.nonzero_loss_cutoff = nonzero_loss_cutoff

    @torch.no_grad()
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Mined:
        """Draw triplets of embeddings (B, D) with labels (B,), against a reference (R, D) if given.

        Raises:
            ValueError: shapes that do not fit, or a reference without its labels.
        """
        check_batch(embeddings, labels, reference, reference_labels)
        positives, negatives = label_masks(labels, reference_labels)
        if positives.numel() == 0:
            nothing = torch.empty(0, dtype=torch.int64, device=labels.device)
            return Mined(triplets=Triplets(nothing, nothing, nothing))
        rows = unit_rows(at_least_float32(embeddings))
        others = None if reference is None else unit_rows(at_least_float32(reference))
        distances = batch_distances(rows, others)
        chosen = distance_weighted(
            distances, positives, negatives, rows.shape[1], self.cutoff, self.nonzero_loss_cutoff
        )
        return Mined(triplets=chosen)

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"cutoff={self.cutoff}, nonzero_loss_cutoff={self.nonzero_loss_cutoff}"
