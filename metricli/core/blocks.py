"""A block of scores, queries x gallery, as it is and turned over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

__all__ = ["Block", "Side", "gathered", "places_of"]


def places_of(mask: Tensor) -> Tensor:
    """Where `mask` is true, as int64 places in it laid flat; on the CPU numpy is twice as fast."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


def gathered(scores: Tensor, rows: Tensor, buffer: Tensor, *, turned: bool) -> Tensor:
    """The `rows` (r,) of scores (n, m) in `buffer`: fresh memory would cost several times the copy."""
    out = buffer[: len(rows) * scores.shape[1]]
    if turned:
        return torch.index_select(scores.T, 1, rows, out=out.view(-1, len(rows))).T
    return torch.index_select(scores, 0, rows, out=out.view(len(rows), -1))


@dataclass(frozen=True)
class Block:
    """Scores (n, m) of queries (n,) and gallery rows (m,)."""

    queries: Tensor
    gallery: Tensor
    scores: Tensor
    first: int
    """Where the queries stand in the order."""
    low: int
    """Where the gallery rows stand in theirs."""
    own: int
    """Columns from here on serve, turned over, the queries that they are; m where none does."""

    def sides(self) -> Iterator[Side]:
        """The block as it is, and turned over."""
        yield Side(self.queries, self.gallery, self.scores, self.low)
        if self.own < len(self.gallery):
            yield Side(self.gallery[self.own :], self.queries, self.scores[:, self.own :].T, self.first)


class Side:
    """Scores (n, m) of those who ask (n,) and of what they may find (m,), from `low` of the order on."""

    def __init__(self, queries: Tensor, gallery: Tensor, scores: Tensor, low: int) -> None:
        self.queries, self.gallery, self.scores, self.low = queries, gallery, scores, low
        self.turned = scores.stride(0) == 1 and len(scores) > 1
        """Whether the scores of a query lie scattered, and those of an item together."""
        self._minima: Tensor | None = None
        self._seen = 0  # columns behind the minima

    def minima(self, size: int) -> Tensor:
        """The lowest of each `size` scores side by side (n, m // size), reduced as they lie in memory."""
        groups = self.scores.shape[1] // size
        self._seen = size * groups
        main = self.scores[:, : self._seen]
        if self.turned:
            self._minima = main.T.reshape(groups, size, len(main)).amin(1).T
        else:
            self._minima = main.view(len(main), groups, size).amin(2)
        return self._minima

    @cached_property
    def lowest(self) -> Tensor:
        """(n,) the lowest score of each; cheap once there are minima."""
        if self._minima is None:
            return self._lowest(self.scores)
        lowest, rest = self._lowest(self._minima), self.scores[:, self._seen :]
        return torch.minimum(lowest, self._lowest(rest)) if rest.numel() else lowest

    def _lowest(self, scores: Tensor) -> Tensor:
        return scores.T.amin(0) if self.turned else scores.amin(1)
