"""Approximate search: candidates from a faiss index, measured and ordered exactly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metricli.core.distances import Distance
from metricli.core.exclusion import NOTHING, Exclusion
from metricli.core.ranking import Space
from metricli.core.results import SearchResult
from metricli.core.retrieval import check_search, count_relevant

__all__ = ["check_index", "faiss_search"]

_BLOCK = 2**21  # candidates looked up at a time
_CHUNK = 4096  # pairs measured at a time


@torch.no_grad()
def faiss_search(
    queries: Tensor,
    gallery: Tensor,
    *,
    k: int,
    distance: Distance = "cosine",
    exclude: Exclusion = NOTHING,
    index: str = "HNSW32",
    nprobe: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> SearchResult:
    """`search`, but among the candidates that a faiss index proposes: items may be missed.

    The distances and the order of what is found are exact, ties by gallery row. The index is asked for more
    than `k` so that exclusions leave enough, and again, twice as deep each time, for queries left short. It
    holds a float32 copy of the gallery on the CPU; groups of `exclude` have an index each.

    Args:
        queries: (Q, D)
        gallery: (G, D), of the same type and device.
        k: columns of the result; those for which nothing was found are -1.
        distance: "cosine" or "euclidean"; an index over cosine holds rows of norm 1.
        exclude: the pairs that may not be retrieved.
        index: description for `faiss.index_factory`, such as "HNSW32" or "IVF1024,Flat"; trained if need be.
        nprobe: lists that an IVF index visits; None: faiss's own number.
        on_progress: called with the number of queries just finished.

    Raises:
        ValueError: as for `search`; no faiss; an index that faiss cannot build, train or set so.
    """
    check_search(queries, gallery, k, distance, 64)
    exclude.check(len(queries), len(gallery))
    faiss = _faiss()
    space = Space.of(queries, gallery, distance, chunk=_CHUNK)
    result = SearchResult(
        torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device),
        torch.full((len(queries), k), torch.inf, dtype=space.bound_dtype, device=queries.device),
    )
    zeros = [torch.zeros(len(x), dtype=torch.int64, device=x.device) for x in (queries, gallery)]
    allowed = count_relevant(zeros[0], zeros[1], exclude)
    for asking, asked in _groups(exclude, *zeros):
        proposals = _index(faiss, space, asked, index, nprobe) if len(asked) else None
        step = max(1, _BLOCK // max(1, min(len(asked), 2 * k + 64)))
        for rows in torch.split(asking, step):
            if proposals is not None:
                _find(space, exclude, proposals, rows, asked, allowed[rows], result)
            if on_progress is not None:
                on_progress(len(rows))
    return result


def check_index(index: str, dim: int, nprobe: int | None = None) -> None:
    """Refuse a description that faiss cannot make an index of `dim` dimensions from; nothing is trained.

    Raises:
        ValueError: no faiss; a description that it does not know or not for so many dimensions; `nprobe` for
            an index without cells.
    """
    _empty_index(_faiss(), dim, index, nprobe)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ValueError("approximate search needs faiss: pip install 'metricli[faiss]'") from None
    return faiss


def _groups(
    exclude: Exclusion, query_codes: Tensor, gallery_codes: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Queries and gallery rows, ascending, of each group that has queries."""
    if exclude.query_groups is not None and exclude.gallery_groups is not None:
        query_codes, gallery_codes = exclude.query_groups, exclude.gallery_groups
    codes, order = gallery_codes.sort(stable=True)
    values, counts = torch.unique(query_codes, return_counts=True)
    asking = torch.split(query_codes.argsort(stable=True), counts.tolist())
    lows, highs = torch.searchsorted(codes, values), torch.searchsorted(codes, values, right=True)
    for rows, low, high in zip(asking, lows.tolist(), highs.tolist(), strict=True):
        yield rows, order[low:high]


def _empty_index(faiss: Any, dim: int, description: str, nprobe: int | None) -> Any:
    try:
        found = faiss.index_factory(dim, description, faiss.METRIC_L2)
        if nprobe is not None:
            faiss.ParameterSpace().set_index_parameter(found, "nprobe", nprobe)
    except RuntimeError as error:
        raise ValueError(
            f"faiss cannot make the index {description!r} of {dim} dimensions: {_reason(error)}"
        ) from None
    return found


def _reason(error: RuntimeError) -> str:
    """What faiss says, without the place in its sources."""
    return re.sub(r"^Error in .* at \S+:\d+: ", "", str(error).strip().splitlines()[-1])


def _index(faiss: Any, space: Space, rows: Tensor, description: str, nprobe: int | None) -> Any:
    """The index over the gallery `rows` (n,); Euclidean, for cosine too: its rows have norm 1."""
    found = _empty_index(faiss, space.gallery.shape[1], description, nprobe)
    try:
        if not found.is_trained:
            found.train(_vectors(space, "gallery", rows))
        for part in torch.split(rows, 2**16):
            found.add(_vectors(space, "gallery", part))
    except RuntimeError as error:
        raise ValueError(
            f"faiss cannot build the index {description!r} over {len(rows)} rows: {_reason(error)}"
        ) from None
    return found


def _vectors(space: Space, side: str, rows: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows (n, D) as an index takes them: less the centre, whose Euclidean order is the wanted one."""
    return space.bound_rows(side, rows, torch.float32).cpu().numpy()


def _find(
    space: Space,
    exclude: Exclusion,
    proposals: Any,
    rows: Tensor,
    asked: Tensor,
    allowed: Tensor,
    result: SearchResult,
) -> None:
    """Fill the rows (n,) of the result; a query left short is asked for again, twice as deep."""
    k = result.indices.shape[1]
    hidden = int((len(asked) - allowed).max())
    depth = min(len(asked), k + hidden + 8 + k // 16)
    wanted = allowed.clamp_max(k)
    while len(rows):
        short = []
        for part in torch.split(torch.arange(len(rows), device=rows.device), max(1, _BLOCK // depth)):
            indices, distances = _measured(space, exclude, proposals, rows[part], asked, depth, k)
            result.indices[rows[part], : indices.shape[1]] = indices
            result.distances[rows[part], : indices.shape[1]] = distances
            short.append(part[(indices >= 0).sum(1) < wanted[part]])
        if depth == len(asked):
            return
        left = torch.cat(short)
        rows, wanted, depth = rows[left], wanted[left], min(len(asked), 2 * depth)


def _measured(
    space: Space, exclude: Exclusion, proposals: Any, rows: Tensor, asked: Tensor, depth: int, k: int
) -> tuple[Tensor, Tensor]:
    """The best (n, up to k) of `depth` proposals for the queries `rows` (n,)."""
    found = torch.from_numpy(proposals.search(_vectors(space, "queries", rows), depth)[1]).to(rows.device)
    missing = found < 0
    columns = asked[found.clamp_min(0)].masked_fill_(missing, torch.iinfo(torch.int64).max)
    columns, order = columns.sort(dim=1)
    missing = missing.gather(1, order)
    columns = columns.masked_fill(missing, 0)
    distances = space.measure(rows, columns, chunk=_CHUNK).distance
    hidden = exclude.hides(rows, columns) | missing
    distances, order = distances.masked_fill_(hidden, torch.inf).sort(dim=1, stable=True)
    distances = distances[:, :k]
    return columns.gather(1, order)[:, :k].masked_fill_(distances.isinf(), -1), distances
