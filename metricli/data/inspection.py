"""`inspect-dataset`: what a table holds, what is wrong with it, and a sampler to begin with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricli.data.checks import check_table, in_order
from metricli.data.deep import look_at_images
from metricli.data.facts import TableFacts
from metricli.data.images import DEFAULT_MAX_PIXELS
from metricli.data.looking import Images
from metricli.data.subject import Subject
from metricli.data.table import Table, read_table
from metricli.reports import InspectReport, SplitSummary

_BATCH = 64
"""Images in a suggested batch: enough negatives for mining, in 8 GB for a small model at 224 pixels."""
_SMALLEST_BATCH, _LARGEST_BATCH = 32, 128
_INSTANCES = 4


def inspect_table(
    path: str | Path,
    *,
    root: str | Path | None = None,
    deep: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    allow_outside_root: bool = False,
    own_gallery: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> InspectReport:
    """Read a table, check it and its files, and measure its images.

    Args:
        path: the CSV or parquet table.
        root: where relative paths start; the table's folder by default.
        deep: decode every image (on threads) and compare files, instead of reading a sample of headers.
        max_pixels: an image with more is unreadable.
        allow_outside_root: whether paths may leave `root`.
        own_gallery: whether its queries search its own gallery, not that of another table.
        on_progress: called with images done and images in all.

    Raises:
        DataError: the table cannot be read at all, or lacks a column that training needs.
    """
    table = read_table(path, root=root)
    findings = check_table(table, allow_outside_root=allow_outside_root, own_gallery=own_gallery)
    images = look_at_images(Subject(table, "train", "validation"), Images(deep, max_pixels, on_progress))
    return InspectReport(
        table=str(path),
        rows=len(table),
        findings=in_order([*findings, *images.findings]),
        splits=summarise_splits(table),
        images=images.summary,
        suggested=suggest_sampler(table.facts()),
    )


def summarise_splits(table: Table) -> dict[str, SplitSummary]:
    """Counts of every split, in order of appearance."""
    splits, names = table.codes("split")
    return {str(name): _summary(table, np.flatnonzero(splits == place)) for place, name in enumerate(names)}


def _summary(table: Table, rows: NDArray[np.int64]) -> SplitSummary:
    instances = np.bincount(table.codes("label")[0][rows])
    instances = instances[instances > 0]
    boxes = table.boxes.values
    return SplitSummary(
        rows=len(rows),
        labels=len(instances),
        categories=_distinct(table, "category", rows),
        sequences=_distinct(table, "sequence", rows),
        queries=int(((table.flags("is_query") == 1) & ~table.ignored)[rows].sum()),
        gallery=int(((table.flags("is_gallery") == 1) & ~table.ignored)[rows].sum()),
        boxes=0 if boxes is None else int((boxes[rows, 0] >= 0).sum()),
        instances_min=int(instances.min()),
        instances_median=float(np.median(instances)),
        instances_max=int(instances.max()),
        histogram=histogram(instances),
    )


def _distinct(table: Table, name: str, rows: NDArray[np.int64]) -> int:
    codes, words = table.codes(name)
    return int((words[np.unique(codes[rows])] != "").sum())


def histogram(instances: NDArray[np.int64]) -> list[tuple[str, int]]:
    """How many labels have 1, 2-3, 4-7, 8-15, ... instances, from the first bin in use to the last."""
    powers = np.frexp(instances)[1] - 1
    counts = np.bincount(powers)
    bins = []
    for power in range(int(powers.min()), len(counts)):
        low, high = 2**power, 2 ** (power + 1) - 1
        bins.append((str(low) if low == high else f"{low}-{high}", int(counts[power])))
    return bins


def suggest_sampler(facts: TableFacts) -> dict[str, Any]:
    """`n_labels`, `n_instances` and `why` for a balanced sampler; empty with fewer than 2 train labels."""
    if facts.train_labels < 2:
        return {}
    n_instances = int(min(_INSTANCES, max(2, facts.instances_median)))
    wanted = _BATCH // n_instances
    n_labels = min(wanted, facts.train_labels)
    batch = n_labels * n_instances
    if batch < _SMALLEST_BATCH:
        # Few labels: more instances of each fill the batch, as far as the typical label has them.
        n_instances = max(n_instances, min(int(facts.instances_median), _SMALLEST_BATCH // n_labels))
        batch = n_labels * n_instances
    why = [_why_instances(n_instances, facts), _why_labels(n_labels, wanted, batch)]
    return {"n_labels": n_labels, "n_instances": n_instances, "why": why}


def _why_instances(n_instances: int, facts: TableFacts) -> str:
    median = f"the median train label has {facts.instances_median:g}"
    if facts.instances_median < 2:
        return f"n_instances {n_instances}: {median}, and no positive pair can be formed from fewer than 2"
    if n_instances > _INSTANCES:
        return f"n_instances {n_instances}: few labels, so more instances of each fill the batch; {median}"
    if n_instances < _INSTANCES:
        return f"n_instances {n_instances}: {median}, and more would be refilled with repeats"
    return f"n_instances {n_instances}: {median}, and more than {_INSTANCES} would cost labels in the batch"


def _why_labels(n_labels: int, wanted: int, batch: int) -> str:
    if n_labels < wanted:
        return f"n_labels {n_labels}: every train label is in each batch of {batch} images"
    fits = f"a batch of {batch} images gives enough negatives and fits most GPUs"
    return f"n_labels {n_labels}: {fits} ({_SMALLEST_BATCH} to {_LARGEST_BATCH} is usual)"
