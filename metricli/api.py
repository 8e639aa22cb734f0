"""The verbs of metricli in Python: a spec (object, mapping or path) in, a frozen report out.

Nothing here imports torch until a verb that needs it runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from metricli.reporter import Reporter, SilentReporter
from metricli.reports import (
    DryRunReport,
    InspectReport,
    ParityReport,
    PredictReport,
    TrainReport,
    ValidateReport,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from metricli.runs.loading import ImageTransform
    from metricli.runs.parity import Trials
    from metricli.specs.load import Loaded, Source
    from metricli.specs.train import TrainSpec
    from metricli.specs.validate import ValidationSpec

DEVICE_VARIABLE = "METRICLI_DEVICE"

__all__ = [
    "check_processes",
    "dry_run",
    "evaluate",
    "inspect_dataset",
    "load_extractor",
    "merge",
    "predict",
    "report",
    "train",
    "validate",
]


def train(
    spec: Source,
    overrides: Sequence[str] = (),
    *,
    gpus: int | None = None,
    device: str | None = None,
    run_dir: str | Path | None = None,
    resume: str | Path | None = None,
    allow_change: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> TrainReport:
    """Train a model; `metricli train`.

    Args:
        spec: a TrainSpec, a mapping, or the path of a YAML file (its paths are relative to it).
        overrides: `key.sub=value` words.
        gpus, device: override `compute`.
        run_dir: the run directory itself; default `runs/<name>-<UTC>-<hex>`.
        resume: a run directory, or one of its step directories, to go on with; or "auto".
        allow_change: keys of the spec (or blocks) that may be other ones than when the run began.
        reporter: where live words go; default nowhere.

    Raises:
        MetricliError: see `metricli.errors` for the kinds.
    """
    asked = locals()
    loaded = _load_train(spec, _compute(gpus, device), tuple(overrides))
    from metricli.runs.request import done_by_others

    report: TrainReport | None = done_by_others("train", loaded.spec.compute, asked)
    if report is not None:
        return report
    from metricli.runs.context import translated_errors
    from metricli.runs.train import Asked
    from metricli.runs.train import train as run

    with translated_errors():
        return run(loaded, Asked(run_dir, resume, allow_change), reporter=reporter or SilentReporter())


def dry_run(
    spec: Source,
    overrides: Sequence[str] = (),
    *,
    gpus: int | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> DryRunReport:
    """Try one batch of each kind, with nothing written; `metricli train --dry-run`.

    Raises:
        MetricliError: whatever the real run would stop at so far.
    """
    asked = locals()
    loaded = _load_train(spec, _compute(gpus, device), tuple(overrides))
    from metricli.runs.request import done_by_others

    report: DryRunReport | None = done_by_others("dry_run", loaded.spec.compute, asked)
    if report is not None:
        return report
    from metricli.runs.context import translated_errors
    from metricli.runs.dry import dry_run as run

    with translated_errors():
        return run(loaded, reporter or SilentReporter())


def check_processes(
    spec: Source, overrides: Sequence[str] = (), *, reporter: Reporter | None = None
) -> ParityReport:
    """Whether two processes train a spec as one does; `metricli env --distributed`.

    Both take the first step in float64 on the CPU; batches, embeddings, loss and gradients are compared, and
    the likely cause of a difference is named. Nothing is written.

    Raises:
        MetricliError: whatever the run would stop at so far.
    """
    one, two = (
        first_step(spec, overrides, gpus=gpus, device="cpu", reporter=reporter or SilentReporter())
        for gpus in (1, 2)
    )
    from metricli.runs.parity import compared

    return compared(one, two)


def first_step(
    spec: Source,
    overrides: Sequence[str] = (),
    *,
    gpus: int | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Trials:
    """One step of a run, for `check_processes` to compare: see `metricli.runs.parity`."""
    asked = locals()
    loaded = _load_train(spec, _compute(gpus, device), tuple(overrides))
    from metricli.runs.request import done_by_others

    trials: Trials | None = done_by_others("first_step", loaded.spec.compute, asked)
    if trials is not None:
        return trials
    from metricli.runs.context import translated_errors
    from metricli.runs.parity import try_first_step

    with translated_errors():
        return try_first_step(loaded, reporter or SilentReporter())


def _load_train(spec: Source, compute: dict[str, Any], overrides: tuple[str, ...]) -> Loaded[TrainSpec]:
    from metricli.specs.data import ComputeSpec
    from metricli.specs.load import check_spec, load_spec
    from metricli.specs.train import TrainSpec

    if isinstance(spec, TrainSpec) and not overrides:  # as it is, its plugin objects kept
        if compute:
            chosen = ComputeSpec(**{**spec.compute.model_dump(), **compute})
            spec = spec.model_copy(update={"compute": chosen})
        loaded = load_spec(spec, TrainSpec)
    else:
        _refuse_lone_objects(spec, overrides)
        loaded = load_spec(spec, TrainSpec, _words(compute) + overrides)
    check_spec(loaded, None)
    return loaded


def _refuse_lone_objects(spec: Source, overrides: tuple[str, ...]) -> None:
    """Overrides are for words, and some objects have none.

    Raises:
        UsageError: naming them.
    """
    from metricli.errors import UsageError
    from metricli.specs.base import SpecModel
    from metricli.specs.load import plugins_of
    from metricli.specs.unregistered import is_registered, where

    if not isinstance(spec, SpecModel) or not overrides:
        return
    lone = [f"{path} {where(plugin)}" for path, plugin in plugins_of(spec) if not is_registered(plugin)]
    if lone:
        what = f"overrides go with words, and no installed package has {', '.join(lone)}"
        raise UsageError(what, hint="set the fields of the spec object instead")


def validate(
    spec: Source | None = None,
    overrides: Sequence[str] = (),
    *,
    ckpt: str | Path | None = None,
    features: str | Path | None = None,
    against: str | Path | None = None,
    data: str | Path | None = None,
    root: str | Path | None = None,
    split: str = "validation",
    gpus: int | None = None,
    device: str | None = None,
    require: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> ValidateReport:
    """Judge embeddings by retrieval; `metricli validate`.

    With `ckpt` its model is judged (on the spec's data, else on the checkpoint's); with `features` saved
    embeddings; with a spec alone the extractor as it builds it; with nothing the newest run below ./runs.
    `against` is another checkpoint, features file, or what an earlier `--out` saved for each query: the
    report's `comparison` then tells the two apart. `require` names metrics that must be computed; one that
    is not is a UsageError before any work is done.

    Raises:
        MetricliError: see `metricli.errors` for the kinds.
    """
    asked = locals()
    words = _words(_compute(gpus, device)) + tuple(overrides)
    if spec is not None and ckpt is None:
        from metricli.specs.load import check_spec, load_spec
        from metricli.specs.validate import ValidateSpec

        loaded = load_spec(spec, ValidateSpec, words)  # its problems are found before torch is imported
        check_spec(loaded, None)
    from metricli.runs.request import compute_of, done_by_others

    report: ValidateReport | None = done_by_others("validate", compute_of(spec, words), asked)
    if report is not None:
        return report
    from metricli.runs.context import translated_errors
    from metricli.runs.parts import data_override
    from metricli.runs.validate import validate as run

    with translated_errors():
        return run(
            spec,
            overrides=words,
            ckpt=ckpt,
            features=features,
            against=against,
            data=data_override(data, root),
            split=split,
            require=tuple(require),
            reporter=reporter or SilentReporter(),
        )


def predict(
    spec: Source | None = None,
    overrides: Sequence[str] = (),
    *,
    out: str | Path,
    ckpt: str | Path | None = None,
    data: str | Path | None = None,
    root: str | Path | None = None,
    split: str = "all",
    gpus: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    shard: str | None = None,
    reporter: Reporter | None = None,
) -> PredictReport:
    """Save the features of a trained model; `metricli predict`.

    What was cut off goes on when called again: finished rows lie in `OUT.part` until the end.

    Args:
        out: a .npy, .parquet or .safetensors file; an index (.index.csv) and a manifest (.json) beside it.
        data: a table or a folder of images; default the checkpoint's table.
        split: rows of this split, or "all".
        dtype: "float32" or "float16".
        shard: "i/n": the i-th of n contiguous parts of the rows, for `merge`.

    Raises:
        MetricliError: see `metricli.errors` for the kinds.
    """
    asked = locals()
    from metricli.specs.predict import parse_shard

    part = parse_shard(shard)
    words = (
        _words(_compute(gpus, device)) + ((f"prediction.dtype={dtype}",) if dtype else ()) + tuple(overrides)
    )
    from metricli.runs.request import compute_of, done_by_others

    report: PredictReport | None = done_by_others("predict", compute_of(spec, words), asked)
    if report is not None:
        return report
    from metricli.runs.context import translated_errors
    from metricli.runs.parts import data_override
    from metricli.runs.predict import predict as run

    with translated_errors():
        return run(
            spec,
            overrides=words,
            ckpt=ckpt,
            data=data_override(data, root),
            split=split,
            out=out,
            shard=part,
            reporter=reporter or SilentReporter(),
        )


def load_extractor(ckpt: str | Path | None = None) -> tuple[nn.Module, ImageTransform]:
    """The extractor of a checkpoint, and the transform from an image to what it takes.

    The extractor is in eval mode on the CPU and has `.dim`; the transform takes a PIL image or a path, and
    gives a tensor (3, height, width). A batch of them makes the features that `predict` saves.

    Args:
        ckpt: a best.ckpt, a run directory or one of its step directories; default the newest run's.

    Raises:
        CheckpointError: it is missing or damaged.
        SpecError: it names an extractor or transform that is not installed.
    """
    from metricli.runs.context import translated_errors
    from metricli.runs.loading import load_extractor as load

    with translated_errors():
        return load(ckpt)


def merge(parts: Sequence[str | Path], *, out: str | Path, reporter: Reporter | None = None) -> PredictReport:
    """Put the files of `predict(..., shard="i/n")` together, streaming; `metricli merge`.

    The result is the file, index and manifest that one `predict` without shards writes.

    Raises:
        DataError: the parts contradict each other, or are not every shard exactly once.
        UsageError: `out` cannot be written, or is one of them.
    """
    from metricli.runs.merge import merge as run

    return run([Path(part) for part in parts], Path(out), reporter=reporter or SilentReporter())


def evaluate(
    embeddings: np.ndarray | Tensor,
    table: str | Path,
    *,
    validation: ValidationSpec | None = None,
    root: str | Path | None = None,
    split: str = "validation",
    reporter: Reporter | None = None,
) -> ValidateReport:
    """Judge embeddings (N, D) that you have in memory; row i is row i of the table's `split`.

    Raises:
        DataError: another number of rows, a NaN or an infinity, or a table with errors.
        SpecError: `validation` contradicts itself or the table.
    """
    from metricli.runs.validate import evaluate as run

    return run(
        embeddings,
        table,
        validation=validation,
        root=root,
        split=split,
        reporter=reporter or SilentReporter(),
    )


def inspect_dataset(
    table: str | Path,
    *,
    root: str | Path | None = None,
    deep: bool = False,
    html: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> InspectReport:
    """Read and check a table (or the table of a spec); `metricli inspect-dataset`.

    Args:
        table: a CSV or parquet table, or a YAML spec whose `data` block names one.
        deep: decode every image and look for identical files; what is found is remembered (docs/images.md).
        html: write the findings there too, as a page with some of the images.
        on_progress: called with (images done, images in all).

    Raises:
        UsageError: `html` is no name of a page, or would replace a file that is none.
        DataError: the table cannot be read at all; anything less is a finding of the report.
        ResourceError: the page cannot be written.
    """
    from metricli.data.inspection import inspect_table
    from metricli.data.writing import require_page

    if html is not None:
        require_page(Path(html), "--html")
    if Path(table).suffix not in (".yaml", ".yml"):
        found = inspect_table(table, root=root, deep=deep, on_progress=on_progress)
        _write_dataset_page(html, found, root, deep)
        return found
    from metricli.errors import UsageError
    from metricli.specs.load import load_spec
    from metricli.specs.validate import ValidateSpec

    spec = load_spec(table, ValidateSpec).spec
    data = spec.data
    if data is None:
        raise UsageError(f"the spec {str(table)!r} has no data block", hint="give data: {table: ...}")
    found = inspect_table(
        data.table,
        root=root or data.root,
        deep=deep,
        max_pixels=data.max_pixels,
        allow_outside_root=data.allow_outside_root,
        own_gallery=spec.validation.gallery_table is None,
        on_progress=on_progress,
    )
    _write_dataset_page(html, found, root or data.root, deep, max_pixels=data.max_pixels)
    return found


def _write_dataset_page(
    html: str | Path | None,
    found: InspectReport,
    root: str | Path | None,
    deep: bool,
    *,
    max_pixels: int | None = None,
) -> None:
    if html is None:
        return
    from metricli.pages.dataset_page import write_dataset_page

    words = ["metricli", "inspect-dataset", str(Path(found.table).absolute())]
    words += ["--root", str(Path(root).absolute())] if root else []
    words += [*(["--deep"] if deep else []), "--html", str(Path(html).absolute())]
    write_dataset_page(found, Path(html), root=root, command=words, max_pixels=max_pixels)


def report(folder: str | Path) -> Path:
    """Make the `report.html` of a run directory, or of a folder of `validate --out`; `metricli report`.

    It is made of the files there, and of the images where they still are. A page that is there is replaced.

    Raises:
        DataError: the folder is neither, or a file of it is damaged.
        ResourceError: the page cannot be written.
    """
    from metricli.pages import write_page

    return write_page(Path(folder))


def _compute(gpus: int | None, device: str | None) -> dict[str, Any]:
    """Keys of `compute` to override: what the caller says, else METRICLI_DEVICE, else none."""
    from metricli.errors import UsageError
    from metricli.specs.data import Device

    if device is None and DEVICE_VARIABLE in os.environ:
        device = os.environ[DEVICE_VARIABLE]
        if device not in get_args(Device):
            raise UsageError(f"{DEVICE_VARIABLE} is {device!r}, expected auto, cpu, cuda or mps")
    given: dict[str, Any] = {"gpus": gpus, "device": device}
    return {key: value for key, value in given.items() if value is not None}


def _words(compute: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"compute.{key}={value}" for key, value in compute.items())
