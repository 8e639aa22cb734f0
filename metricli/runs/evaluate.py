"""From embeddings and rows to metrics: search, postprocessors, metrics, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metricli.core.bootstrap import intervals
from metricli.core.catalogue import metric_names
from metricli.core.metrics import (
    clipped,
    cutoffs,
    merge,
    required_k,
    retrieval_metrics,
    summarize,
    zero_unmatched,
)
from metricli.core.rankings import Images, Rankings
from metricli.core.results import SearchResult, Survey
from metricli.core.retrieval import survey
from metricli.errors import DataError
from metricli.reporter import Reporter
from metricli.reports import Intervals, Metrics
from metricli.runs.judging import UNSEARCHED, Postprocessor, searcher_of
from metricli.runs.processes import ALONE, World
from metricli.runs.protocol import Judged, Protocol, protocol_of, unmatched_paths
from metricli.runs.shared_rows import Host, agreed, to_main
from metricli.runs.unranked import RESOLUTION, group_resolution, health, verified
from metricli.specs.validate import ValidationSpec


@dataclass(frozen=True)
class Evaluation:
    """Metrics, how sure they are, and what they were taken over."""

    metrics: Metrics
    intervals: Intervals
    thresholds: Metrics
    """The distance at each operating point of the verification metrics."""
    protocol: Protocol
    per_query: dict[str, Tensor]
    """Values (Q,) of the ranking metrics, NaN for a query that is not judged; in the main process alone."""
    result: SearchResult | None
    """In the main process alone."""
    unmatched: list[str]
    """Paths of the queries without a match."""
    warnings: list[str] = field(default_factory=list)


def evaluate_rows(
    judged: Judged,
    validation: ValidationSpec,
    reporter: Reporter,
    *,
    postprocessors: Sequence[Postprocessor],
    other: Judged | None = None,
    images: Images | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Judge the embeddings of some rows; rows that are not readable are left out.

    `postprocessors` are those of `validation`, built; `other` is a gallery of its own; `images` gives the
    images of judged rows, for postprocessors that look at them. The processes of `world`, which all have the
    same rows, search for a part of the queries each; the main one does the rest, and tells the others.

    Raises:
        DataError: see `protocol_of`; or the embeddings cannot be searched, or a postprocessor refuses them.
        ResourceError: there is no room for what the processes of a host share.
    """
    if judged.embeddings.device.type == "mps":  # which has no float64
        judged = Judged(judged.rows, judged.embeddings.cpu(), judged.readable)
    protocol = protocol_of(judged, other, validation)
    rankings = _rankings(protocol, validation, images, Host.of(world))
    parts = _parts(rankings, protocol, validation, reporter, world, len(postprocessors) > 0)
    values: list[tuple[dict[str, Tensor], SearchResult]] = []

    def judge() -> tuple[Metrics, Intervals, Metrics, list[str]]:
        changed, found, notes = _searched(rankings, protocol, validation, reporter, postprocessors, parts)
        per_query = _per_query(found, protocol, validation)
        values.append((per_query, found.result))
        metrics, thresholds, more = _metrics(found, per_query, changed, protocol, validation)
        warnings = notes + protocol.notes + more + _warnings(validation, protocol, changed)
        return metrics, _intervals(per_query, protocol, validation), thresholds, warnings

    metrics, intervals, thresholds, warnings = world.once(judge)
    per_query, result = values[0] if values else ({}, None)
    for message in warnings:
        reporter.warn(message)
    return Evaluation(
        metrics=metrics,
        intervals=intervals,
        thresholds=thresholds,
        protocol=protocol,
        per_query=per_query,
        result=result,
        unmatched=unmatched_paths(protocol),
        warnings=warnings,
    )


def _rankings(protocol: Protocol, validation: ValidationSpec, images: Images | None, host: Host) -> Rankings:
    """What is to be ranked, as deep as the metrics look."""
    queries, gallery = protocol.embeddings(host)
    most = max(1, int(protocol.lengths.max()))  # a deeper search would find nothing more

    def of(places: np.ndarray) -> Images | None:
        return None if images is None else lambda rows: images(torch.from_numpy(places)[rows.cpu()])

    return Rankings(
        queries,
        gallery,
        validation.distance,
        protocol.exclude,
        min(required_k(protocol.num_relevant, **validation.metrics.model_dump()), most),
        searcher=searcher_of(validation.search),
        query_images=of(protocol.queries),
        gallery_images=of(protocol.gallery) if protocol.other is None else None,
    )


def _parts(
    rankings: Rankings,
    protocol: Protocol,
    validation: ValidationSpec,
    reporter: Reporter,
    world: World,
    postprocessed: bool,
) -> Survey | None:
    """The survey of several processes, joined in the main one; None in the others, or if one has to do it."""
    if world.size == 1:
        return None
    if postprocessed or validation.search.index is not None:
        what = "postprocessors look at" if postprocessed else "an approximate index is of"
        reporter.say(f"{what} the whole gallery: one process searches, and the others wait")
        return None
    count = len(protocol.queries)
    part = slice(count * world.rank // world.size, count * (world.rank + 1) // world.size)
    reporter.begin("search", part.stop - part.start, "query")
    try:
        found = agreed(world, lambda: _surveyed(rankings, protocol, validation, reporter, part))
    finally:
        reporter.end()
    parts = to_main(world, found.to("cpu"))
    return None if parts is None else Survey.joined(parts).to(rankings.queries.device)


def _searched(
    rankings: Rankings,
    protocol: Protocol,
    validation: ValidationSpec,
    reporter: Reporter,
    postprocessors: Sequence[Postprocessor],
    found: Survey | None,
) -> tuple[Rankings, Survey, list[str]]:
    """The rankings that the postprocessors leave, their survey if it is not `found`, and what to say."""
    if found is not None:
        return rankings, found, []
    notes: list[str] = []
    reporter.begin("search", len(protocol.queries), "query")
    try:
        for postprocessor in postprocessors:
            rankings = postprocessor(rankings)
            notes += postprocessor.notes
        found = _surveyed(rankings, protocol, validation, reporter)
    finally:
        reporter.end()
    index = validation.search.index
    if index is not None:
        notes.append(f"the search is approximate (faiss {index}): the metrics are of what it found")
    return rankings, found, notes


def _surveyed(
    rankings: Rankings,
    protocol: Protocol,
    validation: ValidationSpec,
    reporter: Reporter,
    part: slice | None = None,
) -> Survey:
    """The ranking, of a `part` of the queries or of all, and what a pass over all pairs is needed for."""
    asked, spec = validation.metrics.model_dump(), validation.search
    ranks = bool(asked["mrr"] or asked["minp"])
    pairs = bool(metric_names(asked, "verification"))
    result = None if rankings.untouched and spec.index is None else rankings.result
    if result is not None and not (ranks or pairs):
        return Survey(result)
    try:
        found = survey(
            rankings.queries,
            rankings.gallery,
            k=rankings.k if result is None else 1,
            distance=rankings.distance,
            exclude=rankings.exclude,
            query_labels=protocol.query_labels,
            gallery_labels=protocol.gallery_labels,
            ranks=ranks,
            distances=False,
            resolution=RESOLUTION if pairs else 0,
            groups=protocol.codes.to(rankings.queries.device),
            num_groups=len(protocol.categories),
            group_resolution=group_resolution(len(protocol.categories)) if pairs else None,
            part=part,
            budget_mb=spec.budget_mb,
            on_progress=reporter.advance,
        )
    except ValueError as error:
        raise DataError(f"{UNSEARCHED}: {error}") from None
    return found if result is None else replace(found, result=result)


def _per_query(found: Survey, protocol: Protocol, validation: ValidationSpec) -> dict[str, Tensor]:
    """The values (Q,) of the ranking metrics."""
    per_query = retrieval_metrics(
        found.result,
        protocol.query_labels,
        protocol.gallery_labels,
        protocol.num_relevant,
        first=found.first,
        last=found.last,
        retrievable=protocol.lengths,
        **validation.metrics.model_dump(),
    )
    return zero_unmatched(per_query) if validation.unmatched == "zero" else per_query


def _metrics(
    found: Survey,
    per_query: dict[str, Tensor],
    rankings: Rankings,
    protocol: Protocol,
    validation: ValidationSpec,
) -> tuple[Metrics, Metrics, list[str]]:
    """All metrics in order, the thresholds of the verification metrics, and what is doubtful of these."""
    asked, names = validation.metrics.model_dump(), protocol.categories
    metrics = summarize(per_query, protocol.codes, names)
    pairs = verified(found, names, asked)
    for name, row in pairs.values.items():
        metrics[name] |= row
    if metric_names(asked, "health"):
        metrics = merge(metrics, health(rankings, found.result, protocol, asked), names)
    return _in_order(metrics, asked), pairs.thresholds, pairs.notes


def _in_order(metrics: Metrics, asked: dict[str, Any]) -> Metrics:
    names = metric_names(asked)
    return {category: {name: row[name] for name in names if name in row} for category, row in metrics.items()}


def _intervals(per_query: dict[str, Tensor], protocol: Protocol, validation: ValidationSpec) -> Intervals:
    if validation.bootstrap.samples == 0:
        return {}
    return intervals(
        per_query,
        protocol.query_labels,
        codes=protocol.codes,
        names=protocol.categories,
        confidence=validation.bootstrap.confidence,
        samples=validation.bootstrap.samples,
    )


def _warnings(validation: ValidationSpec, protocol: Protocol, rankings: Rankings) -> list[str]:
    """What to say of queries without a match, k that is clipped, and collapsed embeddings."""
    warnings, queries = [], len(protocol.queries)
    without = int((protocol.num_relevant == 0).sum())
    if without:
        done = (
            "count as 0 in every ranking metric"
            if validation.unmatched == "zero"
            else "are left out of the means"
        )
        warnings.append(f"{without} of {queries} queries have no match in the gallery and {done}")
    asked = validation.metrics.model_dump()
    shortest = int(protocol.lengths.min())
    too_deep = clipped(cutoffs(asked), shortest)
    if too_deep:
        listed = ", ".join(map(str, too_deep))
        count = int((protocol.lengths < too_deep[-1]).sum())
        warnings.append(
            f"k {listed} is more than {count} of {queries} queries can retrieve (the fewest: {shortest}); "
            "for these it is clipped to what they can"
        )
    gallery = rankings.gallery
    if len(gallery) > 1 and bool((gallery == gallery[0]).all()):
        warnings.append(
            "all gallery embeddings are equal: the ranks follow the table's order, not the images"
        )
    unordered = metric_names(asked, "verification") + metric_names({"hubness": asked["hubness"]})
    if rankings.found is not None and unordered:
        names = ", ".join(unordered)
        warnings.append(f"{names}: of the distances of embeddings, as if the order had not been changed")
    return warnings
