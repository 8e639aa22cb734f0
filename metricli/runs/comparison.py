"""Two evaluations of the same queries: which is better, by how much, and whether that is noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from metricli.core.bootstrap import Paired, paired_intervals
from metricli.core.catalogue import metric_of
from metricli.core.metrics import summarize
from metricli.errors import DataError, UsageError
from metricli.reports import Comparison, Flips, MetricDifference, Verdict, plain
from metricli.runs.per_query import PerQuery

DIGEST = "rows_digest"
"""The key of a protocol that holds `per_query.rows_digest`."""
METHOD = "method"
"""The key of a protocol that holds what two evaluations may differ in, but for `distance`."""
RANKING = "ask for a ranking metric, such as validation.metrics.cmc=[1]"
"""What to do where no metric has a value for each query."""

Values = dict[str, NDArray[np.float64]]


def compare(
    ours: PerQuery,
    theirs: PerQuery,
    *,
    ours_name: str,
    theirs_name: str,
    confidence: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Ours against theirs, the baseline: differences are ours - theirs; no intervals with 0 samples.

    Raises:
        DataError: other queries or another gallery were judged.
        UsageError: they were judged by other rules, or have no metric in common.
    """
    names = ours_name, theirs_name
    _require_same_queries(ours, theirs, names)
    notes = require_same_rules(ours.protocol, theirs.protocol, names)
    _require_same_rows(ours.protocol, theirs.protocol, names)
    metrics = require_common(ours.values, theirs.values, names)
    notes += _only_in_one(ours, theirs, names)
    mine, other, lost = _judged_in_both(ours, theirs, metrics)
    if lost:
        notes.append(f"{lost} of {len(ours.rows)} queries are judged in one of the two only and left out")
    labels, label_names = pd.factorize(ours.labels, sort=True)
    categories = ours.categories.astype(object)
    categories[categories == ""] = None
    codes, category_names = pd.factorize(categories, sort=True)
    named = [str(name) for name in category_names]
    differences = _differences(mine, other, labels, codes, named, confidence, samples, seed)
    if (by_chance := len(named) * (1 - confidence)) >= 1:
        notes.append(
            f"of {len(named)} categories about {by_chance:.0f} would seem better or worse by chance alone"
        )
    judged = ~np.isnan(mine[metrics[0]])
    return Comparison(
        theirs=theirs_name,
        ours=ours_name,
        queries=int(judged.sum()),
        labels=len(np.unique(labels[judged])),
        confidence=confidence,
        samples=samples,
        differences=differences,
        flips=_flips(mine, other, labels, [str(name) for name in label_names]),
        notes=notes,
    )


def require_common(ours: Iterable[str], theirs: Iterable[str], names: tuple[str, str]) -> list[str]:
    """The metrics that both have.

    Raises:
        UsageError: there are none.
    """
    mine, other = list(ours), list(theirs)
    for side, name in ((mine, names[0]), (other, names[1])):
        if not side:
            raise UsageError(
                f"{name!r} has no metric with a value for each query, and these are compared", hint=RANKING
            )
    common = [metric for metric in mine if metric in other]
    if not common:
        raise UsageError(
            f"{names[0]!r} and {names[1]!r} have no metric in common: {', '.join(mine)}, and "
            f"{', '.join(other)}",
            hint="judge both by the same metrics",
        )
    return common


def _require_same_queries(ours: PerQuery, theirs: PerQuery, names: tuple[str, str]) -> None:
    hint = "compare evaluations of one table and split"
    both = f"{names[0]!r} and {names[1]!r}"
    for mine, other, (name, beside) in ((ours, theirs, names), (theirs, ours, names[::-1])):
        if len(mine.rows) == len(other.rows) and np.array_equal(mine.paths, other.paths):
            break
        known = set(other.paths.tolist())
        more = [path for path in mine.paths.tolist() if path not in known]
        if more:
            count = f"{len(more)} of {len(mine.rows)} queries of {name!r} are"
            raise DataError(f"{count} not among those of {beside!r}, the first {more[0]!r}", hint=hint)
    else:
        raise DataError(f"{both} have the same paths of queries, but in another order or number", hint=hint)
    for what in ("labels", "categories"):
        one, two = getattr(ours, what), getattr(theirs, what)
        differs = np.flatnonzero(one != two)
        if len(differs):
            place = differs[0]
            raise DataError(
                f"{both} have other {what} for {len(differs)} of {len(one)} queries, the first for "
                f"{ours.paths[place]!r}: {one[place]!r} and {two[place]!r}",
                hint=hint,
            )


def _flat(protocol: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in protocol.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def require_same_rules(
    ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None, names: tuple[str, str]
) -> list[str]:
    """Refuse other rules, as far as both are known; what may differ and does comes back as notes.

    Raises:
        UsageError: naming the rules that differ.
    """
    unknown = [name for name, side in zip(names, (ours, theirs), strict=True) if side is None]
    if ours is None or theirs is None:
        which = " and ".join(map(repr, unknown))
        return [f"no protocol is known of {which}: the queries are compared, not how they were judged"]
    mine, other = dict(_flat(plain(ours))), dict(_flat(plain(theirs)))
    differing = [key for key in dict.fromkeys([*mine, *other]) if mine.get(key) != other.get(key)]
    free = [key for key in differing if key.startswith(f"{METHOD}.") and key != f"{METHOD}.distance"]
    bound = [key for key in differing if key not in free and key != DIGEST]
    if bound:
        listed = "; ".join(f"{key} is {mine.get(key)!r} and {other.get(key)!r}" for key in bound[:3])
        more = f"; and {len(bound) - 3} more" if len(bound) > 3 else ""
        raise UsageError(
            f"{names[0]!r} and {names[1]!r} were judged by other rules: {listed}{more}",
            hint="judge both in the same way",
        )
    return [
        f"{key.removeprefix(METHOD + '.')}: {names[0]} has {_said(mine.get(key))}, "
        f"{names[1]} has {_said(other.get(key))}"
        for key in free
    ]


def _require_same_rows(
    ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None, names: tuple[str, str]
) -> None:
    if ours is not None and theirs is not None and ours.get(DIGEST) != theirs.get(DIGEST):
        raise DataError(
            f"{names[0]!r} and {names[1]!r} have the same queries, but searched another gallery: other rows, "
            "labels, sequences or boxes, or other images taken for the query itself",
            hint="compare evaluations of one table and split",
        )


def _said(value: Any) -> str:
    return "none" if value is None or value == [] or value == {} else str(value)


def _only_in_one(ours: PerQuery, theirs: PerQuery, names: tuple[str, str]) -> list[str]:
    notes = []
    for mine, other, name in ((ours, theirs, names[0]), (theirs, ours, names[1])):
        if more := [metric for metric in mine.values if metric not in other.values]:
            notes.append(f"only {name} has {', '.join(more)}")
    return notes


def _judged_in_both(ours: PerQuery, theirs: PerQuery, metrics: list[str]) -> tuple[Values, Values, int]:
    """Values of both with NaN wherever one of them has it, and how many queries that takes out."""
    mine, other = {}, {}
    lost = np.zeros(len(ours.rows), dtype=bool)
    for metric in metrics:
        a, b = np.isnan(ours.values[metric]), np.isnan(theirs.values[metric])
        mine[metric] = np.where(b, np.nan, ours.values[metric])
        other[metric] = np.where(a, np.nan, theirs.values[metric])
        lost |= a != b
    return mine, other, int(lost.sum())


def _differences(
    mine: Values,
    other: Values,
    labels: NDArray[np.int64],
    codes: NDArray[np.int64],
    names: list[str],
    confidence: float,
    samples: int,
    seed: int,
) -> dict[str, dict[str, MetricDifference]]:
    ours, theirs = ({m: torch.from_numpy(v) for m, v in side.items()} for side in (mine, other))
    places, groups = torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(codes.astype(np.int64))
    intervals: Mapping[str, Mapping[str, Paired]] = {}
    if samples:
        intervals = paired_intervals(
            theirs,
            ours,
            places,
            codes=groups,
            names=names,
            confidence=confidence,
            samples=samples,
            seed=seed,
        )
    means, others = summarize(ours, groups, names), summarize(theirs, groups, names)
    unknown = Paired(math.nan, math.nan, math.nan)
    return {
        category: {
            metric: _difference(
                metric, value, others[category][metric], intervals.get(category, {}).get(metric, unknown)
            )
            for metric, value in row.items()
        }
        for category, row in means.items()
    }


def _difference(metric: str, ours: float, theirs: float, found: Paired) -> MetricDifference:
    known = metric_of(metric)
    sign = -1 if known is not None and known.lower_is_better else 1
    verdict: Verdict = "unclear"
    if found.low == found.high == 0:
        verdict = "equal"
    elif found.low > 0 or found.high < 0:
        verdict = "better" if sign * found.low > 0 or sign * found.high > 0 else "worse"
    return MetricDifference(theirs, ours, ours - theirs, found.low, found.high, found.p, verdict)


def _flips(mine: Values, other: Values, labels: NDArray[np.int64], names: list[str]) -> Flips:
    """Changes of cmc at its lowest k, or else of the first metric that changed at all."""
    found = ((metric.removeprefix("cmc@"), metric) for metric in mine)
    cmc = sorted((int(k), metric) for k, metric in found if k.isdecimal())
    changed = (m for m in mine if not np.array_equal(mine[m], other[m], equal_nan=True))
    metric = cmc[0][1] if cmc else next(changed, next(iter(mine)))
    known = metric_of(metric)
    change = mine[metric] - other[metric]
    if known is not None and known.lower_is_better:
        change = -change
    gained = np.bincount(labels[change > 0], minlength=len(names))
    lost = np.bincount(labels[change < 0], minlength=len(names))
    order = np.argsort(-(gained + lost), kind="stable")
    order = order[(gained + lost)[order] > 0]
    listed = zip(order.tolist(), gained[order].tolist(), lost[order].tolist(), strict=True)
    return Flips(
        metric=metric,
        gained=int(gained.sum()),
        lost=int(lost.sum()),
        unchanged=int((change == 0).sum()),
        labels=[(names[place], up, down) for place, up, down in listed],
    )
