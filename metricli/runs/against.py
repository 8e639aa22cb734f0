"""`validate --against`: the other evaluation, of a checkpoint, of saved features, or as `--out` saved it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from metricli.data.table import Rows, Table
from metricli.errors import UsageError
from metricli.reporter import Reporter
from metricli.reports import Comparison
from metricli.runs.checkpoints import BestCheckpoint, read_best, spec_of
from metricli.runs.comparison import compare
from metricli.runs.context import open_context
from metricli.runs.directory import find_checkpoint
from metricli.runs.embedding import embed_rows, images_of, row_loader
from metricli.runs.evaluate import Evaluation, evaluate_rows
from metricli.runs.parts import image_dataset, inference_extractor, require_data
from metricli.runs.per_query import STEM, PerQuery, per_query_of, read_per_query, rows_digest
from metricli.runs.protocol import Judged
from metricli.runs.saved_features import read_features
from metricli.specs.validate import ValidateSpec, ValidationSpec


@dataclass(frozen=True)
class Other:
    """What to compare with; one of the three."""

    path: Path
    saved: PerQuery | None = None
    best: BestCheckpoint | None = None
    features: bool = False


def open_other(path: Path) -> Other:
    """Look at what `--against` names, before any work is done.

    Raises:
        UsageError: it is nothing that can be compared with.
        DataError: a saved evaluation that cannot be read.
        CheckpointError: a checkpoint that cannot be read.
    """
    if path.is_dir() and any((path / f"{STEM}.{kind}").is_file() for kind in ("parquet", "csv")):
        return Other(path, saved=read_per_query(path))
    if path.is_dir() or path.suffix == ".ckpt":
        return Other(path, best=read_best(find_checkpoint(path)))
    if not path.exists():
        raise UsageError(
            f"--against {str(path)!r} does not exist",
            hint="give a best.ckpt, a features file, or a folder that `validate --out` wrote",
        )
    if path.suffix == ".csv" or (path.suffix == ".parquet" and not _holds_features(path)):
        return Other(path, saved=read_per_query(path))
    return Other(path, features=True)


def _holds_features(path: Path) -> bool:
    try:
        return "features" in pq.read_schema(path).names
    except (OSError, ValueError):  # the reader of saved evaluations says what is wrong with it
        return False


def protocol_document(found: Evaluation, validation: ValidationSpec) -> dict[str, Any]:
    """What must be the same for two evaluations to be compared, and under `method` what may differ."""
    protocol = found.protocol
    own = protocol.other is None
    dumped = validation.model_dump(mode="json")
    return {
        "rows_digest": rows_digest(
            protocol.judged.rows, protocol.queries, protocol.gallery, None if own else protocol.gallery_rows
        ),
        "search_within": validation.search_within,
        "unmatched": validation.unmatched,
        "method": {
            "distance": validation.distance,
            "search": validation.search.index or "exact",
            "postprocessors": dumped["postprocessors"],
            "gallery": "its own embeddings" if own else validation.gallery_features,
        },
    }


def per_query(found: Evaluation, protocol: dict[str, Any]) -> PerQuery:
    """The values of an evaluation, query by query."""
    judged = found.protocol.judged
    return per_query_of(judged.rows, found.protocol.queries, found.per_query, protocol)


def compared(
    other: Other,
    found: Evaluation,
    origin: str,
    protocol: dict[str, Any],
    spec: ValidateSpec,
    table: Table,
    reporter: Reporter,
) -> Comparison:
    """An evaluation against another one, which is made first if it is not a saved one.

    Raises:
        UsageError: they were judged by other rules.
        DataError: they were judged on other rows.
    """
    theirs = other.saved
    if theirs is None:
        rows = found.protocol.judged.rows
        again = _evaluated(other, found, spec, table, rows, reporter)
        theirs = per_query(again, protocol_document(again, spec.validation))
    bootstrap = spec.validation.bootstrap
    return compare(
        per_query(found, protocol),
        theirs,
        ours_name=origin,
        theirs_name=str(other.path),
        confidence=bootstrap.confidence,
        samples=bootstrap.samples,
    )


def _evaluated(
    other: Other, found: Evaluation, spec: ValidateSpec, table: Table, rows: Rows, reporter: Reporter
) -> Evaluation:
    """Judge another model or its features on the same rows by the same rules."""
    reporter.say(f"against: {other.path}")
    gallery = found.protocol.other
    if other.best is None:
        embeddings, readable = read_features(other.path, table, rows)
        return evaluate_rows(Judged(rows, embeddings, readable), spec.validation, reporter, other=gallery)
    block, context = require_data(spec), open_context(spec.compute, reporter)
    theirs: ValidateSpec = spec_of(other.best, None, ValidateSpec, {}, ()).spec
    extractor, _ = inference_extractor(theirs, other.best, context)
    dataset = image_dataset(rows, theirs.transforms.eval.build(), block)
    judged, _ = embed_rows(context, extractor, rows, row_loader(context, dataset, spec.validation), block)
    images = partial(images_of, dataset, context.device)
    return evaluate_rows(judged, spec.validation, reporter, other=gallery, images=images)
