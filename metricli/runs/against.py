"""`validate --against`: the other evaluation, of a checkpoint, of saved features, or as `--out` saved it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from metricli.core.catalogue import metric_names
from metricli.data.table import Table
from metricli.errors import UsageError
from metricli.reporter import Reporter
from metricli.reports import Comparison
from metricli.runs.checkpoints import BestCheckpoint, read_best, spec_of
from metricli.runs.comparison import DIGEST, RANKING, compare, require_common, require_same_rules
from metricli.runs.context import open_context
from metricli.runs.directory import find_checkpoint
from metricli.runs.embedding import embed_rows, images_of, row_loader
from metricli.runs.evaluate import Evaluation
from metricli.runs.parts import image_dataset, inference_extractor, require_data
from metricli.runs.per_query import STEM, PerQuery, per_query_of, read_per_query, rows_digest
from metricli.runs.processes import World
from metricli.runs.protocol import Judged
from metricli.runs.saved_features import read_features
from metricli.specs.validate import ValidateSpec, ValidationSpec

Judge = Callable[..., Evaluation]
"""`evaluate_rows` with the rules of a validation: it takes what is judged, and perhaps its `images`."""


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


def check_rules(other: Other, validation: ValidationSpec, name: str = "this evaluation") -> None:
    """Refuse what can be known not to compare before anything is embedded: rules and metrics.

    Raises:
        UsageError: no metric has a value for each query, or a saved evaluation was judged by other rules or
            has none of the metrics.
    """
    metrics = metric_names(validation.metrics.model_dump(), "ranking")
    if not metrics:
        listed = ", ".join(validation.metrics.names())
        raise UsageError(f"--against compares values of each query; {listed} have none", hint=RANKING)
    if other.saved is not None:
        names = name, str(other.path)
        require_same_rules(_rules(validation), other.saved.protocol, names)
        require_common(metrics, other.saved.values, names)


def protocol_document(found: Evaluation, validation: ValidationSpec) -> dict[str, Any]:
    """What must be the same for two evaluations to be compared, and under `method` what may differ."""
    protocol = found.protocol
    ids = protocol.exclude.query_ids, protocol.exclude.gallery_ids
    assert ids[0] is not None
    assert ids[1] is not None
    digest = rows_digest(
        protocol.judged.rows,
        protocol.queries,
        protocol.gallery,
        None if protocol.other is None else protocol.gallery_rows,
        ids=(ids[0].cpu().numpy(), ids[1].cpu().numpy()),
    )
    return {DIGEST: digest, **_rules(validation)}


def _rules(validation: ValidationSpec) -> dict[str, Any]:
    """The protocol as far as the spec says it."""
    return {
        "search_within": validation.search_within,
        "unmatched": validation.unmatched,
        "method": {
            "distance": validation.distance,
            "search": validation.search.index or "exact",
            "postprocessors": validation.model_dump(mode="json")["postprocessors"],
            "gallery": validation.gallery_features or "its own embeddings",
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
    judge: Judge,
    reporter: Reporter,
    world: World,
) -> Comparison:
    """An evaluation against another one, which `judge` makes first if it is not a saved one.

    Raises:
        UsageError: they were judged by other rules.
        DataError: they were judged on other rows.
    """
    again = None
    if other.saved is None:
        again = _evaluated(other, found, spec, table, judge, reporter, world)

    def told() -> Comparison:
        theirs = other.saved
        if again is not None:
            theirs = per_query(again, protocol_document(again, spec.validation))
        assert theirs is not None
        bootstrap = spec.validation.bootstrap
        return compare(
            per_query(found, protocol),
            theirs,
            ours_name=origin,
            theirs_name=str(other.path),
            confidence=bootstrap.confidence,
            samples=bootstrap.samples,
        )

    comparison = world.once(told)
    computed = metric_names(spec.validation.metrics.model_dump(), "ranking")
    left_out = [name for name in spec.validation.metrics.names() if name not in computed]
    if not left_out:
        return comparison
    note = f"not compared, for want of a value for each query: {', '.join(left_out)}"
    return replace(comparison, notes=[*comparison.notes, note])


def _evaluated(
    other: Other,
    found: Evaluation,
    spec: ValidateSpec,
    table: Table,
    judge: Judge,
    reporter: Reporter,
    world: World,
) -> Evaluation:
    """Judge another model or its features on the same rows by the same rules."""
    reporter.say(f"against: {other.path}")
    rows = found.protocol.judged.rows
    if other.best is None:
        embeddings, readable = read_features(other.path, table, rows, world)
        return judge(Judged(rows, embeddings, readable))
    block, context = require_data(spec), open_context(spec.compute, reporter, world=world)
    theirs: ValidateSpec = spec_of(other.best, None, ValidateSpec, {}, ()).spec
    extractor, _ = inference_extractor(theirs, other.best, context)
    dataset = image_dataset(rows, theirs.transforms.eval.build(), block)
    judged, _ = embed_rows(context, extractor, rows, row_loader(context, dataset, spec.validation), block)
    return judge(judged, images=partial(images_of, dataset, context.device))
