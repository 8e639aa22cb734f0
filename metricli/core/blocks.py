"""A block of scores, queries x gallery, as it is and turned over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

__all__ = ["Block", "Compared", "Side", "count_of", "less", "pairs_of", "places_of"]

_LISTED = 2**13  # groups of which the scores are gathered at a time


def places_of(mask: Tensor) -> Tensor:
    """Where `mask` is true, as int64 places in it laid flat; on the CPU numpy is several times faster."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.contiguous().numpy()))
    return mask.flatten().nonzero()[:, 0]


def pairs_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Lines and columns (p,) where `mask` (n, m) is true, by line."""
    places = places_of(mask)
    line = places // max(1, mask.shape[1])
    return line, places - line * mask.shape[1]


def less(values: Tensor, limit: Tensor) -> Tensor:
    """Which of `values` (n, m) are below the `limit` (n,) of their line; numpy is several times faster."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.less(values.numpy(), limit.numpy()[:, None]))
    return values < limit[:, None]


def count_of(mask: Tensor) -> int:
    """How often `mask` is true."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.sum())


@dataclass(frozen=True)
class Block:
    """Scores (n, m) of queries (n,) and gallery rows (m,): lower bounds of their squared gaps."""

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


@dataclass(frozen=True)
class Compared:
    """What a comparison of scores with two limits of each query tells."""

    below: Tensor
    """(n,) int64: how many are certainly below the lower one."""
    line: Tensor
    """(p,) of the queries and `column` (p,) of the items: the pairs that may lie between."""
    column: Tensor
    crowded: Tensor
    """(r,) queries with so many of these that they are not listed, nor counted in `below`."""


class Side:
    """Scores (n, m) of those who ask (n,) and of what they may find (m,), from `low` of the order on."""

    group = 32
    """Scores behind one minimum."""

    def __init__(self, queries: Tensor, gallery: Tensor, scores: Tensor, low: int) -> None:
        self.queries, self.gallery, self.scores, self.low = queries, gallery, scores, low
        self.turned = scores.stride(0) == 1 and len(scores) > 1
        """Whether the scores of a query lie scattered, and those of an item together."""
        self._minima: Tensor | None = None
        self._seen = 0  # columns behind the minima

    def some(self, rows: Tensor, buffer: Tensor) -> Self:
        """The chosen of those who ask (r,), ascending, with scores in `buffer`: fresh memory would cost
        several times the copy."""
        return self._with(rows, self._gathered(rows, buffer))

    def _with(self, rows: Tensor, scores: Tensor) -> Self:
        return type(self)(self.queries[rows], self.gallery, scores, self.low)

    def _gathered(self, rows: Tensor, buffer: Tensor) -> Tensor:
        out = buffer[: len(rows) * self.scores.shape[1]]
        if self.turned:
            return torch.index_select(self.scores.T, 1, rows, out=out.view(-1, len(rows))).T
        return torch.index_select(self.scores, 0, rows, out=out.view(len(rows), -1))

    def plain(self, rows: Tensor) -> Iterator[tuple[Tensor, Side]]:
        """The chosen of those who ask (r,), some at a time, with bounds as scores."""
        yield rows, self if len(rows) == len(self.queries) else self._with(rows, self.scores[rows])

    def values(self, line: Tensor, group: Tensor, size: int) -> Tensor:
        """The scores (p, size) of groups (p,) of columns, each of its line (p,)."""
        (num, total), (down, across) = self.scores.shape, self.scores.stride()
        next_group, next_member = self.steps(size)
        if next_member * across == 1 and total % size == 0:
            return self.scores.view(-1, size).index_select(0, line * (total // size) + group)
        flat = self.scores.as_strided(((num - 1) * down + (total - 1) * across + 1,), (1,))
        start = (line * down).add_(group, alpha=next_group * across)
        step = torch.arange(size, device=line.device) * (next_member * across)
        places = start[:, None] + step
        return flat.index_select(0, places.view(-1)).view(places.shape)

    def listed(self, chosen: Tensor, size: int, least: Tensor | None, most: Tensor) -> tuple[Tensor, Tensor]:
        """Lines and columns (p,), by line, of the scores from `least` (n,), if given, to less than `most`.

        Args:
            chosen: (n, m // size) bool, the groups of columns in which to look; columns in none always count.
            size: columns of a group.
            least, most: in the type of the scores.
        """
        lines, columns = [], []
        next_group, next_member = self.steps(size)
        line, group = pairs_of(chosen)
        for some, few in zip(torch.split(line, _LISTED), torch.split(group, _LISTED), strict=True):
            values = self.values(some, few, size)
            inside = less(values, most.index_select(0, some))
            if least is not None:
                inside &= ~less(values, least.index_select(0, some))
            found = places_of(inside)
            place = found // size
            lines.append(some.index_select(0, place))
            member = (found - place * size).mul_(next_member)
            columns.append(member.add_(few.index_select(0, place), alpha=next_group))
        seen = size * chosen.shape[1]
        if seen == self.scores.shape[1]:
            return torch.cat(lines), torch.cat(columns)
        rest = less(self.scores[:, seen:], most)
        if least is not None:
            rest &= ~less(self.scores[:, seen:], least)
        more, place = pairs_of(rest)
        line, order = torch.cat([*lines, more]).sort(stable=True)
        return line, torch.cat([*columns, place + seen]).index_select(0, order)

    def bounds(self, line: Tensor, column: Tensor) -> Tensor:
        """The bounds (p,) of listed pairs, which are sorted by line."""
        return self.scores[line, column]

    def limit(self, bound: Tensor) -> Tensor:
        """In the type of the scores: what is not below it has a squared gap of at least `bound` (n,)."""
        return bound

    def reach(self, minima: Tensor, count: int) -> Tensor:
        """(n,) no lower than the `count` lowest bounds of each, of which it has the `minima` (n, g)."""
        return minima.topk(count, dim=1, largest=False).values[:, -1]

    def minima(self, size: int) -> Tensor:
        """The lowest of each `size` scores (n, m // size), reduced as they lie in memory."""
        groups = self.scores.shape[1] // size
        self._seen = size * groups
        self._minima = self._reduced(self.scores[:, : self._seen], size)
        return self._minima

    def _reduced(self, scores: Tensor, size: int) -> Tensor:
        if self.turned:
            return scores.T.reshape(-1, size, len(scores)).amin(1).T
        return scores.view(len(scores), -1, size).amin(2)

    def steps(self, size: int) -> tuple[int, int]:
        """How many columns the next group of so many lies away, and the next member of a group."""
        return size, 1

    @cached_property
    def lowest(self) -> Tensor:
        """(n,) the lowest score of each; cheap once there are minima."""
        if self._minima is None:
            return self._lowest(self.scores)
        lowest, rest = self._lowest(self._minima), self.scores[:, self._seen :]
        return torch.minimum(lowest, self._lowest(rest)) if rest.numel() else lowest

    def _lowest(self, scores: Tensor) -> Tensor:
        return scores.T.amin(0) if self.turned else scores.amin(1)

    def compare(self, low: Tensor, high: Tensor, known: Tensor, buffer: Tensor) -> Iterator[Compared]:
        """Which bounds lie below `low` and which between it and `high`, both (n,), some at a time.

        Args:
            low: bounds below it count as below.
            high: bounds from it on do not count.
            known: (n,) a column known to lie between, which is not listed; -1 for none.
            buffer: memory for scores.
        """
        below, within = self._below(low, buffer), self._below(high, buffer)
        none = low.new_empty(0, dtype=torch.int64)
        yield Compared(below, none, none, none)
        unsure = (within - (known >= 0).long() > below).nonzero()[:, 0]
        for part in torch.split(unsure, max(1, len(buffer) // self.scores.shape[1])) if len(unsure) else ():
            line, column = self._between(low, high, known, part, buffer)
            yield Compared(torch.zeros_like(below), line, column, none)

    def _below(self, limit: Tensor, buffer: Tensor) -> Tensor:
        """How many scores of each are below `limit` (n,): (n,) int64.

        Comparisons that give floats, and sums of floats, are several times faster than those of booleans.
        """
        scores = self.scores
        counts = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
        step = max(1, len(buffer) // scores.shape[1])
        for at in range(0, len(scores), step):
            few, most = scores[at : at + step], limit[at : at + step, None]
            found = buffer[: few.numel()]
            if self.turned:
                found = torch.lt(few.T, most.T, out=found.view(few.T.shape)).sum(0)
            else:
                found = torch.lt(few, most, out=found.view(few.shape)).sum(1)
            counts[at : at + step] = found
        return counts

    def _between(
        self, low: Tensor, high: Tensor, known: Tensor, rows: Tensor, buffer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where scores of `rows` (r,) lie in [low, high): the rows (p,) and columns (p,).

        Groups of scores that come near the middle are few and found first.
        """
        near = self.some(rows, buffer)
        low, high, known = low[rows], high[rows], known[rows]
        near.scores.sub_(((low + high) / 2)[:, None]).abs_()
        rounding = 4 * torch.finfo(low.dtype).eps * (low.abs() + high.abs())
        reach = (high - low) / 2 * 1.001 + rounding
        size = min(self.group, self.scores.shape[1])
        groups = near.minima(size)
        line, group = pairs_of(groups <= reach[:, None])
        column = (group[:, None] * size + torch.arange(size, device=group.device)).flatten()
        line = line.repeat_interleave(size)
        seen = size * groups.shape[1]
        more, place = pairs_of(near.scores[:, seen:] <= reach[:, None])
        line, column = torch.cat([line, more]), torch.cat([column, place + seen])
        values = self.scores[rows[line], column]
        inside = (values >= low[line]) & (values < high[line]) & (column != known[line])
        return rows[line[inside]], column[inside]
