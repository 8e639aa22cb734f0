"""`metricli validate`: score a checkpoint, an extractor as its spec builds it, or saved features."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metricli.data.table import Rows, Table
from metricli.errors import DataError, UsageError
from metricli.pages.model import PAGE, PICTURES
from metricli.placement import placement
from metricli.reporter import Reporter, SilentReporter
from metricli.reports import PairHistogram, ValidateReport
from metricli.runs.against import Other, check_rules, compared, open_other, protocol_document
from metricli.runs.checkpoints import BestCheckpoint, read_best
from metricli.runs.context import choose_device, open_context
from metricli.runs.directory import find_checkpoint
from metricli.runs.embedding import embed_rows, images_of, row_loader, skipped_paths
from metricli.runs.evaluate import Evaluation, evaluate_rows
from metricli.runs.images import check_images
from metricli.runs.judging import built_postprocessors, require_fit
from metricli.runs.parts import (
    check_with_table,
    image_dataset,
    inference_extractor,
    load_inference,
    open_table,
    require_data,
    take_split,
)
from metricli.runs.per_query import write_per_query
from metricli.runs.pictures import pair_histogram, pictures_of
from metricli.runs.processes import ALONE, World, joined
from metricli.runs.protocol import Judged
from metricli.runs.reporting import Shown, survived, validate_command
from metricli.runs.saved_features import read_features
from metricli.specs.data import DataSpec
from metricli.specs.load import Loaded, Source, check_spec, load_spec
from metricli.specs.suggest import did_you_mean
from metricli.specs.validate import ValidateSpec, ValidationSpec


@dataclass(frozen=True)
class _Asked:
    """What a validation was told, read and checked as far as that needs no table."""

    loaded: Loaded[ValidateSpec]
    best: BestCheckpoint | None
    features: Path | None
    other: Other | None
    split: str
    started: float
    command: str

    @property
    def device(self) -> str:
        """Where models compute; saved features need no device to be there."""
        alone = self.features is not None and (self.other is None or self.other.best is None)
        return "cpu" if alone else choose_device(self.loaded.spec.compute)


def validate(
    source: Source | None,
    *,
    overrides: tuple[str, ...],
    ckpt: str | Path | None,
    features: str | Path | None,
    against: str | Path | None,
    data: dict[str, str],
    split: str,
    require: tuple[str, ...],
    reporter: Reporter,
) -> ValidateReport:
    """Judge the embeddings of one split; each metric of `require` must be among those computed.

    Several processes each embed and search for a share; the report of the main one has the values of queries.

    Raises:
        MetricliError: see errors.py for the kinds.
    """
    started = time.monotonic()
    if features is not None and ckpt is not None:
        raise UsageError("--features and --ckpt exclude each other", hint="give one of them")
    reporter = reporter if placement().is_main else SilentReporter()
    best = None
    if features is None and (ckpt is not None or source is None):
        path = find_checkpoint(ckpt)
        if ckpt is None:
            reporter.say(f"no --ckpt given: taking the newest run's, {path}")
        best = read_best(path)
        if best.notice:
            reporter.say(best.notice)
    if source is None and features is not None:
        source = {}
    loaded: Loaded[ValidateSpec] = load_inference(source, best, ValidateSpec, data, overrides)
    spec = loaded.spec
    check_spec(loaded, None)
    _require_metrics(spec.validation, require)
    other = None if against is None else open_other(Path(against))
    if other is not None:
        check_rules(other, spec.validation)
        if other.best is not None and other.best.notice:
            reporter.say(other.best.notice)
    file = None if best is None else best.path
    files = {"ckpt": file, "features": features, "against": against}
    command = validate_command(source, overrides, split=split, data=data, **files)
    asked = _Asked(loaded, best, None if features is None else Path(features), other, split, started, command)
    with joined(asked.device, spec.compute.gpus) as world:
        return _validate(asked, reporter, world)


def _validate(asked: _Asked, reporter: Reporter, world: World) -> ValidateReport:
    spec, split, best = asked.loaded.spec, asked.split, asked.best
    block = require_data(spec)
    own = spec.validation.gallery_table is None
    images_too = asked.features is None
    table, warnings = open_table(block, "evaluate", reporter, split, images=images_too, own_gallery=own)
    warnings += check_with_table(asked.loaded, table, split, reporter)
    postprocessors = built_postprocessors(spec.validation)
    rows = take_split(table, split)
    if asked.features is None:
        check_images(table, [rows], block, reporter, warnings, world)
    world.require_alike(checkpoint=best.sha256 if best else None, table=len(rows))
    gallery = gallery_of(spec.validation, table, rows, split, reporter, world)
    if asked.features is not None:
        embeddings, readable = read_features(asked.features, table, rows, world)
        require_fit(spec.validation, embeddings.shape[1], gallery)
        judged, origin, images = Judged(rows, embeddings, readable), str(asked.features), None
        skipped = np.flatnonzero(~readable).tolist()
    else:
        context = open_context(spec.compute, reporter, world=world)
        extractor, origin = inference_extractor(spec, best, context)
        require_fit(spec.validation, int(extractor.dim), gallery)  # type: ignore[arg-type]
        dataset = image_dataset(rows, spec.transforms.eval.build(), block)
        loader = row_loader(context, dataset, spec.validation)
        judged, skipped = embed_rows(context, extractor, rows, loader, block)
        images = partial(images_of, dataset, context.device)
    judge = partial(
        evaluate_rows,
        validation=spec.validation,
        reporter=reporter,
        postprocessors=postprocessors,
        other=gallery,
        world=world,
    )
    found = judge(judged, images=images)
    paths = skipped_paths(rows, skipped, reporter)
    shown = Shown(block.max_pixels, spec.model_dump(mode="json"), asked.command)
    report = validate_report(
        found, spec.validation, split, origin, warnings, asked.started, paths, shown, reporter
    )
    if asked.other is None:
        return report
    comparison = compared(asked.other, found, origin, report.protocol, spec, table, judge, reporter, world)
    return replace(report, comparison=comparison, seconds=time.monotonic() - asked.started)


def gallery_of(
    validation: ValidationSpec,
    table: Table,
    rows: Rows,
    split: str,
    reporter: Reporter,
    world: World = ALONE,
) -> Judged | None:
    """The gallery that has saved features of its own, if the spec names one.

    Raises:
        DataError: its table or its features do not fit.
    """
    if validation.gallery_features is None:
        return None
    if validation.gallery_table is not None:
        block = DataSpec(table=validation.gallery_table)
        table, _ = open_table(block, "evaluate", reporter, split, images=False, queries=False)
        rows = take_split(table, split)
    embeddings, readable = read_features(Path(validation.gallery_features), table, rows, world)
    reporter.say(f"gallery: {int(readable.sum())} saved features of {validation.gallery_features}")
    return Judged(rows, embeddings, readable)


def validate_report(
    found: Evaluation,
    validation: ValidationSpec,
    split: str,
    origin: str,
    warnings: list[str],
    started: float,
    skipped: list[str],
    shown: Shown,
    reporter: Reporter,
) -> ValidateReport:
    """The report of an evaluation; `shown` is what its page says beside it."""
    protocol = found.protocol
    document = protocol_document(found, validation)
    count = _Pairs(found, validation)
    return ValidateReport(
        metrics=found.metrics,
        split=split,
        queries=len(protocol.queries),
        gallery=len(protocol.gallery),
        queries_without_match=len(found.unmatched),
        distance=validation.distance,
        embeddings=origin,
        skipped=skipped,
        warnings=[*warnings, *found.warnings],
        seconds=time.monotonic() - started,
        intervals=found.intervals,
        confidence=validation.bootstrap.confidence,
        thresholds=found.thresholds,
        unmatched=found.unmatched,
        ignored=int(protocol.judged.rows.ignored.sum()),
        search="exact" if validation.search.index is None else f"approximate ({validation.search.index})",
        protocol=document,
        write=partial(_write, found, validation),
        draw=partial(_draw, found, validation, shown, reporter, count),
        count=count,
    )


def _write(found: Evaluation, validation: ValidationSpec, folder: Path) -> None:
    protocol = found.protocol
    assert found.result is not None
    write_per_query(
        folder,
        validation.per_query,
        rows=protocol.judged.rows,
        queries=protocol.queries,
        gallery=protocol.gallery,
        values=found.per_query,
        num_relevant=protocol.num_relevant,
        result=found.result,
        gallery_rows=None if protocol.other is None else protocol.gallery_rows,
    )


@dataclass
class _Pairs:
    """The pair histogram of an evaluation, made when it is first asked for; it can be pickled."""

    found: Evaluation
    validation: ValidationSpec
    known: PairHistogram | None = None

    def __call__(self) -> PairHistogram:
        """The histogram."""
        self.known = self.known or pair_histogram(self.found, self.validation)
        return self.known


def _draw(
    found: Evaluation,
    validation: ValidationSpec,
    shown: Shown,
    reporter: Reporter,
    count: _Pairs,
    folder: Path,
) -> None:
    with survived(reporter, "the pictures of the report could not be kept"):
        for name in (PICTURES, PAGE):  # of an earlier validation
            (folder / name).unlink(missing_ok=True)
        pictures = pictures_of(
            found,
            validation,
            max_pixels=shown.max_pixels,
            spec=shown.spec,
            command=shown.command,
            pairs=count(),
        )
        pictures.write(folder)


def _require_metrics(validation: ValidationSpec, required: tuple[str, ...]) -> None:
    computed = validation.metrics.names()
    for metric in required:
        if metric not in computed:
            near = did_you_mean(metric, computed)
            raise UsageError(
                f"the metric {metric!r} is not computed{near or ';'} computed: {', '.join(computed)}"
            )


def evaluate(
    embeddings: np.ndarray | Tensor,
    table: str | Path,
    *,
    validation: ValidationSpec | None,
    root: str | Path | None,
    split: str,
    reporter: Reporter,
) -> ValidateReport:
    """Judge embeddings (N, D) in memory, one for each row of a split.

    Raises:
        DataError: another number of rows, a NaN or an infinity, or a table with errors.
        SpecError: `validation` contradicts itself or the table.
    """
    started = time.monotonic()
    validation = validation or ValidationSpec()
    loaded = load_spec(ValidateSpec(validation=validation), ValidateSpec)
    check_spec(loaded, None)
    block = DataSpec(table=str(table), root=None if root is None else str(root))
    own = validation.gallery_table is None
    found, warnings = open_table(block, "evaluate", reporter, split, images=False, own_gallery=own)
    warnings += check_with_table(loaded, found, split, reporter)
    postprocessors = built_postprocessors(validation)
    rows = take_split(found, split)
    if isinstance(embeddings, np.ndarray):  # torch takes neither negative strides nor foreign byte orders
        embeddings = np.ascontiguousarray(embeddings, dtype=embeddings.dtype.newbyteorder("="))
    tensor = torch.as_tensor(embeddings).detach()
    if tensor.ndim != 2 or len(tensor) != len(rows) or not tensor.is_floating_point():
        shape = f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")
        raise DataError(
            f"expected float embeddings ({len(rows)}, D), a row for each of the split, got {shape}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise DataError("the embeddings hold NaN or infinity")
    judged = Judged(rows, tensor, np.ones(len(rows), dtype=bool))
    gallery = gallery_of(validation, found, rows, split, reporter)
    require_fit(validation, tensor.shape[1], gallery)
    result = evaluate_rows(judged, validation, reporter, postprocessors=postprocessors, other=gallery)
    shown = Shown(block.max_pixels, {"validation": validation.model_dump(mode="json")})
    return validate_report(result, validation, split, "memory", warnings, started, [], shown, reporter)
