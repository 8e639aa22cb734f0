"""Ranks of the nearest and the farthest relevant item of each query in its full ranking."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metricli.core.exclusion import joint_codes
from metricli.core.ranking import first_equal_rows
from metricli.core.scan import Scan

__all__ = ["Marked", "RankCounter", "marked_items"]

_GROUP = 32  # scores behind one sum
_BAND = 256  # queries of neighbouring labels that are compared together


@dataclass(frozen=True)
class Marked:
    """For each query the place of one of its relevant items in its ranking: distance, then gallery row."""

    distance: Tensor
    """(Q,), infinite for a query without a relevant item."""
    gap: Tensor
    """(Q,) float64."""
    row: Tensor
    """(Q,) int64, -1 for a query without a relevant item."""


def marked_items(scan: Scan, query_labels: Tensor, gallery_labels: Tensor) -> tuple[Marked, Marked]:
    """The nearest and the farthest relevant item of each query, exactly.

    Rows are sorted by label, so that only blocks near the diagonal hold relevant pairs. Bounds by a product
    choose which of them are measured.
    """
    space, num = scan.space, len(query_labels)
    labels = torch.cat([query_labels, gallery_labels])
    groups = scan.exclude.both("groups")
    labels = torch.unique(labels if groups is None else joint_codes(labels, groups), return_inverse=True)[1]
    codes, order = labels[num:].sort(stable=True)
    queries = labels[:num].argsort(stable=True)
    wanted = labels[:num][queries]
    lows, highs = torch.searchsorted(codes, wanted), torch.searchsorted(codes, wanted, right=True)
    near, far = (_none(num, scan), _none(num, scan))
    height = min(_BAND, max(16, scan.plan.queries))
    width = max(16, scan.plan.queries * scan.plan.gallery // (8 * height))
    starts = range(0, num, height)
    spans = [(int(lows[at]), int(highs[min(at + height, num) - 1])) for at in starts]
    for at, (low, high) in zip(starts, spans, strict=True):
        rows = queries[at : at + height]
        x = space.bound_rows("queries", rows)
        for left in range(low, high, width):
            gallery = order[left : min(left + width, high)]
            y = space.bound_rows("gallery", gallery)
            scores = scan.scores(
                x, y, rows, gallery, torch.empty(len(x) * len(y), dtype=x.dtype, device=x.device)
            )
            scores.masked_fill_(labels[rows][:, None] != labels[num:][gallery], torch.inf)
            _take(scan, near, rows, gallery, scores, farthest=False)
            _take(scan, far, rows, gallery, scores, farthest=True)
    return near, far


def _none(num: int, scan: Scan) -> Marked:
    device = scan.space.queries.device
    return Marked(
        torch.full((num,), torch.inf, dtype=scan.space.bound_dtype, device=device),
        torch.zeros(num, dtype=scan.query_squares.dtype, device=device),
        torch.full((num,), -1, dtype=torch.int64, device=device),
    )


def _take(
    scan: Scan, marked: Marked, rows: Tensor, gallery: Tensor, scores: Tensor, *, farthest: bool
) -> None:
    """Renew `marked` for the queries `rows` (n,) by finite `scores` (n, m) of their relevant items."""
    space = scan.space
    lower = scores.to(scan.query_squares.dtype)
    upper = lower + scan.error(rows, gallery)[:, None]
    allowed = scores.isfinite()
    if farthest:
        best = torch.where(allowed, lower, -1.0).amax(1)
        least = space.squares_around(space.lower_gap(best).clamp_min(0))[0]
        chosen = allowed & (upper >= least[:, None])
    else:
        best = upper.amin(1)
        most = space.squares_around(space.upper_gap(best))[1]
        chosen = allowed & (lower <= most[:, None])
    line, column = chosen.nonzero(as_tuple=True)
    if len(line) == 0:
        return
    queries, items = rows[line], gallery[column]
    measured = space.measure(queries, items[:, None], chunk=scan.plan.pairs)
    distance, gap = measured.distance[:, 0], measured.gap[:, 0]
    known = marked.row[rows] >= 0  # from blocks before this one
    line = torch.cat([line, known.nonzero()[:, 0]])
    distance = torch.cat([distance, marked.distance[rows][known]])
    gap = torch.cat([gap, marked.gap[rows][known]])
    items = torch.cat([items, marked.row[rows][known]])
    order = items.argsort(stable=True)
    order = order[distance[order].argsort(stable=True)]
    order = order[line[order].argsort(stable=True)]
    counts = torch.bincount(line, minlength=len(rows))
    ends = counts.cumsum(0)
    there = counts > 0
    pick = order[(ends - 1 if farthest else ends - counts)[there]]
    marked.distance[rows[there]] = distance[pick]
    marked.gap[rows[there]] = gap[pick]
    marked.row[rows[there]] = items[pick]


class RankCounter:
    """Counts, block by block, the items before the marked one of each query."""

    def __init__(self, scan: Scan, marked: Marked) -> None:
        self.scan, self.marked = scan, marked
        self.before = torch.zeros_like(marked.row)
        self._low, self._high = scan.space.squares_around(marked.gap)
        self._distinct: tuple[Tensor, Tensor] | None = None

    @property
    def ranks(self) -> Tensor:
        """(Q,) int64, from 1; 0 for a query without a marked item."""
        return torch.where(self.marked.row >= 0, self.before + 1, 0)

    def count(self, queries: Tensor, gallery: Tensor, scores: Tensor, buffer: Tensor) -> None:
        """Take `scores` (n, m) of `queries` (n,) and `gallery` (m,); `buffer` has room for as many floats.

        Below `low` an item is certainly before the marked one, above `high` it is not, and between them it is
        measured. A ramp over the scores tells the three apart by sums and maxima of groups.
        """
        judged = self.marked.row[queries] >= 0
        low = _step(self._low[queries] - self.scan.error(queries, gallery), scores.dtype, -torch.inf)
        high = _step(self._high[queries], scores.dtype, torch.inf)
        low, high = low.masked_fill(~judged, -2.0), high.masked_fill(~judged, -1.0)
        groups = scores.shape[1] // _GROUP
        main, rest = scores[:, : groups * _GROUP], scores[:, groups * _GROUP :]
        nearer = (rest < low[:, None]).sum(1)
        if groups:
            behind, between = _ramped(main, low, high, buffer, groups)
            main = main.view(len(main), _GROUP, groups)
            nearer += groups * _GROUP - behind.masked_fill_(between, _GROUP).sum(1).long()
            row, group = between.nonzero(as_tuple=True)
            for part in torch.split(torch.arange(len(row), device=row.device), self._groups):
                line, at = row[part], group[part]
                few = main[line, :, at]
                nearer.index_add_(0, line, (few < low[line][:, None]).sum(1))
                entry, inner = _within(few, low[line], high[line])
                nearer += self._measured(queries, gallery, line[entry], inner * groups + at[entry])
        entry, inner = _within(rest, low, high)
        nearer += self._measured(queries, gallery, entry, inner + groups * _GROUP)
        self.before[queries] += nearer

    @property
    def _groups(self) -> int:
        return max(64, self.scan.plan.queries * self.scan.plan.gallery // (16 * _GROUP))

    def _measured(self, queries: Tensor, gallery: Tensor, line: Tensor, column: Tensor) -> Tensor:
        """How many of the listed pairs come before the marked item of their query (n,)."""
        if len(line) == 0:
            return torch.zeros_like(queries)
        rows, items = queries[line], gallery[column]
        if len(line) > 4 * len(queries):  # a crowd: equal rows of the gallery are measured once
            self._distinct = self._distinct or first_equal_rows(
                self.scan.space.gallery, chunk=self.scan.plan.rows
            )
            first, place = self._distinct
            keys, back = torch.unique(rows * len(first) + place[items], return_inverse=True)
            measured_rows, measured_items = keys // len(first), first[keys % len(first)]
        else:
            measured_rows, measured_items, back = rows, items, None
        pairs = self.scan.space.measure(measured_rows, measured_items[:, None], chunk=self.scan.plan.pairs)
        distance = pairs.distance[:, 0] if back is None else pairs.distance[back, 0]
        limit = self.marked.distance[rows]
        before = (distance < limit) | ((distance == limit) & (items < self.marked.row[rows]))
        return torch.bincount(line[before], minlength=len(queries))


def _ramped(scores: Tensor, low: Tensor, high: Tensor, buffer: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Of each of `groups` of `scores` (n, m): the sum of the ramp, and whether a value is on its slope.

    The ramp is 0 up to `low` (n,), rises behind it, and is 1 above `high` (n,); it lies in `buffer`.
    """
    slope = ((1 - 1e-4) / (high - low)).clamp_max_(1e30)
    turned = scores.stride(0) == 1  # taken as it lies in memory: thirty times faster
    if turned:
        scores, low, slope, axis = scores.T, low[None], slope[None], 0
    else:
        low, slope, axis = low[:, None], slope[:, None], 1
    ramp = buffer[: scores.numel()].view(scores.shape)
    torch.sub(scores, low, out=ramp)
    ramp = ramp.mul_(slope).clamp_(0, 1).view((_GROUP, groups, -1) if turned else (-1, _GROUP, groups))
    behind = ramp.sum(axis)
    between = ramp.addcmul_(ramp, ramp, value=-1).amax(axis) > 0
    return (behind.T, between.T) if turned else (behind, between)


def _step(values: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """`values` in `dtype`, moved by two of its steps, so that no rounding is on the wrong side."""
    rounded = values.to(dtype)
    target = torch.full_like(rounded, towards)
    return rounded.nextafter(target).nextafter(target)


def _within(values: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the `values` (n, m) from `low` (n,) to `high` (n,)."""
    row, column = ((values >= low[:, None]) & (values <= high[:, None])).nonzero(as_tuple=True)
    return row, column
