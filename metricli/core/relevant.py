"""Ranks of the nearest and the farthest relevant item of each query in its full ranking."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from metricli.core.blocks import Side, gathered
from metricli.core.exclusion import count_matches, equal_pairs, joint_codes
from metricli.core.parallel import in_parallel
from metricli.core.ranking import first_equal_rows
from metricli.core.scan import Scan

__all__ = ["Marked", "RankCounter", "marked_items"]

_BAND = 256  # queries of neighbouring labels that are compared together
_FEW = 16  # relevant items of a query, in the mean, that are simply listed
_MANY = 128  # relevant items of any query, for this
_LISTED = 2048  # queries whose relevant items are listed at a time
_GROUP = 32  # scores behind one minimum


@dataclass(frozen=True)
class Marked:
    """For each query the place of one of its relevant items in its ranking: distance, then gallery row."""

    distance: Tensor
    """(Q,), infinite for a query without a relevant item."""
    gap: Tensor
    """(Q,) float64."""
    row: Tensor
    """(Q,) int64, -1 for a query without a relevant item."""

    def put(self, queries: Tensor, distance: Tensor, gap: Tensor, row: Tensor) -> None:
        """Set the items of some queries (n,)."""
        self.distance[queries], self.gap[queries], self.row[queries] = distance, gap, row


def marked_items(scan: Scan, query_labels: Tensor, gallery_labels: Tensor) -> tuple[Marked, Marked]:
    """The nearest and the farthest relevant item of each query, exactly.

    Rows are sorted by label, so that only blocks near the diagonal hold relevant pairs. Bounds by a product
    choose which of them are measured.
    """
    num = len(query_labels)
    labels = torch.cat([query_labels, gallery_labels])
    groups = scan.exclude.both("groups")
    labels = torch.unique(labels if groups is None else joint_codes(labels, groups), return_inverse=True)[1]
    near, far = (_none(num, scan), _none(num, scan))
    if _listed(scan, labels[:num], labels[num:], near, far):
        return near, far
    codes, order = labels[num:].sort(stable=True)
    queries = labels[:num].argsort(stable=True)
    wanted = labels[:num][queries]
    lows, highs = torch.searchsorted(codes, wanted), torch.searchsorted(codes, wanted, right=True)
    height = min(_BAND, max(16, scan.plan.queries))
    width = max(16, scan.plan.queries * scan.plan.gallery // (8 * height))

    def work(at: int) -> int:
        rows = queries[at : at + height]
        left, (low, high) = scan.left(rows), (int(lows[at]), int(highs[at + len(rows) - 1]))
        buffer = left.new_empty(len(left) * min(width, max(0, high - low)))
        for start in range(low, high, width):
            gallery = order[start : min(start + width, high)]
            scores = scan.scores(left, scan.right(gallery), rows, gallery, buffer)
            scores.masked_fill_(labels[rows][:, None] != labels[num:][gallery], torch.inf)
            _take(scan, near, rows, gallery, scores, farthest=False)
            _take(scan, far, rows, gallery, scores, farthest=True)
        return len(rows)

    in_parallel(range(0, num, height), [work] * scan.plan.threads, lambda _: None)
    return near, far


def _listed(scan: Scan, queries: Tensor, gallery: Tensor, near: Marked, far: Marked) -> bool:
    """Fill both from a list of all relevant pairs, where labels are small enough for one; else False."""
    num, counts = len(queries), count_matches(queries, gallery)
    if num == 0 or int(counts.sum()) > _FEW * num or int(counts.max()) > _MANY:
        return False

    def work(start: int) -> int:
        rows = torch.arange(start, min(start + _LISTED, num), device=queries.device)
        pairs = equal_pairs(queries[rows], gallery, most=len(rows) * len(gallery))
        assert pairs is not None
        line, items = rows[pairs[0]], pairs[1]
        allowed = ~scan.exclude.hides(line, items[:, None])[:, 0]
        line, items = line[allowed], items[allowed]
        if len(line) == 0:
            return len(rows)
        measured = scan.space.measure(line, items[:, None], chunk=scan.plan.pairs)
        distance, gap = measured.distance[:, 0], measured.gap[:, 0]
        order = _ranked(line, distance, items)
        counts = torch.bincount(line - start, minlength=len(rows))
        ends, there = counts.cumsum(0), counts > 0
        for marked, pick in ((near, order[(ends - counts)[there]]), (far, order[(ends - 1)[there]])):
            marked.put(rows[there], distance[pick], gap[pick], items[pick])
        return len(rows)

    in_parallel(range(0, num, _LISTED), [work] * scan.plan.threads, lambda _: None)
    return True


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
    order = _ranked(line, distance, items)
    counts = torch.bincount(line, minlength=len(rows))
    ends = counts.cumsum(0)
    there = counts > 0
    pick = order[(ends - 1 if farthest else ends - counts)[there]]
    marked.put(rows[there], distance[pick], gap[pick], items[pick])


def _ranked(line: Tensor, distance: Tensor, items: Tensor) -> Tensor:
    """The order (P,) of listed pairs by query, then distance, then gallery row."""
    order = items.argsort(stable=True)
    order = order[distance[order].argsort(stable=True)]
    return order[line[order].argsort(stable=True)]


class RankCounter:
    """Counts, block by block, the items before the marked one of each query."""

    def __init__(self, scan: Scan, marked: Marked) -> None:
        self.scan, self.marked = scan, marked
        self.before = torch.zeros_like(marked.row)
        self._low, self._high = scan.space.squares_around(marked.gap)
        self._places = torch.full_like(marked.row, -1)
        there = marked.row >= 0
        self._places[there] = scan.layout.positions[marked.row[there]]
        self._lock = threading.Lock()
        self._distinct: tuple[Tensor, Tensor] | None = None

    @property
    def ranks(self) -> Tensor:
        """(Q,) int64, from 1; 0 for a query without a marked item."""
        return torch.where(self.marked.row >= 0, self.before + 1, 0)

    def count(self, side: Side, buffer: Tensor) -> None:
        """Take the scores of a block, some queries at a time, by way of `buffer`.

        Below `low` an item is certainly before the marked one, above `high` it is not, and between them it is
        measured. The marked item itself lies between.
        """
        queries, scores = side.queries, side.scores
        high = _step(self._high[queries], scores.dtype, torch.inf)
        high.masked_fill_(self.marked.row[queries] < 0, -torch.inf)
        asking = (side.lowest <= high).nonzero()[:, 0]
        if len(asking) == 0:
            return
        low = _step(self._low[queries] - self.scan.error(queries, side.gallery), scores.dtype, -torch.inf)
        low = torch.minimum(low, high)
        if len(asking) * (4 if side.turned else 2) < len(queries):
            step = max(1, len(buffer) // (2 * scores.shape[1]))
            for part in torch.split(asking, step):
                few = gathered(scores, part, buffer, turned=side.turned)
                rest = buffer[few.numel() :]
                self._count(queries[part], side, few, low[part], high[part], rest)
        else:
            self._count(queries, side, scores, low, high, buffer)

    def _count(
        self, rows: Tensor, side: Side, scores: Tensor, low: Tensor, high: Tensor, buffer: Tensor
    ) -> None:
        nearer = _below(scores, low, buffer, turned=side.turned)
        within = _below(scores, high, buffer, turned=side.turned, equal=True)
        place = self._places[rows] - side.low
        within -= ((place >= 0) & (place < scores.shape[1])).long()
        unsure = (within > nearer).nonzero()[:, 0]
        for part in torch.split(unsure, max(1, len(buffer) // scores.shape[1])) if len(unsure) else ():
            line, column = _between(scores, low, high, part, buffer, turned=side.turned)
            nearer += self._measured(rows, side.gallery, line, column)
        with self._lock:
            self.before.index_add_(0, rows, nearer)

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


def _between(
    scores: Tensor, low: Tensor, high: Tensor, rows: Tensor, buffer: Tensor, *, turned: bool
) -> tuple[Tensor, Tensor]:
    """Where scores (n, m) of `rows` (r,) lie in [low, high], both (n,): the rows (p,) and columns (p,).

    Groups of scores that come near the middle are few and found first.
    """
    away = gathered(scores, rows, buffer, turned=turned)
    low, high = low[rows], high[rows]
    away.sub_(((low + high) / 2)[:, None]).abs_()
    rounding = 4 * torch.finfo(scores.dtype).eps * (low.abs() + high.abs())
    reach = (high - low) / 2 * 1.001 + rounding
    size = min(_GROUP, scores.shape[1])
    groups = Side(rows, rows, away, 0).minima(size)
    line, group = (groups <= reach[:, None]).nonzero(as_tuple=True)
    line = line.repeat_interleave(size)
    column = (group[:, None] * size + torch.arange(size, device=rows.device)).flatten()
    more, place = (away[:, size * groups.shape[1] :] <= reach[:, None]).nonzero(as_tuple=True)
    line, column = torch.cat([line, more]), torch.cat([column, place + size * groups.shape[1]])
    values = scores[rows[line], column]
    inside = (values >= low[line]) & (values <= high[line])
    return rows[line[inside]], column[inside]


def _below(scores: Tensor, limit: Tensor, buffer: Tensor, *, turned: bool, equal: bool = False) -> Tensor:
    """How many scores of each row of (n, m) are below `limit` (n,), or equal to it: (n,) int64.

    Comparisons that give floats, and sums of floats, are several times faster than those of booleans.
    """
    counts = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
    compare = torch.le if equal else torch.lt
    step = max(1, len(buffer) // scores.shape[1])
    for at in range(0, len(scores), step):
        few, most = scores[at : at + step], limit[at : at + step, None]
        found = buffer[: few.numel()]
        if turned:
            found = compare(few.T, most.T, out=found.view(few.T.shape)).sum(0)
        else:
            found = compare(few, most, out=found.view(few.shape)).sum(1)
        counts[at : at + step] = found
    return counts


def _step(values: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """`values` in `dtype`, moved by two of its steps, so that no rounding is on the wrong side."""
    rounded = values.to(dtype)
    target = torch.full_like(rounded, towards)
    return rounded.nextafter(target).nextafter(target)
