"""The metrics by name: what each takes, how it prints, and which direction is better. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["METRICS", "Metric", "metric_names", "metric_of", "printed"]

Family = Literal["ranking", "verification", "health"]
"""Ranking: a value for each query. Verification: from all pairs. Health: from the embeddings alone."""


@dataclass(frozen=True)
class Metric:
    """One metric; `key` is its word in a spec and a keyword of the functions that compute it."""

    key: str
    family: Family
    takes: Literal["k", "share"] | None = None
    """A list of cut-offs k, a list of shares in (0, 1), or nothing: it is on or off."""
    shown: str = ""
    """The printed name of a metric that takes nothing, where it is not `key`."""
    lower_is_better: bool = False
    bounded: bool = True
    """Whether it lies in [0, 1]."""


METRICS = {
    metric.key: metric
    for metric in (
        Metric("cmc", "ranking", "k"),
        Metric("precision", "ranking", "k"),
        Metric("precision_capped", "ranking", "k"),
        Metric("recall", "ranking", "k"),
        Metric("map", "ranking", "k"),
        Metric("map_hits", "ranking", "k"),
        Metric("ndcg", "ranking", "k"),
        Metric("map_r", "ranking", shown="map@r"),
        Metric("r_precision", "ranking"),
        Metric("mrr", "ranking"),
        Metric("minp", "ranking"),
        Metric("fnmr", "verification", "share", lower_is_better=True),
        Metric("tar", "verification", "share"),
        Metric("eer", "verification", lower_is_better=True),
        Metric("roc_auc", "verification"),
        Metric("pcf", "health", "share"),
        Metric("effective_rank", "health", bounded=False),
        Metric("alignment", "health", lower_is_better=True, bounded=False),
        Metric("uniformity", "health", lower_is_better=True, bounded=False),
        Metric("hubness", "health", "k", lower_is_better=True, bounded=False),
    )
}


def printed(key: str, at: float | None = None) -> str:
    """The name that a value prints as: "cmc@1", "fnmr@0.01", "map@r", "mrr"."""
    if at is None:
        return METRICS[key].shown or key
    exact = at if isinstance(at, int) else float(at)
    return f"{key}@{exact!r}".removesuffix(".0")  # repr: no two of them collide


def metric_names(asked: Mapping[str, Any], family: Family | None = None) -> list[str]:
    """Printed names of what is asked for, such as {"cmc": [1, 5], "map_r": True}, in the order above."""
    names = []
    for metric in METRICS.values():
        if family is not None and metric.family != family:
            continue
        wanted = asked.get(metric.key)
        if metric.takes is None:
            names += [printed(metric.key)] if wanted else []
        else:
            places: Iterable[float] = wanted or ()
            names += [printed(metric.key, at) for at in places]
    return names


def metric_of(name: str) -> Metric | None:
    """The metric behind a printed name; None for an unknown one."""
    if (plain := METRICS.get(name.split("@")[0])) is not None:
        return METRICS["map_r"] if name == "map@r" else plain
    return None
