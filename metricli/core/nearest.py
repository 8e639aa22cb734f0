"""The lowest bounds of each query seen so far, kept up block by block."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Nearest"]

_GROUP = 32  # scores behind one minimum


class Nearest:
    """For each of N queries the `kept` lowest bounds and their gallery rows; infinite where there are fewer.

    Of scores that tie at the end any may stay; what was dropped is never below the largest that stayed.
    """

    def __init__(self, num: int, kept: int, dtype: torch.dtype, device: torch.device) -> None:
        self.kept = kept
        self.values = torch.full((num, kept), torch.inf, dtype=dtype, device=device)
        self.columns = torch.zeros(num, kept, dtype=torch.int64, device=device)
        self.limit = torch.full((num,), torch.inf, dtype=dtype, device=device)

    def offer(self, places: Tensor, scores: Tensor, columns: Tensor) -> None:
        """Take `scores` (n, m) of the gallery rows `columns` (m,) for the queries kept at `places` (n,).

        Few scores can be among the lowest once blocks have been seen: those are listed through the minima of
        groups, which is far cheaper than topk over all.
        """
        num, total = scores.shape
        size = min(_GROUP, total // (2 * self.kept))
        limit = self.limit[places]
        if size < 4 or num < 4:
            return self._topk(places, scores, columns)
        groups = total // size
        main = scores[:, : size * groups].view(num, size, groups)
        if scores.stride(0) == 1:  # reduced as it lies in memory: thirty times faster
            minima = scores.T[: size * groups].view(size, groups, num).amin(0).T
        else:
            minima = main.amin(1)
        if bool(limit.isinf().any()):
            # the kept-th lowest minimum is no lower than the kept-th lowest score
            lowest = minima.topk(self.kept, dim=1, largest=False).values[:, -1]
            limit = torch.minimum(limit, torch.nextafter(lowest, torch.full_like(lowest, torch.inf)))
        row, group = (minima < limit[:, None]).nonzero(as_tuple=True)
        if 2 * len(row) > num * groups:
            return self._topk(places, scores, columns)
        few = main[row, :, group]
        listed, inner = (few < limit[row][:, None]).nonzero(as_tuple=True)
        row, column, value = row[listed], inner * groups + group[listed], few[listed, inner]
        if size * groups < total:
            rest = scores[:, size * groups :]
            more, place = (rest < limit[:, None]).nonzero(as_tuple=True)
            row, order = torch.cat([row, more]).sort(stable=True)
            column = torch.cat([column, place + size * groups])[order]
            value = torch.cat([value, rest[more, place]])[order]
        if len(row):
            self._listed(places, num, row, columns[column], value, scores, columns)
        return None

    def _listed(
        self,
        places: Tensor,
        num: int,
        row: Tensor,
        column: Tensor,
        value: Tensor,
        scores: Tensor,
        columns: Tensor,
    ) -> None:
        """Merge listed scores, sorted by row."""
        counts = torch.bincount(row, minlength=num)
        width = int(counts.max())
        if width > 4 * self.kept:
            return self._topk(places, scores, columns)
        owners = counts.nonzero()[:, 0]
        line = torch.empty_like(counts)
        line[owners] = torch.arange(len(owners), device=row.device)
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        values = torch.full((len(owners), width), torch.inf, dtype=value.dtype, device=row.device)
        found = torch.zeros(values.shape, dtype=torch.int64, device=row.device)
        values[line[row], place] = value
        found[line[row], place] = column
        return self._merge(places[owners], values, found)

    def _topk(self, places: Tensor, scores: Tensor, columns: Tensor) -> None:
        lowest = scores.topk(min(self.kept, scores.shape[1]), dim=1, largest=False, sorted=False)
        self._merge(places, lowest.values, columns[lowest.indices])

    def _merge(self, places: Tensor, values: Tensor, columns: Tensor) -> None:
        values = torch.cat([self.values[places], values], 1)
        values, order = values.topk(self.kept, dim=1, largest=False, sorted=False)
        self.columns[places] = torch.cat([self.columns[places], columns], 1).gather(1, order)
        self.values[places] = values
        self.limit[places] = values.amax(1)
