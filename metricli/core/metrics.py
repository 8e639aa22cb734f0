"""Retrieval metrics of a search result, for each query and averaged; worked out in docs/metrics.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metricli.core.catalogue import METRICS, Family, printed
from metricli.core.results import SearchResult
from metricli.reports import OVERALL, Metrics

__all__ = [
    "Asked",
    "asked_for",
    "clipped",
    "cutoffs",
    "merge",
    "required_k",
    "retrieval_metrics",
    "summarize",
    "zero_unmatched",
]

_CHUNK = 2**18  # entries of the hit matrix judged at a time


@dataclass(frozen=True)
class Asked:
    """One value that is asked for: metric `key`, `at` a k or a share (0 for a metric that takes nothing)."""

    key: str
    at: Any
    name: str


def asked_for(asked: Mapping[str, Any], family: Family) -> list[Asked]:
    """What `asked`, such as {"cmc": [1, 5], "map_r": True}, wants of a family, in the catalogue's order.

    Raises:
        TypeError: a key that is no metric of any family.
    """
    if unknown := [key for key in asked if key not in METRICS]:
        raise TypeError(f"{unknown[0]!r} is no metric; there are {', '.join(METRICS)}")
    found = []
    for metric in METRICS.values():
        if metric.family == family and asked.get(metric.key):
            places = asked[metric.key] if metric.takes else [None]
            found += [Asked(metric.key, at or 0, printed(metric.key, at)) for at in places]
    return found


def cutoffs(asked: Mapping[str, Any]) -> list[int]:
    """Every k that `asked` names, for whichever metric: sorted, each once.

    Raises:
        TypeError: a key that is no metric.
        ValueError: a k below 1.
    """
    wanted = asked_for(asked, "ranking") + asked_for(asked, "health")
    ks = sorted({each.at for each in wanted if METRICS[each.key].takes == "k"})
    if ks and ks[0] < 1:
        raise ValueError(f"k must be at least 1, got {ks[0]!r}")
    return ks


def clipped(ks: Iterable[int], gallery_size: int) -> list[int]:
    """The requested k above `gallery_size`, the most items a query can retrieve: sorted, each once.

    Such a k is judged on what there is; the metric's name keeps the requested k.
    """
    return sorted({k for k in ks if k > gallery_size})


def required_k(num_relevant: Tensor, **asked: Any) -> int:
    """How many columns of a search these metrics need: the largest k of `asked`, at least 1.

    map@r and r_precision need the largest of `num_relevant` (Q,). mrr and minp need no depth: where the
    columns do not tell, they come from ranks.

    Raises:
        TypeError: a key that is no metric.
        ValueError: a k below 1.
    """
    at_n = any(asked.get(key) for key in _AT_N) and len(num_relevant) > 0
    return max([1, int(num_relevant.max()) if at_n else 0, *cutoffs(asked)])


def retrieval_metrics(
    result: SearchResult,
    query_labels: Tensor,
    gallery_labels: Tensor,
    num_relevant: Tensor,
    *,
    first: Tensor | None = None,
    last: Tensor | None = None,
    retrievable: Tensor | None = None,
    **asked: Any,
) -> dict[str, Tensor]:
    """The ranking metrics of each query (Q,) float64, by printed name; NaN where `num_relevant` is 0.

    Takes labels (Q,) and (G,), and `num_relevant` (Q,) of `count_relevant`. Keys of the other families in
    `asked`, such as {"cmc": [1, 5], "map_r": True, "eer": True}, are passed over. Sources: docs/metrics.md.

    `first` and `last` (Q,) int64 are ranks, from 1, of the nearest and the farthest relevant item in the
    order of distance. mrr and minp use them where the columns do not hold the item and the result is not
    `cut`; reordering the columns does not move what lies behind them. `retrievable` (Q,) int64 are the items
    that a query can retrieve, where a search may have missed some; by default those in its columns.

    Raises:
        TypeError: a key that is no metric.
        ValueError: a k below 1, a result with fewer columns than `required_k` that is not `cut`, or ranks
            that are needed and missing, or that lie within columns which do not hold the item.
    """
    wanted = asked_for(asked, "ranking")
    needed = required_k(num_relevant, **{each.key: asked[each.key] for each in wanted})
    width = result.indices.shape[1]
    most = needed if retrievable is None or not len(retrievable) else int(retrievable.max())
    if width < min(needed, most) and not result.cut:
        raise ValueError(f"these metrics need a search with k={needed}, got k={width}")
    behind = {"mrr": first, "minp": last}
    used = width if any(each.key in behind for each in wanted) else min(width, needed)
    num, device = len(query_labels), query_labels.device
    values = {each.name: torch.empty(num, dtype=torch.float64, device=device) for each in wanted}
    chunk = max(1, _CHUNK // max(1, used))
    for rows in torch.split(torch.arange(num, device=device), chunk) if num else ():
        judged = _Judged(
            result.indices[rows, :used], query_labels[rows], gallery_labels, num_relevant[rows], result.cut
        )
        if retrievable is not None and not result.cut:
            judged.retrieved = retrievable[rows]
        for each in wanted:
            if each.key in behind:
                ranks = behind[each.key]
                value = judged.over_rank(each.key, None if ranks is None else ranks[rows])
            elif each.key in _AT_N:
                value = judged.value(_AT_N[each.key], judged.num_relevant)
            else:
                value = judged.value(each.key, torch.full_like(judged.num_relevant, each.at))
            values[each.name][rows] = value
    unmatched = num_relevant == 0
    return {name: value.masked_fill_(unmatched, torch.nan) for name, value in values.items()}


_AT_N = {"map_r": "map", "r_precision": "recall"}
"""Metrics that are another one at each query's own n."""


class _Judged:
    """Running sums over the ranks of a few queries; column k of each (n, K + 1) is the sum of the first k."""

    def __init__(
        self,
        indices: Tensor,
        query_labels: Tensor,
        gallery_labels: Tensor,
        num_relevant: Tensor,
        cut: bool,
    ) -> None:
        filled = indices >= 0
        self.relevant = filled.clone()
        if len(gallery_labels):
            self.relevant &= gallery_labels[indices.clamp_min(0)] == query_labels[:, None]
        self.num_relevant = num_relevant
        self.cut = cut
        self.retrieved = filled.sum(1)
        self.ranks = torch.arange(1, indices.shape[1] + 1, device=indices.device, dtype=torch.float64)
        self.hits = _running(self.relevant.long())

    @cached_property
    def precisions(self) -> Tensor:
        """Sums of the precisions at the hits."""
        return _running(self.hits[:, 1:].div(self.ranks).mul_(self.relevant))

    @cached_property
    def gains(self) -> Tensor:
        """DCG."""
        return _running(self.relevant / (self.ranks + 1).log2())

    def value(self, key: str, depth: Tensor) -> Tensor:
        """A metric at each query's `depth` (n,)."""
        n, seen = self.num_relevant, torch.minimum(depth, self.retrieved)
        hits = self._at(self.hits, depth).double()
        if key == "cmc":
            return (hits > 0).double()
        if key == "precision":
            return hits / seen.clamp_min(1)
        if key == "precision_capped":
            return hits / torch.minimum(seen, n).clamp_min(1)
        if key == "recall":
            return hits / n.clamp_min(1)
        if key == "map_hits":
            return self._at(self.precisions, depth) / hits.clamp_min(1)
        most = torch.minimum(depth, n)
        if key == "ndcg":
            ranks = torch.arange(1, int(most.amax()) + 1, device=n.device, dtype=torch.float64)
            ideal = _running((1 / (ranks + 1).log2())[None])[0]
            return self._at(self.gains, depth) / ideal[most].clamp_min(1)  # 1 is the least of an n above 0
        assert key == "map", key
        return self._at(self.precisions, depth) / most.clamp_min(1)

    def over_rank(self, key: str, behind: Tensor | None) -> Tensor:
        """mrr: 1 / rank of the first relevant item; minp: n / rank of the last one."""
        wanted = torch.ones_like(self.num_relevant) if key == "mrr" else self.num_relevant
        ranks = (self.hits < wanted[:, None]).sum(1).double()
        missing = (self.hits[:, -1] < wanted) & (self.num_relevant > 0)
        if self.cut:  # never retrieved
            ranks = ranks.masked_fill(missing, torch.inf)
        elif bool(missing.any()):
            name, width = ("first" if key == "mrr" else "last"), self.relevant.shape[1]
            if behind is None:
                raise ValueError(f"{key} needs the ranks `{name}`: the search's {width} columns do not tell")
            if bool((behind[missing] <= width).any()):
                raise ValueError(f"`{name}` lies within {width} columns that do not hold the item")
            ranks = torch.where(missing, behind, ranks)
        return wanted / ranks.clamp_min(1)

    @staticmethod
    def _at(sums: Tensor, depth: Tensor) -> Tensor:
        return sums.gather(1, depth.clamp_max(sums.shape[1] - 1)[:, None])[:, 0]


def _running(values: Tensor) -> Tensor:
    """Sums (n, K + 1) of the first 0, 1, ..., K columns of `values` (n, K)."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))


def zero_unmatched(per_query: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of `retrieval_metrics` with 0, not NaN, for a query without a match: it counts as failed."""
    return {name: values.nan_to_num(nan=0.0) for name, values in per_query.items()}


def summarize(
    per_query: Mapping[str, Tensor], codes: Tensor | None = None, names: Sequence[str] = ()
) -> Metrics:
    """Means over the queries that have a value: OVERALL first, then each of `names`, sorted.

    `per_query` maps names to (Q,) values, NaN for a query without a match; `codes` (Q,) int64 index `names`,
    -1 for a query of no category. A category with no judged query gives NaN.

    Raises:
        ValueError: a code outside `names`, a wrong shape, or a category called OVERALL.
    """
    groups = None if codes is None else codes.cpu() + 1
    if groups is not None and bool(((groups < 0) | (groups > len(names))).any()):
        raise ValueError(f"codes must lie in [-1, {len(names) - 1}], the places of the {len(names)} names")
    means: dict[str, Tensor] = {}
    for metric, tensor in per_query.items():
        values = tensor.cpu().double()
        if groups is not None and groups.shape != values.shape:
            raise ValueError(f"codes must have shape {tuple(values.shape)}, got {tuple(groups.shape)}")
        row = torch.full((1 + len(names),), torch.nan, dtype=torch.float64)
        if groups is not None:
            judged = ~values.isnan()
            sums = torch.bincount(groups[judged], weights=values[judged], minlength=len(row))
            row = sums / torch.bincount(groups[judged], minlength=len(row))
        row[0] = values.nanmean()
        means[metric] = row
    return merge({}, means, names)


def merge(metrics: Metrics, values: Mapping[str, Tensor], names: Sequence[str] = ()) -> Metrics:
    """`metrics` with further `values`: for each name (1 + C,), OVERALL's and the C categories' of `names`.

    Raises:
        ValueError: a wrong shape, or a category called OVERALL.
    """
    if OVERALL in names:
        raise ValueError(f"a category may not be called {OVERALL!r}")
    order = [OVERALL, *sorted(names)]
    merged: Metrics = {name: dict(metrics.get(name, {})) for name in dict.fromkeys([*order, *metrics])}
    for metric, row in values.items():
        if row.shape != (1 + len(names),):
            raise ValueError(f"{metric} must have shape ({1 + len(names)},), got {tuple(row.shape)}")
        for name, value in zip((OVERALL, *names), row.tolist(), strict=True):
            merged[name][metric] = value
    return merged
