"""From embeddings and rows to metrics: search, postprocessors, and the means for each category."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from metricli.core.exclusion import Exclusion
from metricli.core.metrics import clipped, required_k, retrieval_metrics, summarize
from metricli.core.rankings import Rankings
from metricli.core.results import SearchResult
from metricli.core.retrieval import count_relevant, search
from metricli.data.table import Rows
from metricli.errors import DataError
from metricli.reports import Metrics, Reporter
from metricli.specs.validate import ValidationSpec


@dataclass(frozen=True)
class Evaluation:
    """Metrics and the counts behind them."""

    metrics: Metrics
    queries: int
    gallery: int
    queries_without_match: int
    warnings: list[str] = field(default_factory=list)


def evaluate_rows(
    embeddings: Tensor, rows: Rows, validation: ValidationSpec, reporter: Reporter, *, readable: np.ndarray
) -> Evaluation:
    """Judge embeddings (N, D) of N rows; rows that are not `readable` (N,) are left out.

    Raises:
        DataError: no query or no gallery is left.
    """
    if embeddings.device.type == "mps":  # which has no float64
        embeddings = embeddings.cpu()
    device = embeddings.device
    queries = np.flatnonzero(rows.is_query & readable)
    gallery = np.flatnonzero(rows.is_gallery & readable)
    if len(queries) == 0 or len(gallery) == 0:
        there = f"there are {len(queries)} queries and {len(gallery)} gallery rows to judge by"
        if not readable.all():
            raise DataError(f"{there}, for {int((~readable).sum())} of {len(rows)} rows have no embedding")
        raise DataError(there, hint="set is_query and is_gallery in the table")
    if embeddings.shape[1] == 0:
        raise DataError("the embeddings have no dimension at all")
    labels, sequences = _codes(rows.labels), _codes(rows.sequences, empty=-1)

    def pick(values: np.ndarray, which: np.ndarray) -> Tensor:
        return torch.from_numpy(values[which]).to(device)

    query_ids, gallery_ids = torch.from_numpy(queries).to(device), torch.from_numpy(gallery).to(device)
    excluded = Exclusion(query_ids, gallery_ids, pick(sequences, queries), pick(sequences, gallery))
    query_labels, gallery_labels = pick(labels, queries), pick(labels, gallery)
    num_relevant = count_relevant(query_labels, gallery_labels, excluded)
    asked = validation.metrics.model_dump()
    found_q, found_g = embeddings[query_ids], embeddings[gallery_ids]
    depth = max(1, required_k(num_relevant, **asked))
    result = _searched(found_q, found_g, depth, validation, reporter, excluded)
    rankings = Rankings(found_q, found_g, validation.distance, excluded, depth, result)
    for postprocessor in validation.postprocessors:
        rankings = postprocessor.build()(rankings)
    result = rankings.result
    per_query = retrieval_metrics(result, query_labels, gallery_labels, num_relevant, **asked)
    names, codes = np.unique(rows.categories[queries].astype(str), return_inverse=True)
    if names[0] == "":  # a query of no category counts for OVERALL only
        names, codes = names[1:], codes - 1
    metrics = summarize(per_query, torch.from_numpy(codes.astype(np.int64)).to(device), names.tolist())
    without = int((num_relevant == 0).sum())
    nothing = torch.zeros_like(query_labels), torch.zeros_like(gallery_labels)
    lengths = count_relevant(*nothing, excluded)  # with one label for all: what each query can retrieve
    warnings = _warnings(validation, without, lengths)
    if len(gallery) > 1 and bool((found_g == found_g[0]).all()):
        warnings.append(
            "all gallery embeddings are equal: the ranks follow the table's order, not the images"
        )
    for message in warnings:
        reporter.warn(message)
    return Evaluation(metrics, len(queries), len(gallery), without, warnings)


def _searched(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    validation: ValidationSpec,
    reporter: Reporter,
    excluded: Exclusion,
) -> SearchResult:
    """The `k` nearest gallery rows of each query, with progress."""
    reporter.begin("search", len(queries), "query")
    try:
        return search(
            queries,
            gallery,
            k=k,
            distance=validation.distance,
            exclude=excluded,
            on_progress=reporter.advance,
        )
    except ValueError as error:  # values so large that their squares are not finite
        raise DataError(f"the embeddings cannot be searched: {error}") from None
    finally:
        reporter.end()


def _warnings(validation: ValidationSpec, without: int, lengths: Tensor) -> list[str]:
    """What to say of queries without a match, and of k beyond what a query can retrieve, `lengths` (Q,)."""
    warnings, queries = [], len(lengths)
    if without:
        warnings.append(
            f"{without} of {queries} queries have no match in the gallery and are left out of the means"
        )
    asked = validation.metrics
    ks = {
        k
        for name in ("cmc", "precision", "precision_capped", "map", "map_hits")
        for k in getattr(asked, name)
    }
    shortest = int(lengths.min())
    too_deep = clipped(sorted(ks), shortest)
    if too_deep:
        listed = ", ".join(map(str, too_deep))
        count = int((lengths < too_deep[-1]).sum())
        warnings.append(
            f"k {listed} is more than {count} of {queries} queries can retrieve (the fewest: {shortest}); "
            "for these it is clipped to what they can"
        )
    return warnings


def _codes(words: np.ndarray, empty: int | None = None) -> np.ndarray:
    """Integer codes (N,) of text, with `empty` for ""."""
    _, codes = np.unique(words.astype(str), return_inverse=True)
    codes = codes.astype(np.int64)
    if empty is not None:
        codes[words == ""] = empty
    return codes
