"""The lowest bounds of each query seen so far, kept up block by block."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from metricli.core.blocks import Side, places_of

__all__ = ["Nearest", "capacity"]

_SIFTED = 2**17  # places for listed scores that are sorted out at a time
_FEW = 256  # queries that are compressed at a time


def capacity(kept: int) -> int:
    """Places that a query has for `kept` bounds: those, and as many new ones as wait to be sorted out."""
    return kept + max(24, kept // 2)


class Nearest:
    """For each of N queries at least the `kept` lowest bounds and their gallery rows; infinite for none.

    A reservoir: a bound below the limit of its query is put behind those that are there, and once there is no
    place left, the lowest `kept` of them stay and the largest of these is the new limit. Of scores that tie
    there any may stay; what was dropped is never below the largest that stayed.
    """

    def __init__(self, num: int, kept: int, dtype: torch.dtype, device: torch.device) -> None:
        self.kept, self.size = kept, capacity(kept)
        self.values = torch.full((num, self.size), torch.inf, dtype=dtype, device=device)
        self.columns = torch.zeros(num, self.size, dtype=torch.int32, device=device)
        self.limit = torch.full((num,), torch.inf, dtype=dtype, device=device)
        self._used = torch.zeros(num, dtype=torch.int64, device=device)
        self._lock = threading.Lock()

    def lowest(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The `kept` lowest bounds (n, kept) of the queries at `places` (n,) and their gallery rows."""
        values, order = self.values[places].topk(self.kept, dim=1, largest=False, sorted=False)
        return values, self.columns[places].gather(1, order).long()

    def offer(self, places: Tensor, side: Side) -> None:
        """Take the scores (n, m) of a block for the queries kept at `places` (n,).

        Few scores can be among the lowest once blocks have been seen: those are listed through the minima of
        groups, which is far cheaper than topk over all.
        """
        scores, columns = side.scores, side.gallery
        num, total = scores.shape
        limit = self.limit[places]
        fresh = bool(limit.isinf().any())
        size = min(side.group, total // (4 * self.kept if fresh else self.kept))
        if size < 4 or num < 4:
            return self._topk(places, side)
        minima = side.minima(size)
        groups = minima.shape[1]
        if fresh:  # the kept-th lowest minimum is no lower than the kept-th lowest score
            lowest = side.reach(minima, self.kept)
            limit = torch.minimum(limit, torch.nextafter(lowest, torch.full_like(lowest, torch.inf)))
        most = side.limit(limit)
        chosen = minima < most[:, None]
        if 2 * int(chosen.sum()) > num * groups:
            return self._topk(places, side)
        row, column = side.listed(chosen, size, None, most)
        if len(row):
            value = side.bounds(row, column)
            if scores.dtype != value.dtype:  # bounds are lower than their scores told, or not
                kept = places_of(value < _of(limit, row))
                row, column, value = _of(row, kept), _of(column, kept), _of(value, kept)
            self._append(places, row, _of(columns, column), value)
            if fresh:  # the limit was that of minima
                with self._lock:
                    self._compress(places[self._used[places] >= self.kept])
        return None

    def _append(self, places: Tensor, row: Tensor, column: Tensor, value: Tensor) -> None:
        """Put listed scores, sorted by row, behind those that are there, making room if need be."""
        counts = torch.bincount(row, minlength=len(places))
        turn = torch.arange(len(row), device=row.device) - _of(counts.cumsum(0) - counts, row)
        with self._lock:  # a query may be offered scores by several threads, as itself and turned over
            used = self._used[places]
            full = ((used + counts > self.size) & (used > self.kept)).nonzero()[:, 0]
            if len(full):
                self._compress(places[full])
                used[full] = self.kept
            crowded = used + counts > self.size
            at = _of(places * self.size + used, row) + turn
            if bool(crowded.any()):
                fits = ~_of(crowded, row)
                put, rest = places_of(fits), places_of(~fits)
                self._sift(places, crowded, counts, *(_of(each, rest) for each in (row, turn, column, value)))
                at, column, value = _of(at, put), _of(column, put), _of(value, put)
                used, counts, places = used[~crowded], counts[~crowded], places[~crowded]
            self.values.view(-1).scatter_(0, at, value)
            self.columns.view(-1).scatter_(0, at, column.int())
            self._used[places] = used + counts

    def _sift(
        self,
        places: Tensor,
        crowded: Tensor,
        counts: Tensor,
        row: Tensor,
        turn: Tensor,
        column: Tensor,
        value: Tensor,
    ) -> None:
        """Let the lowest stay of what rows have that are listed more than there are places for."""
        order = crowded.cumsum(0) - 1  # among the crowded
        ends = counts[crowded].cumsum(0)
        for part in torch.split(crowded.nonzero()[:, 0], max(1, _SIFTED // int(counts.amax()))):
            first, last = int(order[part[0]]), int(order[part[-1]])
            listed = slice(int(ends[first] - counts[part[0]]), int(ends[last]))
            line, width = _of(order, row[listed]) - first, int(counts[part].amax())
            values = value.new_full((len(part), width), torch.inf)
            items = column.new_zeros(len(part), width)
            values[line, turn[listed]], items[line, turn[listed]] = value[listed], column[listed]
            self._join(places[part], values, items)

    def _compress(self, places: Tensor) -> None:
        """Let the lowest stay."""
        for part in torch.split(places, _FEW) if len(places) else ():
            values, order = self.values[part].topk(self.kept, dim=1, largest=False, sorted=False)
            self.columns[part, : self.kept] = self.columns[part].gather(1, order)
            self._keep(part, values)

    def _topk(self, places: Tensor, side: Side) -> None:
        """The same for scores of which many may count."""
        for some, plain in side.plain(torch.arange(len(places), device=places.device)):
            count = min(self.kept, plain.scores.shape[1])
            lowest = plain.scores.topk(count, dim=1, largest=False, sorted=False)
            with self._lock:
                for part in torch.split(torch.arange(len(some), device=places.device), _FEW):
                    items = side.gallery[lowest.indices[part]]
                    self._join(places[some[part]], lowest.values[part], items)

    def _join(self, places: Tensor, values: Tensor, items: Tensor) -> None:
        """Let the lowest stay of what is there and of the scores (n, m) of more items (n, m)."""
        values = torch.cat([self.values[places], values], 1)
        values, order = values.topk(self.kept, dim=1, largest=False, sorted=False)
        both = torch.cat([self.columns[places], items.int()], 1)
        self.columns[places, : self.kept] = both.gather(1, order)
        self._keep(places, values)

    def _keep(self, places: Tensor, values: Tensor) -> None:
        room = 0, self.size - self.kept
        self.values[places] = torch.nn.functional.pad(values, room, value=float("inf"))
        self.limit[places] = values.amax(1)
        self._used[places] = self.kept


def _of(values: Tensor, places: Tensor) -> Tensor:
    """`values[places]`, several times faster for long lists."""
    return values.index_select(0, places)
