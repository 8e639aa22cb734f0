"""The nearest and the farthest relevant item of each query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metricli.core.exclusion import count_matches, equal_pairs, joint_codes
from metricli.core.parallel import in_parallel
from metricli.core.scan import Scan

__all__ = ["Marked", "marked_items"]

_BAND = 256  # queries of neighbouring labels that are compared together
_FEW = 16  # relevant items of a query, in the mean, that are simply listed
_MANY = 128  # relevant items of any query, for this
_LISTED = 1024  # queries whose relevant items are listed at a time


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
