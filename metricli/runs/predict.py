"""`metricli predict`: the features of every row, written as they come."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from torch import Tensor

from metricli.components.tensorfile import file_sha256
from metricli.data.checks import check_table, require_sound
from metricli.data.table import Table, folder_table
from metricli.errors import DataError, ResourceError, UsageError
from metricli.reporter import Reporter
from metricli.reports import PredictReport
from metricli.runs.checkpoints import read_best
from metricli.runs.context import open_context
from metricli.runs.directory import find_checkpoint
from metricli.runs.embed import RowLoader, embed
from metricli.runs.embedding import skipped_paths
from metricli.runs.features import FeatureFile, beside, check_out, refuse_foreign
from metricli.runs.parts import (
    image_dataset,
    inference_extractor,
    load_inference,
    open_table,
    require_data,
    take_split,
)
from metricli.specs.data import DataSpec
from metricli.specs.load import Loaded, Source
from metricli.specs.predict import PredictSpec


def predict(
    source: Source | None,
    *,
    overrides: tuple[str, ...],
    ckpt: str | Path | None,
    data: dict[str, str],
    split: str,
    out: str | Path,
    reporter: Reporter,
) -> PredictReport:
    """Write features, index and manifest.

    Raises:
        MetricliError: see errors.py for the kinds.
    """
    started = time.monotonic()
    target = Path(out)
    check_out(target)
    path = find_checkpoint(ckpt)
    if ckpt is None:
        reporter.say(f"no --ckpt given: taking the newest run's, {path}")
    best = read_best(path)
    loaded: Loaded[PredictSpec] = load_inference(source, best, PredictSpec, data, overrides)
    spec = loaded.spec
    block = require_data(spec)
    _refuse_replacing(target, block)
    table, warnings = _open_images(block, reporter)
    rows = take_split(table, split)
    context = open_context(spec.compute, reporter)
    extractor, _ = inference_extractor(spec, best, context)
    dataset = image_dataset(rows, spec.transforms.eval.build(), block)
    options = spec.prediction
    loader = RowLoader(context, dataset, batch_size=options.batch_size, num_workers=options.num_workers)
    file = FeatureFile(target, rows, options.dtype)

    def keep(at: np.ndarray, features: Tensor) -> None:
        if not file.dim:
            file.begin(features.shape[1])
        file.write(at, features.cpu().numpy())

    done = False
    try:
        skipped = embed(context, extractor, loader, keep, data=block, name="predict")
        if not file.dim:
            raise DataError(f"none of the {len(rows)} images could be read")
        file.finish(skipped, {"ckpt": str(path), "ckpt_sha256": file_sha256(path), "split": split})
        done = True
    except OSError as error:
        raise ResourceError(
            f"cannot write {str(target)!r}: {error.strerror}", hint="free some space"
        ) from None
    finally:
        if not done:
            file.discard()
    return PredictReport(
        out=target,
        index=file.index,
        manifest=file.manifest,
        rows=len(rows),
        dim=file.dim,
        dtype=file.dtype,
        ckpt=str(path),
        skipped=skipped_paths(rows, skipped, reporter),
        warnings=warnings,
        seconds=time.monotonic() - started,
    )


def _refuse_replacing(out: Path, data: DataSpec) -> None:
    table = Path(data.table)
    for place in (out, *beside(out)):
        if place.exists() and table.exists() and place.samefile(table):
            what = f"--out {str(out)!r} would replace the table {data.table!r}"
            raise UsageError(what, hint="give another name")
    refuse_foreign(out)


def _open_images(data: DataSpec, reporter: Reporter) -> tuple[Table, list[str]]:
    if not Path(data.table).is_dir():
        return open_table(data, "predict", reporter)
    if data.root is not None:
        what = f"--root {data.root!r} with the folder {data.table!r}, whose images' paths start from itself"
        raise UsageError(what, hint="leave --root out")
    table, others = folder_table(data.table)
    findings = check_table(table, need="predict", allow_outside_root=data.allow_outside_root)
    try:
        warnings = [finding.message for finding in require_sound(findings, data.table)]
    except DataError as error:  # its hint is for tables
        hint = "repair or remove these files, or give a table of the images to take"
        raise DataError(error.message, hint=hint) from None
    if others:
        listed = ", ".join(
            f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(others.items())
        )
        warnings.append(f"files that are no images were left out: {listed}")
    for message in warnings:
        reporter.warn(message)
    return table, warnings
