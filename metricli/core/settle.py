"""The last step of an exact search: candidates are measured, and what their bounds leave open is resolved."""

from __future__ import annotations

import torch
from torch import Tensor

from metricli.core.nearest import Nearest
from metricli.core.ranking import exact_smallest, first_equal_rows, wide_dtype
from metricli.core.results import SearchResult
from metricli.core.scan import Scan

__all__ = ["Settler"]


class Settler:
    """Fills rows of a result from the candidates that a scan has left."""

    def __init__(self, scan: Scan, result: SearchResult, *, ordered: bool = False) -> None:
        self.scan, self.result, self.ordered = scan, result, ordered
        self._distinct: tuple[Tensor, Tensor] | None = None

    def settle(self, nearest: Nearest, places: Tensor) -> None:
        """The nearest items of the queries that have these `places` (n,) in `nearest`."""
        plan, rows = self.scan.plan, nearest.queries[places]
        if plan.k == 0:
            return
        bounds, columns, least = nearest.lowest(places)
        if self.ordered:
            rest = self._order(rows, bounds, columns, least)
            rows, bounds, columns, least = rows[rest], bounds[rest], columns[rest], least[rest]
            if len(rows) == 0:
                return
        found, distances, unsure, reach = self._rank(rows, bounds, columns, least)
        for part in torch.split(unsure, plan.resolved) if len(unsure) else ():
            found[part], distances[part] = self._resolve(rows[part], reach[part])
        self.result.indices[rows, : plan.k] = found.masked_fill_(distances.isinf(), -1)
        self.result.distances[rows, : plan.k] = distances

    def _order(self, rows: Tensor, bounds: Tensor, columns: Tensor, least: Tensor) -> Tensor:
        """Fill the rows (n,) whose order the lowest bounds (n, candidates) tell, but for runs of neighbours,
        which are measured; no bound of any other item is below `least` (n,).

        Of their distances only the first is measured. The places of the other rows come back.
        """
        scan, space, k = self.scan, self.scan.space, self.scan.plan.k
        bounds, order = bounds.sort(dim=1)
        columns = columns.gather(1, order)
        wide = bounds.to(scan.query_squares.dtype)
        there = wide.isfinite()
        error = 2 * scan.slack * (scan.query_squares[rows][:, None] + scan.gallery_squares[columns])
        lower = space.lower_gap(wide)
        reach = space.widest_tie(space.upper_gap(wide + error)).masked_fill_(~there, torch.inf)
        reach = reach.cummax(1).values
        apart = torch.ones_like(there)
        apart[:, 1:] = (lower[:, 1:] > reach[:, :-1]) | ~there[:, 1:]
        runs = apart.cumsum(1)
        alone = apart.clone()
        alone[:, :-1] &= apart[:, 1:]
        line, place = (~alone & (runs <= runs[:, k - 1 : k]) & there).nonzero(as_tuple=True)
        distances = torch.zeros_like(bounds)
        if len(line):
            more = space.measure(rows[line], columns[line, place][:, None], chunk=scan.plan.pairs)
            distances[line, place] = more.distance[:, 0]
        columns, order = columns.sort(dim=1)  # ties go to the lower gallery row: the next sorts are stable
        distances, second = distances.gather(1, order).sort(dim=1, stable=True)
        order, columns = order.gather(1, second), columns.gather(1, second)
        third = runs.gather(1, order).sort(dim=1, stable=True).indices
        found, order = columns.gather(1, third)[:, :k], order.gather(1, third)[:, :k]
        proven = least.isinf() | (space.lower_gap(least.to(reach.dtype)) > reach[:, k - 1])
        if scan.plan.candidates == scan.layout.reachable:
            proven[:] = True
        sure = rows[proven]
        nearest = space.measure(sure, found[proven, :1], chunk=scan.plan.pairs).distance
        missing = ~there.gather(1, order)[proven]
        self.result.indices[sure, :k] = found[proven].masked_fill_(missing, -1)
        self.result.distances[sure, :k] = torch.where(missing, torch.inf, torch.nan).to(bounds.dtype)
        self.result.distances[sure, 0] = nearest[:, 0].masked_fill(missing[:, 0], torch.inf)
        return (~proven).nonzero()[:, 0]

    def _rank(
        self, rows: Tensor, bounds: Tensor, columns: Tensor, least: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Indices and distances (n, k), the unproven places, and the gap to look within (n,)."""
        scan, space, plan = self.scan, self.scan.space, self.scan.plan
        bounds, order = bounds.sort(dim=1)
        columns = columns.gather(1, order)
        distances, gaps = self._measure(rows, bounds, columns)
        columns, order = columns.sort(dim=1)  # ties go to the lower gallery row: the next sort is stable
        distances, second = distances.gather(1, order).sort(dim=1, stable=True)
        gaps = gaps.gather(1, order.gather(1, second))[:, : plan.k]
        found = columns.gather(1, second)[:, : plan.k]
        reach = space.widest_tie(gaps.amax(1))
        proven = least.isinf() | (
            space.lower_gap(least.to(reach.dtype)) > reach
        )  # infinite: no other is there
        if plan.candidates == scan.layout.reachable:
            proven[:] = True
        return found, distances[:, : plan.k], (~proven).nonzero()[:, 0], reach

    def _measure(self, rows: Tensor, bounds: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and gaps (n, candidates) in the order of ascending `bounds`.

        The first k are measured, and of the others those whose bound does not put them behind all of these;
        the rest stay infinite.
        """
        scan, space, k = self.scan, self.scan.space, self.scan.plan.k
        measured = space.measure(rows, columns[:, :k], chunk=scan.plan.pairs)
        distances = torch.full_like(bounds, torch.inf)
        gaps = torch.full(bounds.shape, torch.inf, dtype=measured.gap.dtype, device=rows.device)
        distances[:, :k] = measured.distance.masked_fill(bounds[:, :k].isinf(), torch.inf)
        gaps[:, :k] = measured.gap
        reach = space.widest_tie(measured.gap.amax(1))
        rest = bounds[:, k:]
        lower = space.lower_gap(rest.to(gaps.dtype))
        line, column = (rest.isfinite() & (lower <= reach[:, None])).nonzero(as_tuple=True)
        if len(line):
            more = space.measure(rows[line], columns[line, column + k][:, None], chunk=scan.plan.pairs)
            distances[line, column + k] = more.distance[:, 0]
            gaps[line, column + k] = more.gap[:, 0]
        return distances, gaps

    def _resolve(self, rows: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and distances (n, k) for crowded places, from all that may lie within `reach` (n,)."""
        scan, space, plan = self.scan, self.scan.space, self.scan.plan
        self._distinct = self._distinct or first_equal_rows(space.gallery, chunk=plan.rows)
        first, place = self._distinct
        wide = wide_dtype(space.queries.device)
        gamma = (space.queries.shape[1] + 16) * torch.finfo(wide).eps
        x = space.bound_rows("queries", rows, wide)
        within = torch.empty(len(rows), len(first), dtype=torch.bool, device=rows.device)
        for start in range(0, len(first), plan.rows):
            part = slice(start, start + plan.rows)
            y = space.bound_rows("gallery", first[part], wide)
            squared = torch.addmm(_squares(y) * (1 - gamma), x, y.T, alpha=-2)
            squared += _squares(x)[:, None] * (1 - gamma)
            within[:, part] = space.lower_gap(squared, wide) <= reach[:, None]
        distances = torch.full(within.shape, torch.inf, dtype=space.bound_dtype, device=rows.device)
        if space.distance == "cosine":
            undirected = (space.query_norms[rows] == 0)[:, None] | (space.gallery_norms[first] == 0)
            distances[undirected] = 1.0
            within &= ~undirected
        near, far = within.nonzero(as_tuple=True)
        pairs = space.measure(rows[near], first[far][:, None], chunk=plan.pairs)
        distances[near, far] = pairs.distance[:, 0]
        distances = distances[:, place]
        scan.exclude.apply_(distances, rows, slice(0, len(space.gallery)))
        values, columns = exact_smallest(distances, plan.k)
        return columns, values


def _squares(rows: Tensor) -> Tensor:
    return rows.to(wide_dtype(rows.device)).square().sum(1)
