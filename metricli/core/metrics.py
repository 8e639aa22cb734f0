"""Retrieval metrics of a search result, for each query and averaged; worked out in docs/metrics.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from metricli.core.results import SearchResult
from metricli.reports import OVERALL, Metrics

__all__ = ["clipped", "required_k", "retrieval_metrics", "summarize"]

_CHUNK = 2**20  # entries of the hit matrix judged at a time


def clipped(ks: Iterable[int], gallery_size: int) -> list[int]:
    """The requested k above `gallery_size`, the most items a query can retrieve: sorted, each once.

    Such a k is judged on what there is; the metric's name keeps the requested k.
    """
    return sorted({k for k in ks if k > gallery_size})


def required_k(
    num_relevant: Tensor,
    *,
    cmc: Sequence[int] = (),
    precision: Sequence[int] = (),
    precision_capped: Sequence[int] = (),
    map: Sequence[int] = (),
    map_hits: Sequence[int] = (),
    map_r: bool = False,
) -> int:
    """How deep a search these metrics need: the largest k, or for map@r the largest of `num_relevant` (Q,).

    Raises:
        ValueError: a k below 1.
    """
    ks = [*cmc, *precision, *precision_capped, *map, *map_hits]
    if any(k < 1 for k in ks):
        raise ValueError(f"k must be at least 1, got {min(ks)!r}")
    most_relevant = int(num_relevant.max()) if map_r and len(num_relevant) else 0
    return max([1, most_relevant, *ks])


def retrieval_metrics(
    result: SearchResult,
    query_labels: Tensor,
    gallery_labels: Tensor,
    num_relevant: Tensor,
    *,
    cmc: Sequence[int] = (),
    precision: Sequence[int] = (),
    precision_capped: Sequence[int] = (),
    map: Sequence[int] = (),
    map_hits: Sequence[int] = (),
    map_r: bool = False,
) -> dict[str, Tensor]:
    """Metrics of each query (Q,) float64, by name such as "cmc@1" or "map@r"; NaN where `num_relevant` is 0.

    Takes labels (Q,) and (G,), and `num_relevant` (Q,) of `count_relevant`. map@r is that of Musgrave,
    Belongie and Lim, A Metric Learning Reality Check, 2020.

    Raises:
        ValueError: a k below 1, or a result with fewer columns than `required_k`.
    """
    flags = {
        "cmc": cmc,
        "precision": precision,
        "precision_capped": precision_capped,
        "map": map,
        "map_hits": map_hits,
    }
    needed = required_k(num_relevant, **flags, map_r=map_r)
    if result.indices.shape[1] < needed:
        raise ValueError(f"these metrics need a search with k={needed}, got k={result.indices.shape[1]}")
    wanted = [(name, k) for name, ks in flags.items() for k in ks] + ([("map", 0)] if map_r else [])
    num = len(query_labels)
    values = {_key(*w): torch.empty(num, dtype=torch.float64, device=query_labels.device) for w in wanted}
    for rows in torch.split(torch.arange(num, device=query_labels.device), max(1, _CHUNK // needed)):
        judged = _Judged(
            result.indices[rows, :needed], query_labels[rows], gallery_labels, num_relevant[rows]
        )
        for name, k in wanted:
            values[_key(name, k)][rows] = judged.value(name, k)
    unmatched = num_relevant == 0
    return {name: value.masked_fill_(unmatched, torch.nan) for name, value in values.items()}


def _key(name: str, k: int) -> str:
    return f"{name}@{k or 'r'}"


class _Judged:
    """Running sums over the ranks of a few queries; k = 0 stands for each query's own n."""

    def __init__(
        self, indices: Tensor, query_labels: Tensor, gallery_labels: Tensor, num_relevant: Tensor
    ) -> None:
        filled = indices >= 0
        hits = filled.clone()
        if len(gallery_labels):
            hits &= gallery_labels[indices.clamp_min(0)] == query_labels[:, None]
        self.num_relevant = num_relevant
        self.retrieved = filled.sum(1)
        self.hits = hits.cumsum(1)
        ranks = torch.arange(1, indices.shape[1] + 1, device=indices.device, dtype=torch.float64)
        self.precisions = self.hits.div(ranks).mul_(hits).cumsum_(1)

    def value(self, name: str, k: int) -> Tensor:
        n = self.num_relevant
        depth = n if k == 0 else torch.full_like(n, k)
        column = (depth - 1).clamp_min(0)[:, None]
        hits = self.hits.gather(1, column)[:, 0].double()
        precisions = self.precisions.gather(1, column)[:, 0]
        if name == "cmc":
            return (hits > 0).double()
        if name == "precision":
            return hits / torch.minimum(depth, self.retrieved).clamp_min(1)
        if name == "precision_capped":
            return hits / torch.minimum(depth, n).clamp_min(1)
        if name == "map_hits":
            return precisions / hits.clamp_min(1)
        return precisions / torch.minimum(depth, n).clamp_min(1)


def summarize(
    per_query: Mapping[str, Tensor], codes: Tensor | None = None, names: Sequence[str] = ()
) -> Metrics:
    """Means over the queries that have a value: OVERALL first, then each of `names`, sorted.

    `per_query` maps names to (Q,) values, NaN for a query without a match; `codes` (Q,) int64 index `names`,
    -1 for a query of no category. A category with no judged query gives NaN.

    Raises:
        ValueError: a code outside `names`, a wrong shape, or a category called OVERALL.
    """
    if OVERALL in names:
        raise ValueError(f"a category may not be called {OVERALL!r}")
    metrics: Metrics = {OVERALL: {}, **{name: {} for name in sorted(names)}}
    groups = None if codes is None else codes.cpu() + 1
    if groups is not None and bool(((groups < 0) | (groups > len(names))).any()):
        raise ValueError(f"codes must lie in [-1, {len(names) - 1}], the places of the {len(names)} names")
    for metric, tensor in per_query.items():
        values = tensor.cpu().double()
        if groups is not None and groups.shape != values.shape:
            raise ValueError(f"codes must have shape {tuple(values.shape)}, got {tuple(groups.shape)}")
        metrics[OVERALL][metric] = float(values.nanmean())
        if groups is None:
            means = torch.full((len(names),), torch.nan, dtype=torch.float64)
        else:
            judged = ~values.isnan()
            sums = torch.bincount(groups[judged], weights=values[judged], minlength=len(names) + 1)
            means = (sums / torch.bincount(groups[judged], minlength=len(names) + 1))[1:]
        for name, mean in zip(names, means.tolist(), strict=True):
            metrics[name][metric] = mean
    return metrics
