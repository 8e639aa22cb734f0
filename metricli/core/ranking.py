"""The two halves of an exact search: distances that do not depend on blocks, and bounds by matrix product.

A matrix product rounds a distance differently with the shape of its block, so it is used only as a lower
bound that finds candidates. What is compared and returned is the distance by direct differences of one
pair, in float64, by a kernel that treats every pair alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metricli.core.distances import Distance

__all__ = ["Gaps", "Space", "exact_smallest", "first_equal_rows", "wide_dtype"]

_MINIMUM_COSINE_GAP = 1e-14  # below it, unit vectors in float64 differ by rounding alone
_CACHED = 2**17  # numbers that stay in a core's cache while they are measured
_TIE = 1 + 2.0**-22  # gaps nearer than this may round to one float32 distance


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest floating type of `device`: float64, but float32 on mps, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Gaps:
    """Direct distances of pairs, each of one shape: `gap` = |p(q) - p(g)|, and the distance asked for."""

    gap: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Space:
    """Queries (Q, D) and gallery (G, D) as rows p(x) whose Euclidean order is the wanted order.

    p(x) = x for euclidean; p(x) = x / |x| for cosine, since 1 - cos(x, y) = |p(x) - p(y)|² / 2. A zero
    vector has no direction: its cosine with anything is taken as 0, so its distance is 1.
    """

    queries: Tensor
    gallery: Tensor
    distance: Distance
    query_norms: Tensor
    gallery_norms: Tensor
    centre: Tensor
    """(D,) subtracted before the matrix product: collapsed embeddings keep their digits."""
    unit: float
    """Power of two by which bounds are scaled, against overflow of squares."""
    gamma: float
    """Relative rounding error of the matrix product of two rows, in the type of `bound_rows`."""

    @staticmethod
    def of(queries: Tensor, gallery: Tensor, distance: Distance, *, chunk: int) -> Space:
        """Check and measure the rows, `chunk` at a time.

        Raises:
            ValueError: a row holds NaN, infinity, or values too large to be squared.
        """
        query_norms, gallery_norms = _norms("queries", queries, chunk), _norms("gallery", gallery, chunk)
        sample = gallery[:: max(1, len(gallery) // 1024)].to(wide_dtype(gallery.device))
        unit = 1.0
        if distance == "cosine":
            norms = gallery_norms[:: max(1, len(gallery) // 1024)]
            sample = sample / torch.where(norms > 0, norms, 1.0)[:, None]
        else:
            largest = (
                float(torch.cat([query_norms, gallery_norms]).max()) if len(gallery) + len(queries) else 0.0
            )
            if largest > 0 and not 1e-8 < largest < 1e8:
                unit = 2.0 ** -round(torch.tensor(largest, dtype=torch.float64).log2().item())
        centre = sample.mean(0) if len(gallery) else sample.new_zeros(gallery.shape[1])
        space = Space(queries, gallery, distance, query_norms, gallery_norms, centre, unit, 0.0)
        return Space(queries, gallery, distance, query_norms, gallery_norms, centre, unit, space._gamma())

    def of_queries(self, part: slice) -> Space:
        """Some of the queries, measured as among all of them."""
        return replace(self, queries=self.queries[part], query_norms=self.query_norms[part])

    @property
    def has_undirected(self) -> bool:
        """Whether a row is zero where that has no cosine: it is at distance 1 from everything."""
        zero = (self.query_norms == 0).any() | (self.gallery_norms == 0).any()
        return self.distance == "cosine" and bool(zero)

    @property
    def bound_dtype(self) -> torch.dtype:
        """Type of the matrix product: float32, or float64 for float64 embeddings."""
        return torch.float64 if self.queries.dtype == torch.float64 else torch.float32

    def _gamma(self) -> float:
        """Bound of the rounding error by theory, or by a probe where the product is rounded more (TF32)."""
        theory = (self.queries.shape[1] + 16) * torch.finfo(self.bound_dtype).eps / 2
        if not len(self.queries) or not len(self.gallery):
            return theory
        with torch.autocast(self.queries.device.type, enabled=False):
            x, y = self.bound_rows("queries", slice(0, 64)), self.bound_rows("gallery", slice(0, 256))
            wide = wide_dtype(x.device)
            exact = x.to(wide) @ y.to(wide).T
            size = x.to(wide).norm(dim=1)[:, None] * y.to(wide).norm(dim=1)
            seen = float(((x @ y.T).to(wide) - exact).abs().div(size.clamp_min(1e-30)).max())
        return theory if seen <= theory else theory + 16 * seen

    def _side(self, side: str) -> tuple[Tensor, Tensor]:
        return (self.queries, self.query_norms) if side == "queries" else (self.gallery, self.gallery_norms)

    def bound_rows(
        self, side: str, rows: slice | Tensor, dtype: torch.dtype | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Rows (n, D) for the matrix product: p(x) less the centre, in `bound_dtype` unless told; in `out`
        if given."""
        dtype = dtype or self.bound_dtype
        x, norms = self._side(side)
        part = x[rows] if isinstance(rows, slice) else x.index_select(0, rows)
        centre = self.centre.to(dtype)
        if out is None:
            out = torch.empty(part.shape, dtype=dtype, device=x.device)
        if self.distance == "euclidean":
            torch.sub(part.to(dtype), centre, out=out)
            return out if self.unit == 1.0 else out.mul_(self.unit)
        sizes = norms[rows]
        if bool(((sizes < 1e-15) & (sizes > 0) | (sizes > 1e15)).any()):
            part = part.to(wide_dtype(x.device))  # the reciprocal needs the wide range
            out.copy_(part * torch.where(sizes > 0, 1 / sizes, 0.0).to(part.dtype)[:, None])
        else:
            part = part.to(dtype)
            torch.mul(part, torch.where(sizes > 0, 1 / sizes, 0.0).to(dtype)[:, None], out=out)
        return out.sub_(centre)

    def _lost(self, dtype: torch.dtype | None = None) -> float:
        """How far gaps of `bound_rows` are from those of p(x), beside what is relative to them."""
        kind = torch.finfo(dtype or self.bound_dtype)
        # cosine rounds p(x) before the centre is subtracted; euclidean loses squares that underflow
        return 8 * kind.eps if self.distance == "cosine" else 64 * kind.tiny**0.5

    def lower_gap(self, squared: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The smallest gap that a lower bound of the squared gap between `bound_rows` allows, in its type."""
        return (squared.clamp_min(0).sqrt() - self._lost(dtype)) / self.unit

    def upper_gap(self, squared: Tensor) -> Tensor:
        """The largest gap that an upper bound of the squared gap between `bound_rows` allows."""
        return (squared.clamp_min(0).sqrt() + self._lost()) / self.unit

    def squares_around(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Squared gaps between `bound_rows`, in the wide type: what is below the first has a distance
        certainly smaller than items at `gap`, what is above the second a larger one."""
        narrowed = (gap - 2.0**-140) / _TIE
        if self.distance == "cosine":
            narrowed = torch.where(narrowed <= _MINIMUM_COSINE_GAP, 0.0, narrowed)
        inner = narrowed * self.unit - self._lost()
        outer = self.widest_tie(gap) * self.unit + self._lost()
        return torch.where(inner > 0, inner.square(), -1.0), outer.square()

    def widest_tie(self, gap: Tensor) -> Tensor:
        """The largest gap that may still be at the same distance as `gap`."""
        widened = gap * _TIE + 2.0**-140
        return widened.clamp_min(_MINIMUM_COSINE_GAP) if self.distance == "cosine" else widened

    def exact_rows(self, side: str, rows: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """p(x) of the chosen rows (n,) in the wide type, (n, D), by way of the first rows of `memory`: of the
        type of the embeddings, and wide."""
        x, norms = self._side(side)
        narrow, out = (each[: len(rows)] for each in memory)
        out.copy_(torch.index_select(x, 0, rows, out=narrow))
        if self.distance == "cosine":
            sizes = norms[rows]
            out *= torch.where(sizes > 0, 1 / sizes, 0.0)[:, None]
        return out

    def measure(self, query_rows: Tensor, gallery_rows: Tensor, *, chunk: int) -> Gaps:
        """Direct distances (n, m) of query_rows[i] to gallery_rows[i, j], about `chunk` pairs at once."""
        num, width = gallery_rows.shape
        wide, device = wide_dtype(self.queries.device), self.queries.device
        gap = torch.empty(num, width, dtype=wide, device=device)
        chunk = min(chunk, max(1, _CACHED // self.gallery.shape[1]))
        step = max(1, chunk // width)
        # fresh memory for each chunk would cost more than the arithmetic
        shape = min(num, step) * min(width, chunk), self.gallery.shape[1]
        narrow = torch.empty(shape, dtype=self.gallery.dtype, device=device)
        near, far = (torch.empty(shape, dtype=wide, device=device) for _ in range(2))
        for start in range(0, num, step):
            part = slice(start, min(start + step, num))
            queries = self.exact_rows("queries", query_rows[part], (narrow, near))[:, None]
            columns = gallery_rows[part]
            for left in range(0, width, chunk):
                few = columns[:, left : left + chunk]
                gallery = self.exact_rows("gallery", few.reshape(-1), (narrow, far)).view(*few.shape, -1)
                gap[part, left : left + chunk] = _direct_(queries, gallery)
        distance = gap
        if self.distance == "cosine":
            gap = torch.where(gap < _MINIMUM_COSINE_GAP, 0.0, gap).clamp_(max=2.0)
            undirected = (self.query_norms[query_rows] == 0)[:, None] | (
                self.gallery_norms[gallery_rows] == 0
            )
            gap = torch.where(undirected, 2**0.5, gap)
            distance = torch.where(undirected, 1.0, gap.square() / 2)
        return Gaps(gap, distance.to(self.bound_dtype))


def _direct_(x: Tensor, y: Tensor) -> Tensor:
    """|x - y| (n, m) of (n, 1, D) and (n, m, D), every pair summed in one order; overwrites `y`."""
    if y.device.type == "cpu":
        norms: Tensor = torch.linalg.vector_norm(y.sub_(x), dim=2)
        return norms
    # elsewhere a reduction may be split by the number of rows, but cdist without a product takes pair by pair
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")[:, 0]


def _norms(name: str, x: Tensor, chunk: int) -> Tensor:
    wide = wide_dtype(x.device)
    origin = torch.zeros(1, 1, x.shape[1], dtype=wide, device=x.device)
    norms = torch.zeros(len(x), dtype=wide, device=x.device)
    # one buffer for all chunks: memory taken and given back between small results scatters over the heap
    buffer = torch.empty(1, min(len(x), max(1, chunk)), x.shape[1], dtype=wide, device=x.device)
    for start in range(0, len(x), max(1, chunk)):
        part = x[start : start + max(1, chunk)]
        norms[start : start + len(part)] = _direct_(origin, buffer[:, : len(part)].copy_(part))[0]
    bad = ~torch.isfinite(norms.square())
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{name} must be finite: row {row} holds NaN, infinity or values too large to be squared "
            f"({int(bad.sum())} such rows of {len(x)})"
        )
    return norms


def exact_smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row of `values` (n, m), ties by column: values and columns (n, k), ascending.

    `torch.topk` picks any of the equal values at its boundary; here those with the lowest column stay.
    """
    limit = values.topk(k, dim=1, largest=False).values.amax(1, keepdim=True)
    below, equal = values < limit, values == limit
    room = k - below.sum(1, keepdim=True)
    kept = below | (equal & (equal.cumsum(1) <= room))
    columns = kept.nonzero()[:, 1].view(len(values), k)
    ordered, order = values.gather(1, columns).sort(dim=1, stable=True)
    return ordered, columns.gather(1, order)


def first_equal_rows(x: Tensor, *, chunk: int) -> tuple[Tensor, Tensor]:
    """Distinct rows of `x` (N, D): the first row of each (U,), and for every row its place among them (N,).

    Rows are grouped by a hash of their bits and then compared; rows that only share the hash stay apart.
    """
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (x.shape[1],), generator=generator).to(x.device) | 1
    hashes = torch.cat(
        [(part.contiguous().view(words).long() * factors).sum(1) for part in torch.split(x, chunk)]
    )
    values, group = torch.unique(hashes, return_inverse=True)
    rows = torch.arange(len(x), device=x.device)
    first = torch.full_like(values, len(x)).scatter_reduce_(0, group, rows, "amin")[group]
    equal = [(x[part] == x[first[part]]).all(1) for part in torch.split(rows, chunk)]
    first = torch.where(torch.cat(equal), first, rows)
    distinct, place = torch.unique(first, return_inverse=True)
    return distinct, place
