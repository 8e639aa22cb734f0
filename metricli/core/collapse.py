"""How far a batch of embeddings is from a single point."""

from __future__ import annotations

import math

from torch import Tensor

from metricli.core.distances import Distance, batch_distances
from metricli.core.mining import label_masks

__all__ = ["mean_pair_distances", "spread"]


def spread(embeddings: Tensor) -> float:
    """Root mean square distance of rows (N, D) to their mean, over their root mean square norm; in [0, 1].

    Exactly 0 for equal rows, 1 for rows whose mean is 0, such as those that fill the sphere evenly. NaN
    without rows.
    """
    if len(embeddings) == 0:
        return math.nan
    rows = embeddings.double()
    moved = rows - rows[0]  # equal rows are then exactly 0, which a mean would blur
    around, size = (moved - moved.mean(0)).square().sum(), rows.square().sum()
    return float((around / size).sqrt()) if bool(size > 0) else 0.0


def mean_pair_distances(embeddings: Tensor, labels: Tensor, distance: Distance) -> tuple[float, float]:
    """Mean distance over the pairs of one label and over those of two labels; NaN without such a pair.

    Args:
        embeddings: (N, D).
        labels: (N,).
        distance: "euclidean", or "cosine" (1 - cos, in [0, 2]).

    Raises:
        ValueError: an unknown distance.
    """
    distances = batch_distances(embeddings.double(), distance=distance)
    positives, negatives = label_masks(labels)
    return float(distances[positives].mean()), float(distances[negatives].mean())
