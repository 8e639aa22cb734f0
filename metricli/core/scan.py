"""Blocks of query x gallery bounds: their sizes, their order, and the matrix product that fills them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metricli.core.exclusion import Exclusion
from metricli.core.ranking import Space, wide_dtype

__all__ = ["Block", "Layout", "Plan", "Scan", "Strip"]

_SMALL = 256  # queries of small groups that are searched together


@dataclass(frozen=True)
class Plan:
    """Sizes of the blocks; `candidates` leaves room for items whose bound cannot be told from the k-th."""

    k: int
    candidates: int
    queries: int
    gallery: int
    rows: int
    pairs: int
    resolved: int
    symmetric: bool
    """Whether a block serves its queries and, turned over, its gallery rows."""
    held: bool
    """Whether all gallery rows are held as the product takes them."""

    @staticmethod
    def of(space: Space, k: int, reachable: int, budget_mb: float, *, mirrored: bool) -> Plan:
        """For the `k` nearest of at most `reachable` items; `mirrored`: queries and gallery are the same."""
        num, dim = space.gallery.shape
        size = space.bound_dtype.itemsize
        budget = budget_mb * 2**20
        share = budget / 4
        k = min(k, reachable)
        candidates = min(reachable, k + 8 + k // 16)
        held = num * dim * size <= 0.375 * budget
        symmetric = mirrored and num * candidates * (size + 8) <= share
        block = budget / 8
        high = (block / size / (2 if held else 0.125)) ** 0.5
        wide = int(min(max(block / size / high, 4 * candidates), share / (2 * size * dim + 1)))
        wide = max(1, min(num, wide // 64 * 64 if wide > 64 else wide))
        high = int(min(block / (size * wide), share / (64 * candidates + 1), share / (2 * size * dim + 1)))
        return Plan(
            k=k,
            candidates=candidates,
            queries=max(1, min(len(space.queries), high)),
            gallery=wide,
            rows=max(1, int(share / (32 * dim + 1))),
            pairs=max(1, int(share / (8 * dim + 1))),
            resolved=max(1, int(share / (48 * num + 1))),
            symmetric=symmetric,
            held=held,
        )


@dataclass(frozen=True)
class Strip:
    """Queries first..last of the order against gallery rows low..high of the order."""

    first: int
    last: int
    low: int
    high: int


@dataclass(frozen=True)
class Layout:
    """The order in which rows are taken, so that those of a group stand together; None: as they come."""

    queries: Tensor
    gallery: Tensor
    bounds: Tensor
    """(n, 4) int64 on the CPU: for each group its queries and its gallery rows in the orders."""
    reachable: int
    """Gallery rows of the largest group."""

    @staticmethod
    def of(space: Space, exclude: Exclusion, sorted_by: Tensor | None) -> Layout:
        """Groups of `exclude` apart, and within them queries of one code of `sorted_by` (Q,) together."""
        device = space.queries.device
        queries = torch.arange(len(space.queries), device=device)
        gallery = torch.arange(len(space.gallery), device=device)
        same = space.queries is space.gallery
        if sorted_by is not None:
            queries = sorted_by.argsort(stable=True)
            gallery = queries if same else gallery
        codes = exclude.both("groups")
        if codes is None:
            bounds = torch.tensor([[0, len(queries), 0, len(gallery)]])
            return Layout(queries, gallery, bounds, len(gallery))
        codes = torch.unique(codes, return_inverse=True)[1]
        of_queries, of_gallery = codes[: len(queries)], codes[len(queries) :]
        queries = queries[of_queries[queries].argsort(stable=True)]
        gallery = gallery[of_gallery[gallery].argsort(stable=True)]
        num = int(codes.max()) + 1 if len(codes) else 0
        sizes = [torch.bincount(x, minlength=num).cpu() for x in (of_queries, of_gallery)]
        ends = [x.cumsum(0) for x in sizes]
        bounds = torch.stack([ends[0] - sizes[0], ends[0], ends[1] - sizes[1], ends[1]], 1)
        bounds = bounds[(sizes[0] > 0) & (sizes[1] > 0)]
        return Layout(
            queries, gallery, bounds, int((bounds[:, 3] - bounds[:, 2]).amax()) if len(bounds) else 0
        )

    def strips(self, height: int) -> Iterator[Strip]:
        """Strips of at most `height` queries: parts of a large group, or several small groups together."""
        first = last = low = high = -1
        for start, end, left, right in self.bounds.tolist():
            if first >= 0 and (end - first > min(_SMALL, height)):
                yield Strip(first, last, low, high)
                first = -1
            if end - start > min(_SMALL, height):
                for at in range(start, end, height):
                    yield Strip(at, min(at + height, end), left, right)
                continue
            if first < 0:
                first, low = start, left
            last, high = end, right
        if first >= 0:
            yield Strip(first, last, low, high)


@dataclass(frozen=True)
class Block:
    """Scores (n, m) of queries (n,) and gallery rows (m,)."""

    queries: Tensor
    gallery: Tensor
    scores: Tensor
    own: int
    """Columns from here on serve, turned over, the queries that they are; m where none does."""

    def sides(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Queries, gallery rows and their scores: as they are, and turned over."""
        yield self.queries, self.gallery, self.scores
        if self.own < len(self.gallery):
            yield self.gallery[self.own :], self.queries, self.scores[:, self.own :].T


class Scan:
    """The matrix of lower bounds of squared gaps, block by block."""

    def __init__(self, space: Space, exclude: Exclusion, plan: Plan, layout: Layout) -> None:
        self.space, self.exclude, self.plan, self.layout = space, exclude, plan, layout
        self.gallery_squares = self._squares("gallery")
        self.query_squares = (
            self.gallery_squares if space.queries is space.gallery else self._squares("queries")
        )
        dtype = space.bound_dtype
        self._low_gallery = (self.gallery_squares * (1 - space.gamma)).to(dtype)
        self._low_queries = (self.query_squares * (1 - space.gamma)).to(dtype)
        self._buffer = torch.empty(plan.queries * plan.gallery, dtype=dtype, device=space.queries.device)
        self._held = self._rows("gallery", layout.gallery) if plan.held else None
        undirected = (space.query_norms == 0, space.gallery_norms == 0)
        self._undirected = (
            undirected
            if space.distance == "cosine" and bool(undirected[0].any() | undirected[1].any())
            else None
        )

    def spare(self) -> Tensor:
        """Memory for one more block."""
        return torch.empty_like(self._buffer)

    def _squares(self, side: str) -> Tensor:
        """|row|² of each row after centring, in the wide type."""
        rows = self.space.queries if side == "queries" else self.space.gallery
        wide = wide_dtype(rows.device)
        squares = torch.empty(len(rows), dtype=wide, device=rows.device)
        for start in range(0, len(rows), self.plan.rows):
            part = slice(start, start + self.plan.rows)
            squares[part] = self.space.bound_rows(side, part).to(wide).square().sum(1)
        return squares

    def _rows(self, side: str, rows: Tensor) -> Tensor:
        dim = self.space.gallery.shape[1]
        out = torch.empty(len(rows), dim, dtype=self.space.bound_dtype, device=rows.device)
        for start in range(0, len(rows), self.plan.rows):
            part = slice(start, start + self.plan.rows)
            out[part] = self.space.bound_rows(side, rows[part])
        return out

    def error(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """How much a squared gap may be above its bound, for each of `queries` (n,) and any of `gallery`."""
        largest = self.gallery_squares[gallery].amax()
        return 2 * self.space.gamma * (self.query_squares[queries] + largest)

    def scores(self, x: Tensor, y: Tensor, queries: Tensor, gallery: Tensor, out: Tensor) -> Tensor:
        """Lower bounds (n, m) of the squared gaps of rows `x` of `queries` and `y` of `gallery`."""
        out = out[: len(x) * len(y)].view(len(x), len(y))
        torch.addmm(self._low_gallery[gallery], x, y.T, alpha=-2, out=out)
        out += self._low_queries[queries][:, None]
        if self._undirected is not None:  # at distance 1 from everything, whatever the product says
            out.masked_fill_(self._undirected[0][queries][:, None] | self._undirected[1][gallery], 2.0)
        self.exclude.apply_(out, queries, gallery)
        return out

    def part(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Gallery rows low..high of the order: their places (m,), and as the product takes them (m, D)."""
        rows = self.layout.gallery[low:high]
        return rows, self.space.bound_rows("gallery", rows) if self._held is None else self._held[low:high]

    def blocks(self, strip: Strip) -> Iterator[Block]:
        """The blocks of a strip; each lies in one buffer and is gone when the next is asked for."""
        queries = self.layout.queries[strip.first : strip.last]
        x = self.space.bound_rows("queries", queries)
        start = strip.first if self.plan.symmetric else strip.low
        for low in range(start, strip.high, self.plan.gallery):
            gallery, y = self.part(low, min(low + self.plan.gallery, strip.high))
            scores = self.scores(x, y, queries, gallery, self._buffer)
            own = min(max(0, strip.last - low), len(gallery)) if self.plan.symmetric else len(gallery)
            yield Block(queries, gallery, scores, own)
