"""Thresholds: a ranking ends where its items are too far."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from metricli.components.postprocessors.depth import deepened
from metricli.core.rankings import Rankings
from metricli.core.results import SearchResult

__all__ = ["AdaptiveThreshold", "ConstantThreshold"]


class _Threshold:
    """What both do: look at the first `top_n` of each ranking and drop the end of it."""

    def __init__(self, top_n: int | None) -> None:
        if top_n is not None and top_n < 1:
            raise ValueError(f"top_n must be at least 1, got {top_n!r}")
        self.top_n = top_n
        self.notes: list[str] = []

    def __call__(self, rankings: Rankings) -> Rankings:
        """Cut the result of `rankings`, which gets `top_n` columns if it has fewer."""
        self.notes = []
        rankings = deepened(rankings, self.top_n or rankings.k)
        result = rankings.result
        if result.indices.numel() == 0:
            return rankings.reordered(replace(result, cut=True))
        width = min(self.top_n or rankings.k, result.indices.shape[1])
        there = torch.zeros_like(result.indices, dtype=torch.bool)
        there[:, :width] = result.indices[:, :width] >= 0
        kept = self.kept(result.distances, there)
        behind = kept[:, width - 1] & self._more(rankings, width)
        if bool(behind.any()):
            self.notes.append(
                f"for {int(behind.sum())} of {len(kept)} queries all of the {width} items looked at are kept "
                "(top_n); those behind them are not retrieved"
            )
        return rankings.reordered(
            SearchResult(
                result.indices.masked_fill(~kept, -1),
                result.distances.masked_fill(~kept, torch.inf),
                cut=True,
            )
        )

    def _more(self, rankings: Rankings, width: int) -> Tensor:
        """Whether there is anything behind the columns looked at (Q,)."""
        result = rankings.result
        if width < result.indices.shape[1]:
            return result.indices[:, width] >= 0
        more = not result.cut and width < len(rankings.gallery)
        return torch.full((len(result.indices),), more, device=result.indices.device)

    def kept(self, distances: Tensor, there: Tensor) -> Tensor:
        """Which of the items that are `there` (Q, K) stay, the first of each row; notes say what is lost."""
        raise NotImplementedError


class ConstantThreshold(_Threshold):
    """Items farther than `max_distance` are not retrieved; one at that very distance is.

    (OML's ConstantThresholding drops that one too.) What lies behind the first `top_n` items is not retrieved
    either, however near: the notes count the queries where that may matter. With `top_n` None it is all that
    the metrics ask for, so that one metric's value may depend on the others.

    Raises:
        ValueError: `max_distance` is negative or NaN, or `top_n` below 1.
    """

    def __init__(self, *, max_distance: float, top_n: int | None = 100) -> None:
        super().__init__(top_n)
        if not max_distance >= 0:
            raise ValueError(f"max_distance must be at least 0, got {max_distance!r}")
        self.max_distance = max_distance

    def kept(self, distances: Tensor, there: Tensor) -> Tensor:
        """Those that are near enough (Q, K)."""
        kept = there & (distances <= self.max_distance)
        emptied = int((there.any(1) & ~kept.any(1)).sum())
        if emptied:
            self.notes.append(
                f"{emptied} of {len(kept)} queries retrieve nothing within max_distance {self.max_distance:g}"
            )
        return kept


class AdaptiveThreshold(_Threshold):
    """Each ranking ends before its first gap that is larger than `n_std` times the mean gap.

    A gap is the difference of the distances of neighbours in one query's ranking; the mean is over all gaps
    of all queries among the first `top_n` items (None: all that the metrics ask for), as in OML's
    AdaptiveThresholding. `n_std` is a multiple of a mean, whatever the name (OML's) says. The first item
    always stays; what lies behind the first `top_n` is not retrieved. The notes count both ends.

    Raises:
        ValueError: `n_std` is negative or not finite, or `top_n` below 1.
    """

    def __init__(self, *, n_std: float, top_n: int | None = 100) -> None:
        super().__init__(top_n)
        if not (n_std >= 0 and math.isfinite(n_std)):
            raise ValueError(f"n_std must be at least 0, got {n_std!r}")
        self.n_std = n_std

    def kept(self, distances: Tensor, there: Tensor) -> Tensor:
        """Those before the first wide gap (Q, K)."""
        gaps = distances.diff(dim=1).masked_fill_(~there[:, 1:], 0.0)
        count = int(there[:, 1:].sum())
        if count == 0:
            self.notes.append("no query retrieves two items, so there is no gap to cut at")
            return there
        mean = gaps.double().sum() / count
        wide = gaps > self.n_std * mean
        kept = there.clone()
        kept[:, 1:] &= wide.cumsum(1) == 0
        ended = int((kept != there).any(1).sum())
        if ended:
            self.notes.append(
                f"{ended} of {len(kept)} rankings end at a gap above n_std {self.n_std:g} times the mean gap "
                f"{float(mean):.4g}"
            )
        return kept
