"""What a search over queries and a gallery gives: nearest items, ranks of the relevant ones, all pairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["PairHistogram", "SearchResult", "Survey"]


@dataclass(frozen=True)
class SearchResult:
    """The K nearest gallery rows of each query, nearest first.

    `indices` (Q, K) int64, -1 where fewer than K items remain; `distances` (Q, K), float64 for float64
    embeddings and float32 otherwise, not descending along a row, infinite where the index is -1. With `cut`
    True the columns hold all that is retrieved; else the ranking goes on behind them by distance.
    """

    indices: Tensor
    distances: Tensor
    cut: bool = False


@dataclass(frozen=True)
class PairHistogram:
    """Distances of all pairs of a query and an item that it may find, counted in C groups and B bins.

    A pair is in the group of its query. Bin b is [edges[b], edges[b + 1]), the last one with its upper
    edge; nothing lies outside. Genuine pairs are of one label, impostor pairs of two.
    """

    edges: Tensor
    """(B + 1,) float64, ascending."""
    genuine: Tensor
    """(C, B) int64."""
    impostor: Tensor
    """(C, B) int64."""


@dataclass(frozen=True)
class Survey:
    """All that one pass over queries and gallery found."""

    result: SearchResult
    first: Tensor | None = None
    """(Q,) int64: the rank, from 1, of the nearest relevant item; 0 for a query without one."""
    last: Tensor | None = None
    """(Q,) int64: the rank of the farthest relevant item; 0 for a query without one."""
    pairs: PairHistogram | None = None
    """All pairs, in one row."""
    group_pairs: PairHistogram | None = None
    """The pairs of each group of queries, perhaps in wider bins."""
