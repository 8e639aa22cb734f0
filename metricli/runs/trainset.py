"""The training rows as integers: labels, categories, batches and the loader over them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from metricli.components.dataset import ImageDataset
from metricli.components.loading import image_loader
from metricli.data.table import Rows, Table
from metricli.errors import DataError, Problem, SpecError, UsageError
from metricli.runs.batches import EpochBatches, ShuffledBatches
from metricli.runs.context import Context
from metricli.runs.parts import image_dataset
from metricli.runs.processes import World
from metricli.specs.kinds import BatchSampler
from metricli.specs.train import TrainSpec


@dataclass(frozen=True)
class TrainSet:
    """What the loop iterates over, and the label map: integer label i is `labels[i]`."""

    rows: Rows
    dataset: ImageDataset
    batches: EpochBatches
    loader: DataLoader[Any]
    labels: list[str]
    label_to_category: list[int] | None
    steps_per_epoch: int

    @cached_property
    def digest(self) -> str:
        """sha256 over the rows as training sees them: paths, labels, categories and boxes, in order."""
        rows, digest = self.rows, hashlib.sha256()
        for column in (rows.paths, rows.labels, rows.categories):
            digest.update("\0".join(column.tolist()).encode("utf-8", "surrogatepass") + b"\1")
        digest.update(b"" if rows.boxes is None else rows.boxes.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class LabelCodes:
    """The train rows with their labels (N,) as 0..L-1, by sorted text, and their categories (N,) likewise."""

    rows: Rows
    names: list[str]
    labels: np.ndarray
    categories: np.ndarray | None
    label_to_category: list[int] | None


def code_labels(table: Table) -> LabelCodes:
    """The train rows of a table as samplers and losses see them.

    Raises:
        DataError: there are none.
    """
    rows = table.split("train")
    if len(rows) == 0:
        raise DataError(f"{table.source} has no train rows", hint="set split to 'train' for some")
    names, labels = np.unique(np.asarray(rows.labels, dtype=str), return_inverse=True)
    return LabelCodes(rows, names.tolist(), labels, *_categories(rows, labels, len(names)))


def build_train_set(spec: TrainSpec, table: Table, context: Context) -> TrainSet:
    """The training set of a spec; labels map to 0..L-1 by sorted text.

    Raises:
        DataError: there are no training rows.
        SpecError: the sampler refuses the table.
    """
    codes = code_labels(table)
    rows, labels = codes.rows, codes.labels
    try:
        if spec.sampler is not None:
            sampler = spec.sampler.build(labels=labels, categories=codes.categories, seed=spec.seed)
        else:
            assert spec.training.batch_size is not None
            sampler = ShuffledBatches(len(rows), batch_size=spec.training.batch_size, seed=spec.seed)
    except ValueError as error:
        place = "sampler" if spec.sampler is not None else "training.batch_size"
        raise SpecError("the spec", [Problem(place, str(error))]) from None
    _require_enough(sampler, context.world)
    dataset = image_dataset(
        rows,
        spec.transforms.train.build(),
        spec.data,
        labels=labels,
        seed=spec.seed,
        replace_bad=spec.data.on_bad_image == "skip",
    )
    batches = EpochBatches(sampler, rank=context.world.rank, world=context.world.size)
    loader = image_loader(
        dataset,
        batches,
        num_workers=context.workers(spec.training.num_workers, len(rows)),
        pin_memory=context.device.type == "cuda",
    )
    return TrainSet(rows, dataset, batches, loader, codes.names, codes.label_to_category, len(sampler))


def _require_enough(sampler: BatchSampler, world: World) -> None:
    """Refuse batches of fewer images than there are processes.

    Raises:
        UsageError: naming both numbers.
    """
    if world.size > 1:
        sampler.set_epoch(0)
        images = min(len(batch) for batch in sampler)
        if images < world.size:
            what = f"a batch of {images} images cannot be dealt to {world.size} processes"
            raise UsageError(what, hint="make the batch larger, or start fewer processes")


def _categories(rows: Rows, labels: np.ndarray, count: int) -> tuple[np.ndarray | None, list[int] | None]:
    """Category codes (N,), and the category of each label; None where a row lacks one or a label has two."""
    if (rows.categories == "").any():
        return None, None
    _, categories = np.unique(rows.categories.astype(str), return_inverse=True)
    of_label = np.zeros(count, dtype=np.int64)
    of_label[labels] = categories
    consistent = bool((of_label[labels] == categories).all())
    return categories, of_label.tolist() if consistent else None
