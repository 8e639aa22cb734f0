"""Hermans et al., In Defense of the Triplet Loss, 2017: batch-hard mining, of several ranks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metricli.components.miners.by_distance import DistanceMiner
from metricli.core.distances import Distance
from metricli.core.mining import Triplets
from metricli.core.selection import ranked

__all__ = ["NHard"]


class NHard(DistanceMiner):
    """Each anchor with several of its farthest positives and several of its nearest negatives.

    One of each is batch-hard mining (Hermans et al., In Defense of the Triplet Loss, 2017). Ranks that
    leave out the hardest are robust to wrong labels, of which the hardest are often made. An anchor gives
    what it has of the ranks; one with no positive or no negative of them is left out.

    Args:
        positives: how many of the farthest, or the first and the last rank of them, from 1.
        negatives: how many of the nearest, or the first and the last rank of them, from 1.
        distance: what is far and near, "euclidean" or "cosine"; give it the distance of the loss.

    Raises:
        ValueError: ranks that are not 1 or more in order, or an unknown distance.
    """

    def __init__(
        self,
        *,
        positives: int | Sequence[int] = 1,
        negatives: int | Sequence[int] = 1,
        distance: Distance = "euclidean",
    ) -> None:
        super().__init__(distance=distance)
        self.positives = _ranks("positives", positives)
        self.negatives = _ranks("negatives", negatives)

    def of_distances(self, distances: Tensor, positives: Tensor, negatives: Tensor) -> Triplets:
        """Every triplet of the positives and negatives of these ranks."""
        return ranked(distances, positives, negatives, self.positives, self.negatives)

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"positives={self.positives}, negatives={self.negatives}, {super().extra_repr()}"


def _ranks(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """First and last rank, both included."""
    ranks = (1, value) if isinstance(value, int) else tuple(value)
    if len(ranks) != 2 or not 1 <= ranks[0] <= ranks[1]:
        raise ValueError(
            f"{name} must be a number, 1 or more, or the first and the last rank, as [2, 5], got {value!r}"
        )
    return ranks[0], ranks[1]
