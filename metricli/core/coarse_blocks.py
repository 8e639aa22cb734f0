"""Blocks of scores in half precision: what they leave open is listed, and gets bounds pair by pair.

A score is a squared gap with an error of which the size is known, rounded to bfloat16. Rounding keeps the
order, so that limits are rounded alike and compared as they are: as int16, for of what is positive the bits
of a bfloat16 have the order of the numbers. The bounds of what is listed are those of the full product.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from metricli.core.blocks import Block, Compared, Side, less, places_of

if TYPE_CHECKING:
    from metricli.core.coarse import Coarse

__all__ = ["CoarseBlock", "CoarseSide", "products"]

_CROWD = 0.75  # of the groups of a query that hold something open: the full product is cheaper
_CACHED = 2**21  # scores that are compared at a time
_RARE = 16  # rows of which a crowded one is listed like the others
_FULL = 2**19  # bounds of a full product at a time
_NEVER, _INFINITE = -(2**15), 0x7F80  # as bits of a bfloat16: below all, and infinity
_HALF = 2**15  # half a step of it, in bits of a float32


@dataclass(frozen=True)
class CoarseBlock(Block):
    """Scores as bits of bfloat16, and the rows from which bounds are made."""

    coarse: Coarse
    left: Tensor
    right: Tensor

    def sides(self) -> Iterator[Side]:
        """The block as it is, and turned over."""
        error = self.coarse.error(self.queries, self.gallery, turned=False)
        yield CoarseSide(self.queries, self.gallery, self.scores, self.low, self, error)
        if self.own < len(self.gallery):
            queries, scores = self.gallery[self.own :], self.scores[:, self.own :].T
            error = self.coarse.error(queries, self.queries, turned=True)
            yield CoarseSide(queries, self.queries, scores, self.first, self, error)


class CoarseSide(Side):
    """Scores (n, m) as bits of bfloat16, at most `error` (n,) from the squared gaps before they were rounded.

    Negative ones, of which the order is reversed, stand for a gap of 0; limits never are negative.
    """

    group = 8

    def __init__(
        self,
        queries: Tensor,
        gallery: Tensor,
        scores: Tensor,
        low: int,
        block: CoarseBlock,
        error: Tensor,
        rows: Tensor | None = None,
    ) -> None:
        super().__init__(queries, gallery, scores, low)
        self._block, self._error, self._rows = block, error, rows
        self._reversed = gallery is block.queries

    def _with(self, rows: Tensor, scores: Tensor) -> Self:
        own = rows if self._rows is None else self._rows[rows]
        return type(self)(
            self.queries[rows], self.gallery, scores, self.low, self._block, self._error[rows], own
        )

    def plain(self, rows: Tensor) -> Iterator[tuple[Tensor, Side]]:
        """The chosen of those who ask (r,), some at a time, with bounds as scores."""
        right = None if self._reversed else self._block.right
        for some in torch.split(rows, max(1, _FULL // len(self.gallery))):
            queries = self.queries[some]
            scores = self._block.coarse.full(queries, self.gallery, right)
            yield some, Side(queries, self.gallery, scores, self.low)

    def bounds(self, line: Tensor, column: Tensor) -> Tensor:
        """The bounds (p,) of listed pairs, which are sorted by line."""
        left, right = self._block.left, self._block.right
        asking, found = (right[self._block.own :], left) if self._reversed else (left, right)
        return products(asking, found, line if self._rows is None else self._rows[line], column)

    def limit(self, bound: Tensor) -> Tensor:
        """In bits: what is not below it has a squared gap of at least `bound` (n,)."""
        bits = (bound + self._error).clamp_min_(0).view(torch.int32)
        bits = ((bits + _HALF) >> 16).add_(1).clamp_(max=_INFINITE)  # what is less is rounded to less
        return bits.masked_fill_(bound == -torch.inf, _NEVER).short()

    def _floor(self, bound: Tensor) -> Tensor:
        """In bits: what is below it has a squared gap of less than `bound` (n,)."""
        least = bound - self._error
        bits = (least.clamp_min(0).view(torch.int32) + (_HALF - 1)) >> 16
        return bits.masked_fill_(~(least >= 0), _NEVER).short()

    def reach(self, minima: Tensor, count: int) -> Tensor:
        """(n,) no lower than the `count` lowest bounds of each, of which it has the `minima` (n, g)."""
        if minima.shape[1] >= 16 * count:  # those of some groups together will do
            minima = torch.unflatten(minima[:, : minima.shape[1] // 4 * 4], 1, (4, -1)).amin(1)
        lowest = torch.from_numpy(np.partition(minima.numpy(), count - 1, axis=1)[:, count - 1])
        bits = (lowest.int().clamp_min_(0) << 16).add_(_HALF).clamp_(max=_INFINITE << 16)
        return bits.view(torch.float32) + self._error

    def _reduced(self, scores: Tensor, size: int) -> Tensor:
        """Minima of columns that lie apart by as many as there are groups: whole vectors are compared."""
        return super()._reduced(scores, size) if self.turned else scores.view(len(scores), size, -1).amin(1)

    def steps(self, size: int) -> tuple[int, int]:
        """How many columns the next group of so many lies away, and the next member of a group."""
        return super().steps(size) if self.turned else (1, self.scores.shape[1] // size)

    def compare(self, low: Tensor, high: Tensor, known: Tensor, buffer: Tensor) -> Iterator[Compared]:
        """Which bounds lie below `low` and which between it and `high`, both (n,)."""
        floor, limit = self._floor(low), self.limit(high)
        below, open_ = self._tally(floor, limit, buffer)
        crowded = open_.sum(1, dtype=_counted(open_.shape[1])) > _CROWD * open_.shape[1]
        if crowded.sum() * _RARE < len(crowded):  # a full product of few rows takes as long as one of more
            crowded[:] = False
        line, column = self.listed(open_ & ~crowded[:, None], self.group, floor, limit)
        other = (column != known.index_select(0, line)) & ~crowded.index_select(0, line)
        other = places_of(other)
        line, column = line.index_select(0, other), column.index_select(0, other)
        if len(line):
            bounds = self.bounds(line, column)
            nearer = bounds < low.index_select(0, line)
            below += torch.bincount(line[nearer], minlength=len(below))
            left = places_of(~nearer & (bounds < high.index_select(0, line)))
            line, column = line[left], column[left]
        below[crowded] = 0
        yield Compared(below, line, column, crowded.nonzero()[:, 0])

    def _tally(self, floor: Tensor, limit: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """How many scores of each are below `floor` (n,), and which groups (n, g) have some from it to
        `limit` (n,); a part at a time, which stays near the core."""
        num, total = self.scores.shape
        below = floor.new_zeros(num, dtype=torch.int64)
        minima = floor.new_empty(num, total // self.group)
        width = (limit.int() - floor + _NEVER).short()
        shift = floor ^ _NEVER  # carries what is below `floor` over to the largest numbers
        step = min(_CACHED, len(buffer)) // (num if self.turned else total)
        step = max(self.group, step // self.group * self.group) if self.turned else max(1, step)
        for at in range(0, total if self.turned else num, step):
            rows, columns = slice(at, at + step), slice(None)
            rows, columns = (columns, rows) if self.turned else (rows, columns)
            scores = self.scores[rows, columns]
            memory = buffer[: scores.numel()]
            found = memory.view(scores.T.shape).T if self.turned else memory.view(scores.shape)
            fewer = torch.lt(scores, floor[rows, None], out=found)
            below[rows] += fewer.sum(1, dtype=_counted(scores.shape[1]))
            torch.sub(scores, shift[rows, None], out=found)
            whole = found[:, : scores.shape[1] // self.group * self.group]
            place = slice(at // self.group, (at + step) // self.group) if self.turned else slice(None)
            minima[rows, place] = self._reduced(whole, self.group)
        return below, less(minima, width)


def _counted(most: int) -> torch.dtype:
    """In which sums of so many booleans, at most, are fast."""
    return torch.int16 if most < 2**15 else torch.int64


def products(x: Tensor, y: Tensor, line: Tensor, column: Tensor) -> Tensor:
    """The products (p,) of rows of x (n, D) and y (m, D) in float32; `line` is sorted."""
    _say_nothing()
    rows = torch.zeros(len(x) + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(line, minlength=len(x)), 0, out=rows[1:])
    return _sampled(x, y, rows, column)


def _sampled(x: Tensor, y: Tensor, rows: Tensor, column: Tensor) -> Tensor:
    places = torch.zeros(len(column))
    where = torch.sparse_csr_tensor(rows, column, places, (len(x), len(y)), check_invariants=False)
    found: Tensor = torch.sparse.sampled_addmm(where, x, y.T, beta=0.0).values()
    return found


@cache
def _say_nothing() -> None:
    """torch warns, once, that sparse matrices are new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _sampled(
            torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0, 0]), torch.zeros(0, dtype=torch.int64)
        )
