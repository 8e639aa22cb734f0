"""How far a mean over queries could be chance: bootstrap intervals by label; docs/uncertainty.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metricli.reports import OVERALL

__all__ = ["Paired", "Resampled", "bootstrap_means", "intervals", "paired_intervals"]

_CHUNK = 2**20  # labels drawn at a time
_ROUNDING = 1e-12  # a difference of means below this share of the values is rounding

Outcome = TypeVar("Outcome")


class Resampled(NamedTuple):
    """Means of some groups of queries in every sample."""

    metrics: list[str]
    groups: NDArray[np.int64]
    """(g,) 0 for all queries, c + 1 for those of code c."""
    means: NDArray[np.float64]
    """(g, M, S) for M metrics and S samples; finite."""


class Paired(NamedTuple):
    """The interval of a difference, and how often its sign is another one: see `paired_intervals`."""

    low: float
    high: float
    p: float


def bootstrap_means(
    per_query: Mapping[str, Tensor],
    labels: Tensor,
    *,
    codes: Tensor | None = None,
    num_groups: int = 0,
    samples: int = 1000,
    seed: int = 0,
) -> Iterator[Resampled]:
    """Means over the queries of labels drawn with replacement, as many as there are: the cluster bootstrap.

    Images of a label are not independent, so whole labels are drawn (Field and Welsh, Bootstrapping clustered
    data, 2007). A sample's mean is the sum of the values of the drawn labels over the number of their judged
    queries. A category draws its own labels, as if it had been evaluated alone. Only labels with a judged
    query are drawn; a group with fewer than two of them is not given. The draws follow from `seed`, those of
    a metric depend on nothing but which queries it judged, those of all queries on no category.

    Args:
        per_query: (Q,) values by metric; NaN for a query that is not judged.
        labels: (Q,) int64.
        codes: (Q,) int64 in [-1, num_groups - 1], -1 for a query of no category.
        num_groups: how many categories there are.
        samples: S, how often labels are drawn.
        seed: of the draws, not negative.

    Raises:
        ValueError: a wrong shape, a code that is none, no sample, or a negative seed.
    """
    if samples < 1 or seed < 0:
        raise ValueError(f"samples must be at least 1 and seed not negative, got {samples!r} and {seed!r}")
    of_label = labels.cpu().numpy()
    for metric, tensor in per_query.items():
        if tensor.shape != labels.shape:
            raise ValueError(f"{metric} must have shape {tuple(labels.shape)}, got {tuple(tensor.shape)}")
    of_group = np.full(len(of_label), -1) if codes is None else codes.cpu().numpy()
    if of_group.shape != of_label.shape:
        raise ValueError(f"codes must have shape {of_label.shape}, got {of_group.shape}")
    if len(of_group) and not -1 <= of_group.min() <= of_group.max() < num_groups:
        raise ValueError(f"codes must lie in [-1, {num_groups - 1}], the places of {num_groups} groups")
    return _bootstrapped(per_query, of_label, of_group, num_groups, samples, seed)


def _bootstrapped(
    per_query: Mapping[str, Tensor],
    of_label: NDArray[np.int64],
    of_group: NDArray[np.int64],
    num_groups: int,
    samples: int,
    seed: int,
) -> Iterator[Resampled]:
    _, of_label = np.unique(of_label, return_inverse=True)
    num_labels = int(of_label.max(initial=-1)) + 1
    for metrics, judged, values in _judged_alike(per_query):
        rng = np.random.default_rng(seed)
        own, group = of_label[judged], of_group[judged]
        clusters, cell = np.unique(own, return_inverse=True)
        everything = _totals(values, cell, len(clusters))
        for _, means in _resampled_groups(everything, np.array([len(clusters)]), samples, rng):
            yield Resampled(metrics, np.zeros(1, dtype=np.int64), means)
        inside = group >= 0
        pairs, cell = np.unique(group[inside] * num_labels + own[inside], return_inverse=True)
        sizes = np.bincount(pairs // max(1, num_labels), minlength=num_groups)
        grouped = _totals(values[:, inside], cell, len(pairs))
        for groups, means in _resampled_groups(grouped, sizes, samples, rng):
            yield Resampled(metrics, groups + 1, means)


def _judged_alike(
    per_query: Mapping[str, Tensor],
) -> Iterator[tuple[list[str], NDArray[np.bool_], NDArray[np.float64]]]:
    """Metrics that judge the same queries; these (Q,); their values and a row of ones (M + 1, judged)."""
    found: list[tuple[list[str], NDArray[np.bool_], list[NDArray[np.float64]]]] = []
    for metric, tensor in per_query.items():
        values = tensor.detach().cpu().double().numpy()
        judged = ~np.isnan(values)
        for metrics, same, columns in found:
            if np.array_equal(same, judged):
                metrics.append(metric)
                columns.append(values[judged])
                break
        else:
            found.append(([metric], judged, [values[judged]]))
    for metrics, judged, columns in found:
        yield metrics, judged, np.stack([*columns, np.ones(len(columns[0]))])


def _totals(values: NDArray[np.float64], cell: NDArray[np.int64], cells: int) -> NDArray[np.float64]:
    """Sums (cells, W) of `values` (W, n) over the queries of each cell."""
    return np.stack([np.bincount(cell, weights=row, minlength=cells) for row in values], axis=1)


def _resampled_groups(
    totals: NDArray[np.float64], sizes: NDArray[np.int64], samples: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Groups (g,) and their means (g, M, S); group i has the next `sizes[i]` rows of `totals` (L, M + 1).

    Groups of one size are drawn together, so that thousands of small ones cost no loop over them.
    """
    starts = sizes.cumsum() - sizes
    for size in np.unique(sizes[sizes >= 2]).tolist():
        alike = np.flatnonzero(sizes == size)
        at_once = max(1, _CHUNK // (samples * max(size, totals.shape[1])))
        for first in range(0, len(alike), at_once):
            groups = alike[first : first + at_once]
            sums = _resampled(totals[starts[groups][:, None] + np.arange(size)], samples, rng)
            yield groups, sums[:, :-1] / sums[:, -1:]


def _resampled(totals: NDArray[np.float64], samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Sums (g, W, S) over labels drawn from each group of `totals` (g, size, W).

    The draws come group by group and sample by sample whatever the chunks: only one group is ever split.
    """
    count, size, width = totals.shape
    sums = np.empty((count, width, samples))
    step = max(1, _CHUNK // (count * size)) if count == 1 else samples
    for start in range(0, samples, step):
        part = min(step, samples - start)
        drawn = rng.integers(size, size=(count * part, size))
        drawn += np.arange(0, drawn.size, size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(count, part, size)
        sums[:, :, start : start + part] = totals.swapaxes(1, 2) @ times.swapaxes(1, 2).astype(np.float64)
    return sums


def intervals(
    per_query: Mapping[str, Tensor],
    labels: Tensor,
    *,
    codes: Tensor | None = None,
    names: Sequence[str] = (),
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, tuple[float, float]]]:
    """(low, high) of each mean, shaped as `summarize`: OVERALL first, then each of `names`, sorted.

    The percentile interval of `bootstrap_means` (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13); `codes` (Q,) index `names`. Fewer than two labels with a judged query: (NaN, NaN).

    Raises:
        ValueError: see `bootstrap_means`; or a confidence outside (0, 1), a category called OVERALL.
    """
    sides = _sides(confidence)

    def judge(means: NDArray[np.float64], _metrics: list[str]) -> list[list[tuple[float, float]]]:
        low, high = np.quantile(means, sides, axis=2)
        return [list(zip(*row, strict=True)) for row in zip(low.tolist(), high.tolist(), strict=True)]

    blocks = bootstrap_means(
        per_query, labels, codes=codes, num_groups=len(names), samples=samples, seed=seed
    )
    return _tabled(blocks, list(per_query), names, judge, (torch.nan, torch.nan))


def paired_intervals(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    labels: Tensor,
    *,
    codes: Tensor | None = None,
    names: Sequence[str] = (),
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Paired]]:
    """Intervals of the mean of b - a for two evaluations of the same queries, drawn together.

    For the metrics of both, over the queries judged in both, shaped and drawn as in `intervals`. What makes a
    label hard is hard for both and cancels, so these are narrower than two intervals side by side. `p` is the
    two-sided bootstrap p-value of "no difference" by inverting the interval: twice the share of samples
    without the commoner sign, (1 + samples at or beyond 0) / (1 + samples), at most 1 (Davison and Hinkley,
    Bootstrap Methods and their Application, 1997, chapter 4).

    Raises:
        ValueError: see `intervals`.
    """
    sides, shared = _sides(confidence), [metric for metric in a if metric in b]
    for metric in shared:
        if a[metric].shape != b[metric].shape:
            raise ValueError(f"{metric} of a and b must have one shape")
    differences = {metric: b[metric].cpu().double() - a[metric].cpu().double() for metric in shared}
    sizes = {
        metric: _ROUNDING
        * max(float(x.cpu().double().nan_to_num().abs().max()) for x in (a[metric], b[metric]))
        for metric in shared
        if len(labels)
    }

    def judge(means: NDArray[np.float64], metrics: list[str]) -> list[list[Paired]]:
        rounding = np.array([sizes[metric] for metric in metrics])[:, None]
        means = np.where(np.abs(means) <= rounding, 0.0, means)
        low, high = np.quantile(means, sides, axis=2)
        rarer = np.minimum((means <= 0).sum(2), (means >= 0).sum(2))
        p = np.minimum(1, 2 * (1 + rarer) / (1 + samples))
        table = np.stack([low, high, p], axis=2).tolist()
        return [[Paired(*entry) for entry in row] for row in table]

    blocks = bootstrap_means(
        differences, labels, codes=codes, num_groups=len(names), samples=samples, seed=seed
    )
    return _tabled(blocks, shared, names, judge, Paired(torch.nan, torch.nan, torch.nan))


def _sides(confidence: float) -> list[float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}")
    return [(1 - confidence) / 2, (1 + confidence) / 2]


def _tabled(
    blocks: Iterator[Resampled],
    metrics: Sequence[str],
    names: Sequence[str],
    judge: Callable[[NDArray[np.float64], list[str]], list[list[Outcome]]],
    unknown: Outcome,
) -> dict[str, dict[str, Outcome]]:
    if OVERALL in names:
        raise ValueError(f"a category may not be called {OVERALL!r}")
    table = {name: dict.fromkeys(metrics, unknown) for name in (OVERALL, *sorted(names))}
    rows = [table[OVERALL], *(table[name] for name in names)]
    for block in blocks:
        for group, outcomes in zip(block.groups.tolist(), judge(block.means, block.metrics), strict=True):
            rows[group].update(zip(block.metrics, outcomes, strict=True))
    return table
