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
from metricli.runs.protocol import Judged, Protocol, protocol_of, unmatched_paths
from metricli.runs.unranked import RESOLUTION, group_resolution, health, verified
from metricli.specs.validate import SearchSpec, ValidationSpec


@dataclass(frozen=True)
class Evaluation:
    """Metrics, how sure they are, and what they were taken over."""

    metrics: Metrics
    intervals: Intervals
    thresholds: Metrics
    """The distance at each operating point of the verification metrics."""
    protocol: Protocol
    per_query: dict[str, Tensor]
    """Values (Q,) of the ranking metrics; NaN for a query that is not judged."""
    result: SearchResult
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
) -> Evaluation:
    """Judge the embeddings of some rows; rows that are not readable are left out.

    `postprocessors` are those of `validation`, built; `other` is a gallery of its own; `images` gives the
    images of judged rows, for postprocessors that look at them.

    Raises:
        DataError: see `protocol_of`; or the embeddings cannot be searched, or a postprocessor refuses them.
    """
    if judged.embeddings.device.type == "mps":  # which has no float64
        judged = Judged(judged.rows, judged.embeddings.cpu(), judged.readable)
    protocol = protocol_of(judged, other, validation)
    asked = validation.metrics.model_dump()
    most = max(1, int(protocol.lengths.max()))  # a deeper search would find nothing more
    depth = min(required_k(protocol.num_relevant, **asked), most)
    reporter.begin("search", len(protocol.queries), "query")
    try:
        rankings, notes = _postprocessed(protocol, validation, depth, images, postprocessors)
        found = _surveyed(rankings, protocol, asked, validation.search, reporter)
    finally:
        reporter.end()
    per_query = retrieval_metrics(
        found.result,
        protocol.query_labels,
        protocol.gallery_labels,
        protocol.num_relevant,
        first=found.first,
        last=found.last,
        retrievable=protocol.lengths,
        **asked,
    )
    if validation.unmatched == "zero":
        per_query = zero_unmatched(per_query)
    names = protocol.categories
    metrics = summarize(per_query, protocol.codes, names)
    pairs = verified(found, names, asked)
    for name, row in pairs.values.items():
        metrics[name] |= row
    if metric_names(asked, "health"):
        metrics = merge(metrics, health(rankings, found.result, protocol, asked), names)
    unmatched = unmatched_paths(protocol)
    warnings = (
        notes + protocol.notes + pairs.notes + _warnings(validation, protocol, rankings, len(unmatched))
    )
    for message in warnings:
        reporter.warn(message)
    return Evaluation(
        metrics=_in_order(metrics, asked),
        intervals=_intervals(per_query, protocol, validation),
        thresholds=pairs.thresholds,
        protocol=protocol,
        per_query=per_query,
        result=found.result,
        unmatched=unmatched,
        warnings=warnings,
    )


def _postprocessed(
    protocol: Protocol,
    validation: ValidationSpec,
    depth: int,
    images: Images | None,
    postprocessors: Sequence[Postprocessor],
) -> tuple[Rankings, list[str]]:
    """The rankings that the postprocessors leave, and what they have to say."""
    queries, gallery = protocol.embeddings

    def of(places: np.ndarray) -> Images | None:
        return None if images is None else lambda rows: images(torch.from_numpy(places)[rows.cpu()])

    rankings = Rankings(
        queries,
        gallery,
        validation.distance,
        protocol.exclude,
        depth,
        searcher=searcher_of(validation.search),
        query_images=of(protocol.queries),
        gallery_images=of(protocol.gallery) if protocol.other is None else None,
    )
    notes: list[str] = []
    for postprocessor in postprocessors:
        rankings = postprocessor(rankings)
        notes += postprocessor.notes
    if validation.search.index is not None:
        notes.append(
            f"the search is approximate (faiss {validation.search.index}): the metrics are of what it found"
        )
    return rankings, notes


def _surveyed(
    rankings: Rankings, protocol: Protocol, asked: dict[str, Any], spec: SearchSpec, reporter: Reporter
) -> Survey:
    """The ranking, and what a pass over all pairs is needed for, in one pass if possible."""
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
            budget_mb=spec.budget_mb,
            on_progress=reporter.advance,
        )
    except ValueError as error:
        raise DataError(f"{UNSEARCHED}: {error}") from None
    return found if result is None else replace(found, result=result)


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


def _warnings(validation: ValidationSpec, protocol: Protocol, rankings: Rankings, without: int) -> list[str]:
    """What to say of queries without a match, k that is clipped, and collapsed embeddings."""
    warnings, queries = [], len(protocol.queries)
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
