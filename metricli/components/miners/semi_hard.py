"""Schroff et al., FaceNet: A Unified Embedding for Face Recognition, 2015: semi-hard mining."""

from __future__ import annotations

from torch import Tensor

from metricli.components.miners.by_distance import DistanceMiner
from metricli.core.mining import Triplets
from metricli.core.selection import semi_hard

__all__ = ["SemiHard"]


class SemiHard(DistanceMiner):
    """For each anchor and positive the nearest negative that is farther than the positive.

    Where every negative is as near as the positive or nearer, it is the farthest of them. A triplet whose
    negative lies beyond the margin of the loss is kept, with a loss of 0.
    Schroff et al., FaceNet: A Unified Embedding for Face Recognition and Clustering, 2015.

    Args:
        distance: what is far and near, "euclidean" or "cosine"; give it the distance of the loss.

    Raises:
        ValueError: an unknown distance.
    """

    def of_distances(self, distances: Tensor, positives: Tensor, negatives: Tensor) -> Triplets:
        """A triplet for each anchor and positive."""
        return semi_hard(distances, positives, negatives)
