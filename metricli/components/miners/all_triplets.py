"""Every triplet of a batch."""

from __future__ import annotations

from torch import Tensor, nn

from metricli.core.mining import Mined, check_batch

__all__ = ["AllTriplets"]


class AllTriplets(nn.Module):
    """Every triplet there is, unlisted: the loss evaluates them in closed form."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Mined:
        """Choose every triplet of embeddings (B, D) with labels (B,), against a reference (R, D) if given.

        Raises:
            ValueError: shapes that do not fit, or a reference without its labels.
        """
        check_batch(embeddings, labels, reference, reference_labels)
        return Mined(everything=True)
