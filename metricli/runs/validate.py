"""`metricli validate`: score a checkpoint, an extractor as its spec builds it, or saved features."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from metricli.components.dataset import ImageDataset
from metricli.data.table import Rows
from metricli.errors import DataError, UsageError
from metricli.reports import Reporter, ValidateReport
from metricli.runs.checkpoints import read_best
from metricli.runs.context import Context, open_context
from metricli.runs.directory import find_checkpoint
from metricli.runs.embed import RowLoader, embed
from metricli.runs.evaluate import Evaluation, evaluate_rows
from metricli.runs.parts import (
    image_dataset,
    inference_extractor,
    load_inference,
    open_table,
    require_data,
    take_split,
)
from metricli.runs.saved_features import read_features
from metricli.specs.data import DataSpec
from metricli.specs.load import Loaded, Source
from metricli.specs.suggest import did_you_mean
from metricli.specs.validate import ValidateSpec, ValidationSpec


def validate(
    source: Source | None,
    *,
    overrides: tuple[str, ...],
    ckpt: str | Path | None,
    features: str | Path | None,
    data: dict[str, str],
    split: str,
    require: tuple[str, ...],
    reporter: Reporter,
) -> ValidateReport:
    """Judge the embeddings of one split; each metric of `require` must be among those computed.

    Raises:
        MetricliError: see errors.py for the kinds.
    """
    started = time.monotonic()
    if features is not None and ckpt is not None:
        raise UsageError("--features and --ckpt exclude each other", hint="give one of them")
    best = None
    if features is None and (ckpt is not None or source is None):
        path = find_checkpoint(ckpt)
        if ckpt is None:
            reporter.say(f"no --ckpt given: taking the newest run's, {path}")
        best = read_best(path)
    if source is None and features is not None:
        source = {}
    loaded: Loaded[ValidateSpec] = load_inference(source, best, ValidateSpec, data, overrides)
    spec = loaded.spec
    _require_metrics(spec.validation, require)
    block = require_data(spec)
    table, warnings = open_table(block, "evaluate", reporter, split)
    rows = take_split(table, split)
    if features is not None:
        embeddings, readable = read_features(Path(features), table, rows)
        origin, skipped = str(features), np.flatnonzero(~readable).tolist()
    else:
        context = open_context(spec.compute, reporter)
        extractor, origin = inference_extractor(spec, best, context)
        dataset = image_dataset(rows, spec.transforms.eval.build(), block)
        loader = row_loader(context, dataset, spec.validation)
        embeddings, readable, skipped = embed_rows(context, extractor, loader, block)
    found = evaluate_rows(embeddings, rows, spec.validation, reporter, readable=readable)
    paths = skipped_paths(rows, skipped, reporter)
    return _report(found, spec.validation, split, origin, warnings, started, paths)


def _report(
    found: Evaluation,
    validation: ValidationSpec,
    split: str,
    origin: str,
    warnings: list[str],
    started: float,
    skipped: list[str],
) -> ValidateReport:
    return ValidateReport(
        metrics=found.metrics,
        split=split,
        queries=found.queries,
        gallery=found.gallery,
        queries_without_match=found.queries_without_match,
        distance=validation.distance,
        embeddings=origin,
        skipped=skipped,
        warnings=[*warnings, *found.warnings],
        seconds=time.monotonic() - started,
    )


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
    """
    started = time.monotonic()
    validation = validation or ValidationSpec()
    found, warnings = open_table(
        DataSpec(table=str(table), root=None if root is None else str(root)), "evaluate", reporter, split
    )
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
    judged = evaluate_rows(tensor, rows, validation, reporter, readable=np.ones(len(rows), dtype=bool))
    return _report(judged, validation, split, "memory", warnings, started, [])


def row_loader(context: Context, dataset: ImageDataset, validation: ValidationSpec) -> RowLoader:
    """The loader of the rows to judge."""
    return RowLoader(context, dataset, batch_size=validation.batch_size, num_workers=validation.num_workers)


def embed_rows(
    context: Context, extractor: nn.Module, loader: RowLoader, data: DataSpec
) -> tuple[Tensor, np.ndarray, list[int]]:
    """Embeddings (N, D) of all rows on the device, which rows (N,) were readable, and those that were not."""
    count = len(loader.dataset)
    held: list[Tensor] = []

    def keep(rows: np.ndarray, found: Tensor) -> None:
        if not held:
            held.append(torch.zeros(count, found.shape[1], dtype=found.dtype, device=found.device))
        held[0][torch.from_numpy(rows).to(found.device)] = found

    skipped = embed(context, extractor, loader, keep, data=data, name="embed")
    readable = np.ones(count, dtype=bool)
    readable[skipped] = False
    return held[0] if held else torch.zeros(count, 1), readable, skipped


def skipped_paths(rows: Rows, skipped: list[int], reporter: Reporter) -> list[str]:
    """The paths of skipped rows, counted aloud."""
    paths = [str(rows.paths[row]) for row in skipped]
    if paths:
        shown = ", ".join(map(repr, paths[:3])) + (", ..." if len(paths) > 3 else "")
        reporter.warn(f"{len(paths)} of {len(rows)} images could not be read and were skipped: {shown}")
    return paths
