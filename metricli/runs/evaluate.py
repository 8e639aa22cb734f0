"""From embeddings and rows to metrics: search, postprocessors, metrics, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metricli.core.approximate import faiss_search
from metricli.core.bootstrap import intervals
from metricli.core.catalogue import metric_names
from metricli.core.health import health_metrics
from metricli.core.metrics import (
    clipped,
    cutoffs,
    merge,
    required_k,
    retrieval_metrics,
    summarize,
    zero_unmatched,
)
from metricli.core.rankings import Images, Rankings, Searcher
from metricli.core.results import SearchResult, Survey
from metricli.core.retrieval import search, survey
from metricli.core.verification import overall_first, verification_metrics
from metricli.errors import DataError
from metricli.reporter import Reporter
from metricli.reports import Intervals, Metrics
from metricli.runs.protocol import Judged, Protocol, protocol_of, unmatched_paths
from metricli.specs.validate import SearchSpec, ValidationSpec

BINS = 2**16
"""Bins of the pair histogram; fewer where there are many categories."""
_ALL_BINS = 2**22


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
    other: Judged | None = None,
    images: Images | None = None,
) -> Evaluation:
    """Judge the embeddings of some rows; rows that are not readable are left out.

    `other` is a gallery of its own; `images` gives the images of judged rows, for postprocessors that look at
    them.

    Raises:
        DataError: see `protocol_of`; or the embeddings cannot be searched.
    """
    if judged.embeddings.device.type == "mps":  # which has no float64
        judged = Judged(judged.rows, judged.embeddings.cpu(), judged.readable)
    protocol = protocol_of(judged, other, validation)
    asked = validation.metrics.model_dump()
    depth = required_k(protocol.num_relevant, **asked)
    reporter.begin("search", len(protocol.queries), "query")
    try:
        rankings, notes = _postprocessed(protocol, validation, depth, images, reporter)
        found = _surveyed(rankings, protocol, asked, validation.search, reporter)
    except ValueError as error:  # values so large that their squares are not finite, or a postprocessor's own
        raise DataError(f"the embeddings cannot be searched: {error}") from None
    finally:
        reporter.end()
    per_query = retrieval_metrics(
        found.result,
        protocol.query_labels,
        protocol.gallery_labels,
        protocol.num_relevant,
        first=found.first,
        last=found.last,
        **asked,
    )
    if validation.unmatched == "zero":
        per_query = zero_unmatched(per_query)
    names = protocol.categories
    metrics, thresholds = summarize(per_query, protocol.codes, names), Metrics()
    if found.pairs is not None:
        verified = verification_metrics(overall_first(found.pairs), **asked)
        metrics = merge(metrics, verified.values, names)
        thresholds = merge({}, verified.thresholds, names)
    if metric_names(asked, "health"):
        metrics = merge(metrics, _health(rankings, found.result, protocol, asked), names)
    unmatched = unmatched_paths(protocol)
    warnings = notes + _warnings(validation, protocol, rankings, len(unmatched))
    for message in warnings:
        reporter.warn(message)
    return Evaluation(
        metrics=_in_order(metrics, asked),
        intervals=_intervals(per_query, protocol, validation),
        thresholds=thresholds,
        protocol=protocol,
        per_query=per_query,
        result=found.result,
        unmatched=unmatched,
        warnings=warnings,
    )


def _postprocessed(
    protocol: Protocol, validation: ValidationSpec, depth: int, images: Images | None, reporter: Reporter
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
        searcher=_searcher(validation.search),
        query_images=of(protocol.queries),
        gallery_images=of(protocol.gallery) if protocol.other is None else None,
    )
    notes: list[str] = []
    for spec in validation.postprocessors:
        postprocessor = spec.build()
        rankings = postprocessor(rankings)
        notes += getattr(postprocessor, "notes", [])
    if validation.search.index is not None:
        notes.append(
            f"the search is approximate (faiss {validation.search.index}): the metrics are of what it found"
        )
    del reporter
    return rankings, notes


def _searcher(spec: SearchSpec) -> Searcher:
    if spec.index is None:
        return partial(search, budget_mb=spec.budget_mb)
    return partial(faiss_search, index=spec.index, nprobe=spec.nprobe)


def _surveyed(
    rankings: Rankings, protocol: Protocol, asked: dict[str, Any], spec: SearchSpec, reporter: Reporter
) -> Survey:
    """The ranking, and what a pass over all pairs is needed for, in one pass if possible."""
    ranks = bool(asked["mrr"] or asked["minp"])
    pairs = bool(metric_names(asked, "verification"))
    count = len(protocol.categories) + 1
    result = None if rankings.untouched and spec.index is None else rankings.result
    if result is not None and not (ranks or pairs):
        return Survey(result)
    found = survey(
        rankings.queries,
        rankings.gallery,
        k=rankings.k if result is None else 1,
        distance=rankings.distance,
        exclude=rankings.exclude,
        query_labels=protocol.query_labels,
        gallery_labels=protocol.gallery_labels,
        ranks=ranks,
        bins=min(BINS, max(256, _ALL_BINS // count)) if pairs else 0,
        groups=(protocol.codes + 1).to(rankings.queries.device),
        num_groups=count,
        budget_mb=spec.budget_mb,
        on_progress=reporter.advance,
    )
    return found if result is None else Survey(result, found.first, found.last, found.pairs)


def _health(
    rankings: Rankings, result: SearchResult, protocol: Protocol, asked: dict[str, Any]
) -> dict[str, Tensor]:
    """Health of all that was judged, each row once: the gallery, and the queries that are not in it."""
    queries, gallery, exclude = rankings.queries, rankings.gallery, protocol.exclude
    assert exclude.query_ids is not None
    assert exclude.gallery_ids is not None
    more = ~torch.isin(exclude.query_ids, exclude.gallery_ids)
    kept = more.cpu()
    return health_metrics(
        gallery if not bool(kept.any()) else torch.cat([gallery, queries[more]]),
        torch.cat([protocol.gallery_labels, protocol.query_labels[more]]),
        (result if rankings.found is None else rankings.neighbours(rankings.k)).indices,
        len(gallery),
        codes=torch.cat([protocol.gallery_codes, protocol.codes[kept]]).to(gallery.device),
        query_codes=protocol.codes.to(gallery.device),
        num_categories=len(protocol.categories),
        **asked,
    )


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
    """What to say of ignored rows, queries without a match, k that is clipped, and collapsed embeddings."""
    warnings, queries = [], len(protocol.queries)
    if without:
        done = "count as 0 in every metric" if validation.unmatched == "zero" else "are left out of the means"
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
    if rankings.found is not None and metric_names(asked, "verification"):
        names = ", ".join(metric_names(asked, "verification"))
        warnings.append(f"{names}: of the embeddings' distances, which re-ranking does not change")
    return warnings
