"""What a search over queries and a gallery gives: nearest items, ranks of the relevant ones, all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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

    def to(self, device: torch.device | str) -> Survey:
        """The same on another device."""
        pairs = (self.pairs, self.group_pairs)
        return Survey(
            SearchResult(self.result.indices.to(device), self.result.distances.to(device), self.result.cut),
            None if self.first is None else self.first.to(device),
            None if self.last is None else self.last.to(device),
            *(
                None
                if x is None
                else PairHistogram(*(y.to(device) for y in (x.edges, x.genuine, x.impostor)))
                for x in pairs
            ),
        )

    @staticmethod
    def joined(parts: Sequence[Survey]) -> Survey:
        """The survey of all queries from those of parts of them, in order."""

        def column(name: str) -> Tensor | None:
            columns = [getattr(part, name) for part in parts]
            return None if columns[0] is None else torch.cat(columns)

        def counts(name: str) -> PairHistogram | None:
            sides = [getattr(part, name) for part in parts]
            if sides[0] is None:
                return None
            genuine = torch.stack([side.genuine for side in sides]).sum(0)
            return PairHistogram(sides[0].edges, genuine, torch.stack([x.impostor for x in sides]).sum(0))

        result = SearchResult(
            torch.cat([part.result.indices for part in parts]),
            torch.cat([part.result.distances for part in parts]),
            cut=parts[0].result.cut,
        )
        return Survey(result, column("first"), column("last"), counts("pairs"), counts("group_pairs"))
