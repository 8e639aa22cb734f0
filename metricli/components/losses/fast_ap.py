"""FastAP: Deep Metric Learning to Rank (Cakir et al. 2019)."""

from __future__ import annotations

from torch import Tensor

from metricli.components.losses.pairwise import PairwiseLoss
from metricli.core.losses.rankings import average_precision, fast_ap_loss

__all__ = ["FastAPLoss"]


class FastAPLoss(PairwiseLoss):
    """1 - average precision from soft histograms of each anchor's distances.

    The paper's distance, squared Euclidean between normalised embeddings in [0, 4], is twice the cosine
    distance, so the histogram is taken of that in [0, 2]. Anchors without a positive are left out of the
    mean, and a batch without any gives a zero with zero gradient. `stats` adds `average_precision`,
    the true one of the batch.

    Args:
        bins: intervals of the histogram, 2 or more; it has one centre more.

    Raises:
        ValueError: fewer than 2 bins.
    """

    def __init__(self, *, bins: int = 10) -> None:
        super().__init__()
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins!r}")
        self.bins = bins

    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of cosine distances (B, R) with bool masks (B, R), and `average_precision`."""
        loss = fast_ap_loss(distances, positives, negatives, self.bins, farthest=2.0)
        return loss, {"average_precision": average_precision(distances, positives, negatives)}

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"bins={self.bins}"
