"""The lowest bounds of each query seen so far, kept up block by block."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from metricli.core.blocks import Side, places_of

__all__ = ["Nearest", "capacity"]

_GROUP = 32  # scores behind one minimum
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
        size = min(_GROUP, total // (4 * self.kept if fresh else self.kept))
        if size < 4 or num < 4:
            return self._topk(places, scores, columns)
        minima = side.minima(size)
        groups = minima.shape[1]
        if fresh:  # the kept-th lowest minimum is no lower than the kept-th lowest score
            lowest = minima.topk(self.kept, dim=1, largest=False).values[:, -1]
            limit = torch.minimum(limit, torch.nextafter(lowest, torch.full_like(lowest, torch.inf)))
        row, group = (minima < limit[:, None]).nonzero(as_tuple=True)
        if 2 * len(row) > num * groups:
            return self._topk(places, scores, columns)
        if side.turned or size * groups < total:
            few = scores[:, : size * groups].view(num, groups, size)[row, group]
        else:
            few = scores.view(-1, size).index_select(0, row * groups + group)
        listed = places_of(few < limit[row][:, None])
        inner, listed = listed % size, listed // size
        row, column, value = row[listed], group[listed] * size + inner, few[listed, inner]
        if size * groups < total:
            rest = scores[:, size * groups :]
            more, place = (rest < limit[:, None]).nonzero(as_tuple=True)
            row, order = torch.cat([row, more]).sort(stable=True)
            column = torch.cat([column, place + size * groups])[order]
            value = torch.cat([value, rest[more, place]])[order]
        if len(row):
            crowded = self._append(places, row, columns[column], value)
            if len(crowded):
                self._topk(places[crowded], scores[crowded], columns)
        return None

    def _append(self, places: Tensor, row: Tensor, column: Tensor, value: Tensor) -> Tensor:
        """Put listed scores, sorted by row, behind those that are there; rows with too many come back."""
        counts = torch.bincount(row, minlength=len(places))
        turn = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        with self._lock:  # a query may be offered scores by several threads, as itself and turned over
            used = self._used[places]
            full = ((used + counts > self.size) & (used > self.kept)).nonzero()[:, 0]
            if len(full):
                self._compress(places[full])
                used[full] = self.kept
            crowded = used + counts > self.size
            if bool(crowded.any()):
                put = ~crowded[row]
                row, column, value, turn = row[put], column[put], value[put], turn[put]
            at = places[row] * self.size + used[row] + turn
            self.values.view(-1)[at] = value
            self.columns.view(-1)[at] = column.int()
            self._used[places] = torch.where(crowded, used, used + counts)
        return crowded.nonzero()[:, 0]

    def _compress(self, places: Tensor) -> None:
        """Let the lowest stay."""
        for part in torch.split(places, _FEW):
            values, order = self.values[part].topk(self.kept, dim=1, largest=False, sorted=False)
            columns = self.columns[part].gather(1, order)
            self.values[part] = torch.nn.functional.pad(
                values, (0, self.size - self.kept), value=float("inf")
            )
            self.columns[part, : self.kept] = columns
            self.limit[part] = values.amax(1)
        self._used[places] = self.kept

    def _topk(self, places: Tensor, scores: Tensor, columns: Tensor) -> None:
        """The same for scores of which many may count."""
        lowest = scores.topk(min(self.kept, scores.shape[1]), dim=1, largest=False, sorted=False)
        found = columns[lowest.indices]
        with self._lock:
            for part in torch.split(torch.arange(len(places), device=places.device), _FEW):
                rows = places[part]
                values = torch.cat([self.values[rows], lowest.values[part]], 1)
                values, order = values.topk(self.kept, dim=1, largest=False, sorted=False)
                both = torch.cat([self.columns[rows], found[part].int()], 1)
                self.columns[rows, : self.kept] = both.gather(1, order)
                self.values[rows] = torch.nn.functional.pad(
                    values, (0, self.size - self.kept), value=float("inf")
                )
                self.limit[rows] = values.amax(1)
            self._used[places] = self.kept
