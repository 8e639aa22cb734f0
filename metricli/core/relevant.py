"""The nearest and the farthest relevant item of each query."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from metricli.core.coarse_blocks import products
from metricli.core.exclusion import joint_codes
from metricli.core.parallel import in_parallel
from metricli.core.scan import Scan

__all__ = ["Marked", "marked_items"]

_BAND = 256  # queries of neighbouring labels that are compared together
_FEW = 16  # relevant items of a query, in the mean, that are simply listed
_MANY = 128  # relevant items of any query, for this
_LISTED = 16  # relevant items that are listed at a time, to the rows that are converted at a time


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
    asked = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    asked[labels[:num]] = True
    codes, order = labels[num:].sort(stable=True)
    codes, order = codes[asked[codes]], order[asked[codes]]
    queries = labels[:num].argsort(stable=True)
    wanted = labels[:num][queries]
    lows, highs = torch.searchsorted(codes, wanted), torch.searchsorted(codes, wanted, right=True)
    if num and int((highs - lows).sum()) <= _FEW * num and int((highs - lows).max()) <= _MANY:
        _list(scan, queries, order, lows, highs, near, far)
        return near, far
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


def _list(
    scan: Scan, queries: Tensor, order: Tensor, lows: Tensor, highs: Tensor, near: Marked, far: Marked
) -> None:
    """Fill both from lists of all relevant pairs: those of queries[i] are order[lows[i] : highs[i]]."""
    counts = highs - lows
    ends = (counts + 2).cumsum(0)  # a query is a row too
    cuts = torch.arange(0, int(ends[-1]) + 1, max(_MANY, _LISTED * scan.plan.rows), device=ends.device)
    cuts = torch.unique(torch.cat([torch.searchsorted(ends, cuts), ends.new_tensor([len(queries)])]))

    def work(cut: tuple[int, int]) -> int:
        part = slice(*cut)
        rows, low, high = queries[part], int(lows[part][0]), int(highs[part][-1])
        line = torch.repeat_interleave(counts[part])
        start = lows[part] - (counts[part].cumsum(0) - counts[part])
        column = torch.arange(len(line), device=line.device) + start[line] - low
        items = order[low:high]
        allowed = ~scan.exclude.hides(rows[line], items[column][:, None])[:, 0]
        line, column = line[allowed], column[allowed]
        if len(line) == 0:
            return len(rows)
        chosen = _contenders(scan, rows, items, line, column)
        line, item = line[chosen], items[column[chosen]]
        measured = scan.space.measure(rows[line], item[:, None], chunk=scan.plan.pairs)
        distance, gap = measured.distance[:, 0], measured.gap[:, 0]
        by_place = _ranked(line, distance, item)
        found = torch.bincount(line, minlength=len(rows))
        last, there = found.cumsum(0), found > 0
        for marked, pick in ((near, by_place[(last - found)[there]]), (far, by_place[(last - 1)[there]])):
            marked.put(rows[there], distance[pick], gap[pick], item[pick])
        return len(rows)

    in_parallel(list(pairwise(cuts.tolist())), [work] * scan.plan.threads, lambda _: None)


def _contenders(scan: Scan, rows: Tensor, items: Tensor, line: Tensor, column: Tensor) -> Tensor:
    """Which of the pairs (p,) of rows[line] and items[column], by line, may be the nearest or the farthest of
    their query, by bounds: (p,) bool."""
    space = scan.space
    if space.bound_dtype != torch.float32 or space.has_undirected or rows.device.type != "cpu":
        return torch.ones_like(line, dtype=torch.bool)
    lower = products(scan.left(rows), scan.right(items), line, column).to(scan.query_squares.dtype)
    squares = scan.query_squares[rows][line] + scan.gallery_squares[items][column]
    upper = lower + 2 * scan.slack * squares
    best = lower.new_full((len(rows),), torch.inf).scatter_reduce_(0, line, upper, "amin")
    worst = lower.new_full((len(rows),), -1.0).scatter_reduce_(0, line, lower, "amax")
    most = space.squares_around(space.upper_gap(best))[1]
    least = space.squares_around(space.lower_gap(worst).clamp_min(0))[0]
    return (lower <= most[line]) | (upper >= least[line])


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
