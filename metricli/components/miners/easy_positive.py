"""Xuan et al., Improved Embeddings with Easy Positive Triplet Mining, 2020."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from metricli.components.miners.by_distance import DistanceMiner
from metricli.core.distances import Distance
from metricli.core.mining import Triplets
from metricli.core.selection import easy_positives

__all__ = ["EasyPositive"]


class EasyPositive(DistanceMiner):
    """Each anchor with its nearest positive and a hard or semi-hard negative.

    Xuan et al., Improved Embeddings with Easy Positive Triplet Mining, 2020.

    Args:
        negative: "semi_hard", the nearest negative that is farther than the positive (an anchor that has
            none is left out), or "hard", the nearest negative.
        distance: what is far and near, "euclidean" or "cosine"; give it the distance of the loss.

    Raises:
        ValueError: an unknown negative or distance.
    """

    def __init__(
        self, *, negative: Literal["semi_hard", "hard"] = "semi_hard", distance: Distance = "euclidean"
    ) -> None:
        super().__init__(distance=distance)
        if negative not in ("semi_hard", "hard"):
            raise ValueError(f"negative must be 'semi_hard' or 'hard', got {negative!r}")
        self.negative = negative

    def of_distances(self, distances: Tensor, positives: Tensor, negatives: Tensor) -> Triplets:
        """At most a triplet for each anchor."""
        return easy_positives(distances, positives, negatives, beyond=self.negative == "semi_hard")

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"negative={self.negative!r}, {super().extra_repr()}"
