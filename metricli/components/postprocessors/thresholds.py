"""Thresholds: a ranking ends where its items are too far."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metricli.core.rankings import Rankings
from metricli.core.results import SearchResult

__all__ = ["AdaptiveThreshold", "ConstantThreshold"]


def _cut(rankings: Rankings, kept: Tensor) -> Rankings:
    """The result with the items that are not `kept` (Q, k) taken out; they are the last of each row."""
    result = rankings.result
    indices = result.indices.masked_fill(~kept, -1)
    distances = result.distances.masked_fill(~kept, torch.inf)
    return rankings.reordered(SearchResult(indices, distances, cut=True))


class ConstantThreshold:
    """Items farther than `max_distance` are not retrieved; one at that very distance is.

    (OML's ConstantThresholding drops that one too.) What lies behind the columns of the result is not
    retrieved either, however near: the notes count the queries where that may matter.

    Raises:
        ValueError: `max_distance` is negative or NaN.
    """

    def __init__(self, *, max_distance: float) -> None:
        if not max_distance >= 0:
            raise ValueError(f"max_distance must be at least 0, got {max_distance!r}")
        self.max_distance = max_distance
        self.notes: list[str] = []

    def __call__(self, rankings: Rankings) -> Rankings:
        """Cut the result of `rankings`."""
        result = rankings.result
        there = result.indices >= 0
        kept = there & (result.distances <= self.max_distance)
        self.notes, num = [], len(kept)
        emptied = int((there.any(1) & ~kept.any(1)).sum())
        if emptied:
            self.notes.append(
                f"{emptied} of {num} queries retrieve nothing within max_distance {self.max_distance:g}"
            )
        more = rankings.result.indices.shape[1] < len(rankings.gallery) and not result.cut
        full = int(kept[:, -1].sum()) if more else 0
        if full:
            self.notes.append(
                f"for {full} of {num} queries even the last of the {kept.shape[1]} items searched for is "
                f"within max_distance {self.max_distance:g}; those behind it are not retrieved"
            )
        return _cut(rankings, kept)


class AdaptiveThreshold:
    """Each ranking ends before its first gap that is larger than `n_std` times the mean gap.

    A gap is the difference of the distances of neighbours in one query's ranking; the mean is over all gaps
    of all queries in the columns of the result, as in OML's AdaptiveThresholding. So it moves with the number
    of columns, and `n_std` is a multiple of a mean, whatever the name (OML's) says. The first item always
    stays.

    Raises:
        ValueError: `n_std` is negative or not finite.
    """

    def __init__(self, *, n_std: float) -> None:
        if not (n_std >= 0 and math.isfinite(n_std)):
            raise ValueError(f"n_std must be at least 0, got {n_std!r}")
        self.n_std = n_std
        self.notes: list[str] = []

    def __call__(self, rankings: Rankings) -> Rankings:
        """Cut the result of `rankings`."""
        result = rankings.result
        there = result.indices >= 0
        gaps = result.distances.diff(dim=1).masked_fill_(~there[:, 1:], 0.0)
        count = int(there[:, 1:].sum())
        self.notes = []
        if count == 0:
            self.notes.append("no query retrieves two items, so there is no gap to cut at")
            return _cut(rankings, there)
        mean = gaps.double().sum() / count
        wide = gaps > self.n_std * mean
        kept = there.clone()
        kept[:, 1:] &= wide.cumsum(1) == 0
        return _cut(rankings, kept)
