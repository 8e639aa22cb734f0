"""Blocks of query x gallery bounds: their sizes, their order, and the matrix product that fills them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metricli.core.blocks import Block
from metricli.core.coarse import Coarse
from metricli.core.coarse_blocks import CoarseBlock
from metricli.core.exclusion import Exclusion
from metricli.core.layout import Layout, Strip
from metricli.core.nearest import capacity
from metricli.core.ranking import Space, wide_dtype

__all__ = ["Memory", "Plan", "Scan", "squares_of"]

_CACHED = 3 * 2**22  # bytes of a block: larger ones leave the cache, smaller ones go by in small steps
_PER_THREAD = 6 * 2**20  # bytes of the budget below which one more thread does not pay
_HIGH = 192  # queries of a coarse block from which on it is made wider: what is near is listed but once
_PACKED = 64  # rows that a product takes together
_LEAST = 2**16  # pairs of a block below which a coarse product does not pay


@dataclass(frozen=True)
class Plan:
    """Sizes of the blocks, within the budget."""

    k: int
    candidates: int
    """Lowest bounds kept of each query: more than k, for items whose bound cannot be told from the k-th."""
    queries: int
    """Rows of a block."""
    gallery: int
    """Columns of a block."""
    plain: int
    """Columns of a block of bounds, where others are of coarse scores."""
    rows: int
    """Rows that are converted at a time."""
    pairs: int
    """Pairs that are measured at a time."""
    resolved: int
    """Queries that are compared with the whole gallery at a time."""
    threads: int
    """Strips that are worked on at a time."""
    symmetric: bool
    """Whether a block serves its queries and, turned over, its gallery rows."""
    held: bool
    """Whether all gallery rows are held as the product takes them."""
    coarse: bool
    """Whether blocks may be of coarse scores, which take half the memory."""

    @staticmethod
    def of(
        space: Space, k: int, reachable: int, budget_mb: float, *, mirrored: bool, coarse: bool = False
    ) -> Plan:
        """For the `k` nearest of at most `reachable` items; `mirrored`: queries and gallery are the same;
        `coarse`: blocks are of coarse scores."""
        num, dim = space.gallery.shape
        size = space.bound_dtype.itemsize
        budget = budget_mb * 2**20
        share = budget / 4
        threads = _threads(space.queries.device, budget)
        k = min(k, reachable)
        candidates = min(reachable, k + 6 + k // 16)
        held = num * dim * size <= 0.375 * budget
        symmetric = mirrored and num * capacity(candidates) * (size + 4) <= 0.375 * budget
        block, share = 0.375 * budget / threads, share / threads
        if space.queries.device.type == "cpu":
            both = symmetric and not (
                coarse and held
            )  # sides that list candidates, beside rows that are made
            block = min(block, _CACHED * 2 / 3 if both else _CACHED)
        each = size // 2 if coarse else size
        most = int(min(share / (64 * candidates + 1), share / (2 * size * dim + 1)))  # rows of a worker
        square = int((block / each) ** 0.5)
        if coarse and symmetric and square <= most:  # so that the last block is as wide for all strips
            square = -(-square // _PACKED) * _PACKED if square > 16 * _PACKED else square
            high = wide = max(1, _even(num, square, step=_PACKED))
        else:
            high = square if coarse and symmetric else (block / each / (4 if held else 0.5)) ** 0.5
            high = min(high, _HIGH) if coarse and held and not symmetric else high
            wide = int(max(block / each / high, 4 * candidates))
            wide = max(1, wide if held else int(min(wide, share / (2 * size * dim + 1))))
            wide = max(1, _even(num, wide // _PACKED * _PACKED if wide > _PACKED else wide, step=_PACKED))
            high = max(1, min(most, int(block / (each * wide))))
            step = _PACKED if coarse and high > _PACKED else 1
            times = 1 if symmetric else threads
            high = max(1, _even(len(space.queries), high // step * step, times=times, step=step))
        return Plan(
            k=k,
            candidates=candidates,
            queries=high,
            gallery=wide,
            plain=wide if high * wide * size <= block else max(1, wide // 2),
            rows=max(1, int(share / (32 * dim + 1))),
            pairs=max(1, int(share / (8 * dim + 1))),
            resolved=max(1, int(share / (48 * num + 1))),
            threads=threads,
            symmetric=symmetric,
            held=held,
            coarse=coarse,
        )


def _even(total: int, most: int, *, times: int = 1, step: int = 1) -> int:
    """The size of parts of at most `most`, as even as can be in a number that `times` divides."""
    parts = -(-total // (most * times)) * times
    even = -(-total // max(1, parts))
    return min(most, -(-even // step) * step, max(1, total))


def _threads(device: torch.device, budget: float) -> int:
    """How many threads work side by side: those of torch, as far as a budget in bytes feeds them."""
    if device.type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), int(budget / _PER_THREAD)))


@dataclass(frozen=True)
class Memory:
    """For the scores of a block, and for rows as the products take them."""

    scores: Tensor
    left: Tensor
    right: Tensor
    coarse_left: Tensor | None
    coarse_right: Tensor | None


class Scan:
    """The matrix of lower bounds of squared gaps, block by block."""

    def __init__(self, space: Space, exclude: Exclusion, plan: Plan, layout: Layout) -> None:
        self.space, self.exclude, self.plan, self.layout = space, exclude, plan, layout
        self.gallery_squares = squares_of(space, "gallery", plan.rows)
        self.query_squares = (
            self.gallery_squares
            if space.queries is space.gallery
            else squares_of(space, "queries", plan.rows)
        )
        self._largest = self.gallery_squares.amax() if len(self.gallery_squares) else 0.0
        dtype = space.bound_dtype
        self.slack = 2 * space.gamma  # for a product into which the squares are folded
        self._low_gallery = (self.gallery_squares * (1 - self.slack)).to(dtype)
        self._low_queries = (self.query_squares * (1 - self.slack)).to(dtype)
        self._held = self._gathered(layout.gallery) if plan.held else None
        zero = (space.query_norms == 0, space.gallery_norms == 0)
        self._undirected = zero if space.has_undirected else None
        self.coarse = Coarse.of(self) if plan.coarse else None
        self._coarse_held = None
        if self.coarse is not None and self._held is not None:
            self._coarse_held = self.coarse.right(layout.gallery, self._held)

    @property
    def _size(self) -> int:
        """Numbers of the bounds' type that a block takes."""
        return self.plan.queries * max(self.plan.plain, -(-self.plan.gallery // 2))

    def memory(self) -> Memory:
        """What a worker needs; fresh memory for each block would scatter over the heap."""
        plan, width = self.plan, self.space.gallery.shape[1] + 2
        rows = 0 if plan.held else plan.gallery
        coarse = (0, 0) if self.coarse is None else (plan.queries, rows)
        dtype, device = self.space.bound_dtype, self.space.queries.device
        return Memory(
            torch.empty(self._size, dtype=dtype, device=device),
            torch.empty(plan.queries, width, dtype=dtype, device=device),
            torch.empty(rows, width, dtype=dtype, device=device),
            *(self.coarse.rows(size) if self.coarse is not None else None for size in coarse),
        )

    def spare(self) -> Tensor:
        """Memory for what is compared of a block at a time, which stays near the core."""
        size = max(self._size // 2, 16 * self.plan.queries, 16 * self.plan.gallery)
        return torch.empty(size, dtype=self.space.bound_dtype, device=self.space.queries.device)

    def _gathered(self, rows: Tensor) -> Tensor:
        dim = self.space.gallery.shape[1] + 2
        out = torch.empty(len(rows), dim, dtype=self.space.bound_dtype, device=rows.device)
        for start in range(0, len(rows), self.plan.rows):
            part = slice(start, start + self.plan.rows)
            self.right(rows[part], out[part])
        return out

    def left(self, rows: slice | Tensor, out: Tensor | None = None) -> Tensor:
        """The queries `rows` (n,) as the product takes them (n, D + 2): -2x, |x|², 1; in `out` if given."""
        squares = self._low_queries[rows]
        if out is None:
            out = squares.new_empty(len(squares), self.space.gallery.shape[1] + 2)
        self.space.bound_rows("queries", rows, out=out[:, :-2]).mul_(-2)
        out[:, -2], out[:, -1] = squares, 1
        return out

    def right(self, rows: slice | Tensor, out: Tensor | None = None) -> Tensor:
        """The gallery `rows` (m,) as the product takes them (m, D + 2): y, 1, |y|²; in `out` if given."""
        squares = self._low_gallery[rows]
        if out is None:
            out = squares.new_empty(len(squares), self.space.gallery.shape[1] + 2)
        self.space.bound_rows("gallery", rows, out=out[:, :-2])
        out[:, -2], out[:, -1] = 1, squares
        return out

    def error(self, queries: Tensor, gallery: Tensor) -> Tensor:
        """How much a squared gap may be above its bound, for each of `queries` (n,) and any of `gallery`."""
        largest = self.gallery_squares[gallery].amax()
        return 2 * self.slack * (self.query_squares[queries] + largest)

    def beyond(self, queries: Tensor, bounds: Tensor) -> Tensor:
        """Bounds from it on are of items certainly farther from each of `queries` (n,) than an item that has
        the bound in `bounds` (n,)."""
        wide = bounds.to(self.query_squares.dtype)
        error = 2 * self.slack * (self.query_squares[queries] + self._largest)
        most = self.space.squares_around(self.space.upper_gap(wide + error))[1].to(bounds.dtype)
        end = torch.full_like(most, torch.inf)
        return most.nextafter(end).nextafter(end)

    def scores(self, left: Tensor, right: Tensor, queries: Tensor, gallery: Tensor, out: Tensor) -> Tensor:
        """Lower bounds (n, m) of the squared gaps of `queries` (n,) and `gallery` (m,)."""
        out = out[: len(left) * len(right)].view(len(left), len(right))
        if left.device.type == "cpu":  # numpy's product is the faster one, and as good as any for a bound
            np.matmul(left.numpy(), right.T.numpy(), out=out.numpy())
        else:
            torch.mm(left, right.T, out=out)
        if self._undirected is not None:  # at distance 1 from everything, whatever the product says
            out.masked_fill_(self._undirected[0][queries][:, None] | self._undirected[1][gallery], 2.0)
        self.exclude.apply_(out, queries, gallery)
        return out

    def part(self, low: int, high: int, out: Tensor) -> tuple[Tensor, Tensor]:
        """Gallery rows low..high of the order: their places (m,), and as the product takes them, if need be
        in `out`."""
        rows = self.layout.gallery[low:high]
        if self._held is not None:
            return rows, self._held[low:high]
        return rows, self.right(slice(low, high) if self.layout.plain else rows, out[: high - low])

    def blocks(self, strip: Strip, memory: Memory) -> Iterator[Block]:
        """The blocks of a strip; each lies in `memory` and is gone when the next is asked for."""
        queries = self.layout.queries[strip.first : strip.last]
        plain, rough = self.layout.plain, None
        left = memory.left[: len(queries)]
        self.left(slice(strip.first, strip.last) if plain else queries, left)  # a slice is not copied
        low = strip.first if self.plan.symmetric else strip.low
        while low < strip.high:
            coarse = self.coarse if self.coarse is not None and self.coarse.pays else None
            width = self.plan.gallery
            if coarse is None or len(queries) * min(width, strip.high - low) < _LEAST:
                coarse, width = None, self.plan.plain
            gallery, right = self.part(low, min(low + width, strip.high), memory.right)
            own = min(max(0, strip.last - low), len(gallery)) if self.plan.symmetric else len(gallery)
            if coarse is None:
                scores = self.scores(left, right, queries, gallery, memory.scores)
                yield Block(queries, gallery, scores, strip.first, low, own)
            else:
                rough = coarse.left(queries, left, memory.coarse_left) if rough is None else rough
                held = self._coarse_held
                if held is None:
                    other = coarse.right(gallery, right, memory.coarse_right)
                else:
                    other = held[low : low + width]
                scores = coarse.scores(rough, other, queries, gallery, memory.scores)
                yield CoarseBlock(queries, gallery, scores, strip.first, low, own, coarse, left, right)
            low += len(gallery)


def squares_of(space: Space, side: str, step: int) -> Tensor:
    """|row|² of each row of a side after centring, in the wide type, `step` rows at a time."""
    rows = space.queries if side == "queries" else space.gallery
    wide = wide_dtype(rows.device)
    squares = torch.empty(len(rows), dtype=wide, device=rows.device)
    size = min(len(rows), step), rows.shape[1]
    narrow = torch.empty(size, dtype=space.bound_dtype, device=rows.device)
    buffer = torch.empty(size, dtype=wide, device=rows.device)
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        found = space.bound_rows(side, part, out=narrow[: part.stop - start])
        squares[part] = buffer[: len(found)].copy_(found).square_().sum(1)
    return squares
