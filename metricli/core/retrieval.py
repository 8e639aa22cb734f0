"""Exact nearest-neighbour search within a memory budget, and how many items each query could find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metricli.core.distances import Distance
from metricli.core.exclusion import NOTHING, Exclusion, count_matches, joint_codes
from metricli.core.ranking import Space, exact_smallest, first_equal_rows, wide_dtype
from metricli.core.results import SearchResult

__all__ = ["SearchResult", "count_relevant", "search"]


@torch.no_grad()
def search(
    queries: Tensor,
    gallery: Tensor,
    *,
    k: int,
    distance: Distance = "cosine",
    exclude: Exclusion = NOTHING,
    budget_mb: float = 64,
    on_progress: Callable[[int], None] | None = None,
) -> SearchResult:
    """The `k` gallery items nearest to each query, exactly: by distance, then gallery row.

    The result is the same to the bit for every `budget_mb`. Distances are taken from direct differences in
    float64, so equal embeddings are at distance 0 and tie; cosine is 1 - cos, and 1 where either is zero.

    Args:
        queries: (Q, D); half types are computed as float32.
        gallery: (G, D), of the same type and device.
        k: columns of the result; those beyond what a query can retrieve are -1.
        distance: "cosine" or "euclidean".
        exclude: the pairs that may not be retrieved.
        budget_mb: working memory beside inputs and result; no Q x G matrix is ever held.
        on_progress: called with the number of queries just finished.

    Raises:
        ValueError: wrong shapes, types, `k`, `distance` or budget, or an embedding that is not finite.
    """
    _check(queries, gallery, k, distance, budget_mb)
    exclude.check(len(queries), len(gallery))
    plan = _Plan.of(queries, gallery, min(k, len(gallery)), budget_mb)
    space = Space.of(queries, gallery, distance, chunk=plan.rows)
    result = SearchResult(
        torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device),
        torch.full((len(queries), k), torch.inf, dtype=space.bound_dtype, device=queries.device),
    )
    if plan.k == 0 or len(queries) == 0:
        return result
    norms = _bound_norms(space, plan)
    distinct: tuple[Tensor, Tensor] | None = None
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, len(queries), plan.queries):
            rows = torch.arange(start, min(start + plan.queries, len(queries)), device=queries.device)
            found, distances, unsure, reach = _rank_block(space, exclude, plan, norms, rows)
            if len(unsure):
                distinct = distinct or first_equal_rows(gallery, chunk=plan.rows)
                for part in torch.split(unsure, plan.resolved):
                    found[part], distances[part] = _resolve(
                        space, exclude, plan, distinct, rows[part], reach[part]
                    )
            result.indices[rows, : plan.k] = found.masked_fill_(distances.isinf(), -1)
            result.distances[rows, : plan.k] = distances
            if on_progress is not None:
                on_progress(len(rows))
    return result


def _check(queries: Tensor, gallery: Tensor, k: int, distance: str, budget_mb: float) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries and gallery must have shapes (Q, D) and (G, D), got {tuple(queries.shape)} and "
            f"{tuple(gallery.shape)}"
        )
    if not queries.is_floating_point() or queries.dtype != gallery.dtype:
        raise ValueError(
            f"queries and gallery must have one floating type, got {queries.dtype} and {gallery.dtype}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k!r}")
    if distance not in ("cosine", "euclidean"):
        raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
    if not budget_mb > 0:
        raise ValueError(f"budget_mb must be positive, got {budget_mb!r}")


@dataclass(frozen=True)
class _Plan:
    """Sizes of the blocks; `candidates` leaves room for items whose bound cannot be told from the k-th."""

    k: int
    candidates: int
    queries: int
    gallery: int
    rows: int
    pairs: int
    resolved: int

    @staticmethod
    def of(queries: Tensor, gallery: Tensor, k: int, budget_mb: float) -> _Plan:
        num, dim = gallery.shape
        size = 8 if queries.dtype == torch.float64 else 4
        share = budget_mb * 2**20 / 4
        candidates = min(num, k + 8 + k // 16)
        side = (share / size / 4) ** 0.5
        wide = int(min(max(4 * side, 4 * candidates), share / (2 * size * dim + 1)))
        wide = max(1, min(num, wide))
        tall = int(min(share / (size * wide), share / (64 * candidates + 1)))
        return _Plan(
            k=k,
            candidates=candidates,
            queries=max(1, min(len(queries), tall)),
            gallery=wide,
            rows=max(1, int(share / (32 * dim + 1))),
            pairs=max(1, int(share / (8 * dim + 1))),
            resolved=max(1, int(share / (48 * num + 1))),
        )


def _bound_norms(space: Space, plan: _Plan) -> Tensor:
    """|row|² of each gallery row after centring (G,), less what the product may add by rounding."""
    parts = []
    for start in range(0, len(space.gallery), plan.rows):
        rows = space.bound_rows("gallery", slice(start, start + plan.rows))
        parts.append(_squares(rows) * (1 - space.gamma))
    return torch.cat(parts).to(space.bound_dtype)


def _squares(rows: Tensor) -> Tensor:
    return rows.to(wide_dtype(rows.device)).square().sum(1)


def _rank_block(
    space: Space, excluded: Exclusion, plan: _Plan, norms: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices and distances (n, k), the places not proven to be right, and the gap to look within (n,)."""
    block = slice(int(rows[0]), int(rows[-1]) + 1)
    x = space.bound_rows("queries", block)
    bounds, columns = _candidates(space, excluded, plan, norms, block, x)
    columns, order = columns.sort(dim=1)  # ties go to the lower gallery row: the next sort is stable
    bounds = bounds.gather(1, order)
    measured = space.measure(rows, columns, chunk=plan.pairs)
    distances = measured.distance.masked_fill(bounds.isinf(), torch.inf)
    distances, order = distances.sort(dim=1, stable=True)
    gaps = measured.gap.gather(1, order)[:, : plan.k]
    found = columns.gather(1, order)[:, : plan.k]
    reach = space.widest_tie(gaps.amax(1))
    last = bounds.amax(1)  # infinite where every item that is allowed is a candidate
    unseen = space.lower_gap(last.to(gaps.dtype) + _squares(x) * (1 - space.gamma))
    proven = last.isinf() | (unseen > reach)
    if plan.candidates == len(space.gallery):
        proven[:] = True
    return found, distances[:, : plan.k], (~proven).nonzero()[:, 0], reach


def _candidates(
    space: Space, excluded: Exclusion, plan: _Plan, norms: Tensor, block: slice, x: Tensor
) -> tuple[Tensor, Tensor]:
    """The gallery rows with the lowest bounds (n, candidates), unsorted; any of those that tie at the end."""
    kept = plan.candidates
    values = torch.full((len(x), kept), torch.inf, dtype=x.dtype, device=x.device)
    columns = torch.zeros(len(x), kept, dtype=torch.int64, device=x.device)
    buffer = torch.empty(len(x) * plan.gallery, dtype=x.dtype, device=x.device)
    for start in range(0, len(space.gallery), plan.gallery):
        part = slice(start, min(start + plan.gallery, len(space.gallery)))
        y = space.bound_rows("gallery", part)
        scores = torch.addmm(norms[part], x, y.T, alpha=-2, out=buffer[: len(x) * len(y)].view(len(x), -1))
        excluded.apply_(scores, block, part)
        new_values, new_columns = _better(scores, values.amax(1, keepdim=True), kept)
        values, order = torch.cat([values, new_values], 1).topk(kept, dim=1, largest=False, sorted=False)
        columns = torch.cat([columns, new_columns + start], 1).gather(1, order)
    return values, columns


def _better(scores: Tensor, limit: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Values and columns of scores that may be among each row's `kept` lowest, if not above `limit` (n, 1).

    The kept-th lowest minimum of disjoint groups is no lower than the kept-th lowest score, so few scores
    pass it: listing those is cheaper than topk over all, and hardly any passes once blocks have been seen.
    """
    num, total = scores.shape
    groups = 2 * kept
    if total >= 4 * groups:
        minima = scores[:, : total // groups * groups].view(num, -1, groups).amin(1)
        limit = torch.minimum(limit, minima.topk(kept, dim=1, largest=False).values[:, -1:])
    rows, found = (scores <= limit).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=num)
    width = int(counts.max())
    if width >= min(4 * kept, total):
        lowest = scores.topk(min(kept, total), dim=1, largest=False, sorted=False)
        return lowest.values, lowest.indices
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    values = torch.full((num, width), torch.inf, dtype=scores.dtype, device=scores.device)
    columns = torch.zeros(values.shape, dtype=torch.int64, device=scores.device)
    values[rows, places] = scores[rows, found]
    columns[rows, places] = found
    return values, columns


def _resolve(
    space: Space,
    excluded: Exclusion,
    plan: _Plan,
    distinct: tuple[Tensor, Tensor],
    rows: Tensor,
    reach: Tensor,
) -> tuple[Tensor, Tensor]:
    """Indices and distances (n, k) for crowded neighbourhoods, from all that may lie within `reach` (n,)."""
    first, place = distinct
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
    excluded.apply_(distances, rows, slice(0, len(space.gallery)))
    values, columns = exact_smallest(distances, plan.k)
    return columns, values


def count_relevant(query_labels: Tensor, gallery_labels: Tensor, exclude: Exclusion = NOTHING) -> Tensor:
    """Gallery items of the query's label that the query may find, (Q,) int64, from labels (Q,) and (G,).

    Labels are grouped and counted, no Q x G matrix is formed.

    Raises:
        ValueError: the codes of `exclude` are of a wrong shape.
    """
    num = len(query_labels)
    exclude.check(num, len(gallery_labels))
    labels = torch.cat([query_labels, gallery_labels])
    groups = exclude.both("groups")
    if groups is not None:
        labels = joint_codes(labels, groups)
    query_labels, gallery_labels = labels[:num], labels[num:]
    ids, sequences = exclude.both("ids"), exclude.both("sequences")
    count = count_matches(query_labels, gallery_labels)
    with_id: Tensor | None = None
    if ids is not None:
        with_id = joint_codes(labels, ids)
        count -= count_matches(with_id[:num], with_id[num:])
    if sequences is not None:
        listed, held = sequences[:num] >= 0, sequences[num:] >= 0
        shared = joint_codes(labels, sequences)
        count -= count_matches(shared[:num], shared[num:][held]) * listed
        if with_id is not None:  # the item itself shares its sequence: it was taken off twice
            twice = joint_codes(with_id, sequences)
            count += count_matches(twice[:num], twice[num:][held]) * listed
    return count
