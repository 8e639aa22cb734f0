"""Which queries are shown with what they found: worst, median and random ones, overall and by category."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metricli.core.retrieval import search
from metricli.pages.model import Kind, Panel, Shown
from metricli.reports import OVERALL

if TYPE_CHECKING:
    from metricli.runs.pictures import Catalogue

__all__ = ["MOST_CATEGORIES", "panels_of"]

MOST_CATEGORIES = 6
RESULTS = 8
MISSED = 4
_OVERALL: dict[Kind, int] = {"worst": 5, "median": 3, "random": 3}
_UNSORTED = 6
_CATEGORY: dict[Kind, int] = {"worst": 2, "median": 1, "random": 1}


@dataclass(frozen=True)
class _Choice:
    """A query, by its place, and why it is shown."""

    group: str
    kind: Kind
    query: int
    value: float


def panels_of(
    known: Catalogue, values: NDArray[np.float64] | None, *, searchable: bool = False
) -> list[Panel]:
    """Panels of all queries, and of the categories that do worst; `values` (Q,) sorts, NaN is not shown.

    Without values there are random ones alone. No label is shown twice as worst; those of median and random
    queries are others, as far as there are others. With `searchable` True a ranking that is too short for a
    panel is made again, deeper.
    """
    if known.result is None:
        return []
    chosen = _chosen(known, values)
    if not chosen:
        return []
    rankings = known.result.indices
    deeper: dict[int, Tensor] = {}
    if searchable and rankings.shape[1] < min(RESULTS, len(known.gallery)):
        deeper = _searched(known, sorted({choice.query for choice in chosen}))
    return [_panel(known, choice, deeper.get(choice.query, rankings[choice.query])) for choice in chosen]


def _searched(known: Catalogue, queries: list[int]) -> dict[int, Tensor]:
    """The first results of some queries."""
    some = torch.tensor(queries, dtype=torch.int64, device=known.queries.labels.device)
    gallery = known.gallery.rows(slice(None))
    exclude = known.protocol.exclude
    sides = {
        name: None if codes is None else codes[some]
        for name in ("query_ids", "query_sequences", "query_groups")
        for codes in [getattr(exclude, name)]
    }
    dtype = torch.promote_types(known.queries.source.dtype, gallery.dtype)
    found = search(
        known.queries.rows(some).to(dtype),
        gallery.to(dtype),
        k=min(RESULTS, len(gallery)),
        distance=known.distance,
        exclude=replace(exclude, **sides),
    )
    return dict(zip(queries, found.indices, strict=True))


def _chosen(known: Catalogue, values: NDArray[np.float64] | None) -> list[_Choice]:
    labels = known.queries.labels.cpu().numpy()
    generator = np.random.default_rng(0)
    if values is None:
        everyone, nothing = np.arange(len(labels)), np.full(len(labels), np.nan)
        return _group(OVERALL, everyone, nothing, labels, {"random": _UNSORTED}, generator)
    judged = np.flatnonzero(~np.isnan(values))
    chosen = _group(OVERALL, judged, values, labels, _OVERALL, generator)
    codes = known.protocol.codes.numpy()[judged]
    named = {code: judged[codes == code] for code in np.unique(codes).tolist() if code >= 0}
    if len(known.protocol.categories) > 1:
        for code in sorted(named, key=lambda code: float(values[named[code]].mean()))[:MOST_CATEGORIES]:
            name = known.protocol.categories[code]
            chosen += _group(name, named[code], values, labels, _CATEGORY, generator)
    return chosen


def _group(
    group: str,
    chosen: NDArray[np.int64],
    values: NDArray[np.float64],
    labels: NDArray[np.int64],
    counts: dict[Kind, int],
    generator: np.random.Generator,
) -> list[_Choice]:
    """Which of some queries are shown."""
    mixed = generator.permutation(chosen)
    order = mixed[np.argsort(values[mixed], kind="stable")]  # of equal ones, drawn
    middle = np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) / 2), kind="stable")
    ways: dict[Kind, NDArray[np.int64]] = {
        "worst": order,
        "median": order[middle],
        "random": generator.permutation(chosen),
    }
    found: list[_Choice] = []
    seen: set[int] = set()
    taken: set[int] = set()
    for kind, wanted in counts.items():
        candidates, count = ways[kind], 0
        for distinct in (True, False):  # first other labels, then what there is
            for place in candidates.tolist():
                if count == wanted:
                    break
                if place in seen or (distinct and int(labels[place]) in taken):
                    continue
                seen.add(place)
                taken.add(int(labels[place]))
                found.append(_Choice(group, kind, place, float(values[place])))
                count += 1
            if kind == "worst" and count:
                break  # a better query is not the worst for being of another label
    return found


def _panel(known: Catalogue, choice: _Choice, ranking: Tensor) -> Panel:
    """One query with its first results and the matches that are not among them."""
    query, ranking = choice.query, ranking.cpu()
    ranking = ranking[ranking >= 0]
    label, labels = known.queries.labels[query], known.gallery.labels
    first = ranking[:RESULTS]
    results = [
        Shown(item=known.found(place), distance=apart, is_match=bool(labels[place] == label), rank=rank)
        for rank, (place, apart) in enumerate(
            zip(first.tolist(), known.apart(query, first).tolist(), strict=True), start=1
        )
    ]
    matches = torch.nonzero(labels == label)[:, 0]
    one = torch.tensor([query], device=matches.device)
    matches = matches[~known.protocol.exclude.hides(one, matches[None])[0]].cpu()
    relevant = len(matches)
    matches = matches[~torch.isin(matches, first)]
    apart = known.apart(query, matches)
    order = apart.argsort(stable=True)[:MISSED]
    ranks = {place: rank for rank, place in enumerate(ranking.tolist(), start=1)}
    missed = [
        Shown(item=known.found(place), distance=far, is_match=True, rank=ranks.get(place))
        for place, far in zip(matches[order].tolist(), apart[order].tolist(), strict=True)
    ]
    return Panel(
        group=choice.group,
        kind=choice.kind,
        query=known.query(query),
        value=None if np.isnan(choice.value) else choice.value,
        relevant=relevant,
        results=results,
        missed=missed,
        missed_in_all=len(matches),
    )
