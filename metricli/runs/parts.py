"""What the verbs build the same way: the checked table, the extractor, the evaluation data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metricli.components.dataset import ImageDataset
from metricli.components.losses import WeightedSum
from metricli.data.checks import check_table, require_sound
from metricli.data.table import Need, Rows, Table, read_table
from metricli.errors import DataError, UsageError
from metricli.reporter import Reporter
from metricli.reports import Finding
from metricli.runs.checkpoints import BestCheckpoint, replace_data, spec_of
from metricli.runs.context import Context
from metricli.runs.fitting import extractor_for, refuse_lookups
from metricli.specs.data import DataSpec
from metricli.specs.kinds import ExtractorSpec
from metricli.specs.load import Loaded, Source, check_spec, read_document, validate_document
from metricli.specs.suggest import did_you_mean
from metricli.specs.train import TrainSpec
from metricli.specs.validate import InferenceSpec

_UNMATCHED = "query-without-match"
"""A finding that the evaluation itself reports, which knows the gallery in use and what becomes of such
queries. In training it is said all the same: the evaluation comes an epoch later, and in a dry run never."""
_MANY = 1_000_000
"""Rows from which on looking for their images takes seconds."""
_OF_QUERIES = ("no-queries", _UNMATCHED, "query-finds-itself")
"""Findings that do not concern a table whose gallery alone is searched."""


def open_table(
    data: DataSpec,
    need: Need,
    reporter: Reporter,
    split: str = "validation",
    *,
    images: bool = True,
    queries: bool = True,
    own_gallery: bool = True,
) -> tuple[Table, list[str]]:
    """Read and check the table, judging the queries of `split`; its warnings are said and given back.

    With `images` False no image is looked for; with `queries` False the table is a gallery alone, and with
    `own_gallery` False its queries search another table's.

    Raises:
        DataError: it cannot be read, or has errors.
    """
    table = read_table(data.table, root=data.root, need=need)
    outside = data.allow_outside_root
    how = {"need": need, "files": images, "allow_outside_root": outside, "split": split}
    findings = check_aloud(table, reporter, **how, own_gallery=own_gallery)
    dropped = () if queries else _OF_QUERIES
    if need == "evaluate":
        dropped = (*dropped, _UNMATCHED)
    findings = [finding for finding in findings if finding.code not in dropped]
    warnings = [finding.message for finding in require_sound(findings, data.table)]
    for message in warnings:
        reporter.warn(message)
    return table, warnings


def check_aloud(table: Table, reporter: Reporter, **how: Any) -> list[Finding]:
    """`check_table`, with its progress where there are many files to look for."""
    if len(table) < _MANY:
        return check_table(table, **how)
    reporter.begin("look for images", len(table), "row")
    try:
        return check_table(table, **how, on_progress=reporter.advance)
    finally:
        reporter.end()


def check_with_table(loaded: Loaded[Any], table: Table, split: str, reporter: Reporter) -> list[str]:
    """Check a spec against the table whose `split` is judged; its warnings are said and given back.

    Raises:
        SpecError: the blocks contradict each other or the table.
    """
    spec = loaded.spec
    asked = isinstance(spec, TrainSpec) or spec.validation.postprocessors  # a million rows take 0.3 s
    found = check_spec(loaded, table.facts(split) if asked else None)
    warnings = [f"{problem.path}: {problem.message}" for problem in found]
    for message in warnings:
        reporter.warn(message)
    return warnings


def take_split(table: Table, split: str) -> Rows:
    """The rows of one split.

    Raises:
        DataError: the table has none.
    """
    rows = table.split(split)
    if len(rows) == 0:
        there = sorted(set(table.strings("split")) - {""})
        near = did_you_mean(split, there)
        known = ", ".join(map(repr, there[:10])) or "none"
        raise DataError(f"{table.source} has no rows with split {split!r}{near or ';'} splits: {known}")
    return rows


def image_dataset(rows: Rows, transform: Any, data: DataSpec, **training: Any) -> ImageDataset:
    """The data set of some rows; `training` are the labels, seed and policy that only training has."""
    return ImageDataset(
        root=rows.root,
        paths=rows.paths,
        boxes=rows.boxes,
        transform=transform,
        max_pixels=data.max_pixels,
        **training,
    )


def built_extractor(
    spec: ExtractorSpec, *, dtype: torch.dtype, best: BestCheckpoint | None = None
) -> nn.Module:
    """The extractor of a spec, checked to say its `dim`; with `best` one that its weights are for.

    Raises:
        UsageError: it does not.
        CheckpointError: the weights of `best` are of another one.
    """
    extractor = (
        spec.build(load_weights=True) if best is None else extractor_for(spec, best.weights, best.path)
    )
    if not isinstance(getattr(extractor, "dim", None), int):
        name = getattr(spec, "name", "?")
        raise UsageError(
            f"the extractor {name!r} has no int attribute 'dim'", hint="tell the plugin's author"
        )
    return extractor.to(dtype)


def built_loss(
    spec: TrainSpec, *, dim: int, num_labels: int, label_to_category: list[int] | None
) -> nn.Module:
    """The loss of a spec, or the weighted sum of its list of losses.

    Stats of a sum begin with the name of their loss, and its place in the list where it is named twice.
    """
    names = [getattr(loss, "name", type(loss).__name__) for _, loss in spec.losses]
    losses = [
        loss.build(dim=dim, num_labels=num_labels, label_to_category=label_to_category)
        for _, loss in spec.losses
    ]
    if not isinstance(spec.loss, list):
        return losses[0]
    return WeightedSum(
        losses=losses,
        weights=[weight for weight, _ in spec.losses],
        names=[f"{name}_{i}" if names.count(name) > 1 else name for i, name in enumerate(names)],
    )


def load_inference(
    source: Source | None,
    best: BestCheckpoint | None,
    model: type[InferenceSpec],
    data: Mapping[str, Any],
    overrides: tuple[str, ...],
) -> Loaded[Any]:
    """The spec of validate or predict, from a checkpoint, a spec, or both.

    Raises:
        SpecError: with every problem.
        UsageError: neither is given.
    """
    if best is not None:
        loaded = spec_of(best, source, model, data, overrides)
        refuse_lookups(loaded.spec, best.path)
        return loaded
    if source is None:
        raise UsageError("neither a SPEC nor a checkpoint is given")
    document, base = read_document(source)
    replace_data(document, data)
    return validate_document(document, base, model, overrides)


def inference_extractor(
    spec: InferenceSpec, best: BestCheckpoint | None, context: Context
) -> tuple[nn.Module, str]:
    """The extractor to judge or predict with, on its device in eval mode, and where its weights are from.

    Raises:
        CheckpointError: the weights do not fit.
        UsageError: the spec has no extractor.
    """
    if spec.extractor is None:
        raise UsageError("the spec has no extractor", hint="add extractor: {name: timm, model: resnet18}")
    dtype = best.dtype if best else torch.float32
    torch.manual_seed(spec.seed)
    extractor = built_extractor(spec.extractor, best=best, dtype=dtype)
    if best is not None:
        best.load_into(extractor)
        origin = str(best.path)
    else:
        origin = "the extractor as the spec builds it"
    return extractor.to(context.device).eval(), origin


def data_override(table: str | Path | None, root: str | Path | None) -> dict[str, str]:
    """`--data` and `--root` as keys of the data block, absolute."""
    given = {"table": table, "root": root}
    return {key: str(Path(value).absolute()) for key, value in given.items() if value is not None}


def require_data(spec: InferenceSpec | TrainSpec) -> DataSpec:
    """The data block.

    Raises:
        UsageError: there is none.
    """
    if spec.data is None:
        raise UsageError("no table is given", hint="give --data TABLE, or data: {table: ...} in the spec")
    return spec.data
