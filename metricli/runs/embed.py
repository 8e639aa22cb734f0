"""Run an extractor over rows of a data set, in their order, and hand the embeddings on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from metricli.components.dataset import Batch, ImageDataset
from metricli.components.loading import image_loader
from metricli.errors import DataError, NonFiniteError
from metricli.runs.context import Context
from metricli.runs.halting import NEVER, Halt
from metricli.specs.data import DataSpec

Sink = Callable[[np.ndarray, Tensor], None]


class RowNumbers(Protocol):
    """Row numbers, such as a range: their count, and those from one place to another."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: slice, /) -> Sequence[int]: ...


class Batches:
    """Rows in their order, `size` at a time; made as they are asked for."""

    def __init__(self, rows: RowNumbers, size: int) -> None:
        self.rows = rows
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.rows), self.size):
            yield list(self.rows[start : start + self.size])


class RowLoader:
    """Rows of a data set, all by default, once, in order, in batches; its workers live as long as it does."""

    def __init__(
        self,
        context: Context,
        dataset: ImageDataset,
        *,
        batch_size: int,
        num_workers: int | None,
        rows: RowNumbers | None = None,
    ) -> None:
        self.dataset = dataset
        self.rows: RowNumbers = range(len(dataset)) if rows is None else rows
        self.batches = Batches(self.rows, batch_size)
        self.loader = image_loader(
            dataset,
            self.batches,
            num_workers=context.workers(num_workers, len(self.rows)),
            pin_memory=context.device.type == "cuda",
        )


def embed(
    context: Context,
    extractor: nn.Module,
    rows: RowLoader,
    sink: Sink,
    *,
    data: DataSpec,
    name: str,
    halt: Halt = NEVER,
) -> list[int]:
    """Call `sink(rows (B,), embeddings (B, D) on the device)` for each batch; the rows left out come back.

    The extractor is put into eval mode and back; it runs in the type of its parameters, outside autocast, so
    that every verb sees the same embeddings. It ends early, silently, where `halt` has a signal.

    Raises:
        DataError: an image cannot be read, and `data.on_bad_image` is "raise".
        NonFiniteError: an embedding is NaN or infinite.
    """
    dataset = rows.dataset
    dtype = next((p.dtype for p in extractor.parameters()), torch.float32)
    skipped: list[int] = []
    was_training = extractor.training
    extractor.eval()
    context.reporter.begin(name, len(rows.rows), "image")
    try:
        with torch.inference_mode():
            for asked, batch in zip(rows.batches, rows.loader, strict=True):
                refuse_bad(batch.bad, data)
                skipped += [row for row, _ in batch.bad]
                if len(batch.rows):
                    found = extractor(batch.images.to(context.device, dtype, non_blocking=True))
                    _refuse_non_finite(found, batch.rows, dataset)
                    sink(batch.rows.numpy(), found)
                context.reporter.advance(len(asked))
                if halt.signum():
                    break
    finally:
        context.reporter.end()
        extractor.train(was_training)
    return skipped


def refuse_bad(bad: list[tuple[int, str]], data: DataSpec) -> None:
    """Stop at the first image that cannot be read, unless they are to be skipped.

    Raises:
        DataError: naming it.
    """
    if bad and data.on_bad_image == "raise":
        raise DataError(bad[0][1], hint="repair or remove it, or set data.on_bad_image=skip")


def refuse_empty(batch: Batch) -> None:
    """Stop at a batch of which no image could be read.

    Raises:
        DataError: naming the first of them.
    """
    if len(batch.rows) == 0:
        hint = "`metricli inspect-dataset --deep` lists every image that cannot be read"
        raise DataError(f"no image of a batch can be read: {batch.bad[0][1]}, ...", hint=hint)


def refuse_missing(missing: int, bad: list[tuple[int, str]]) -> None:
    """Stop at a training batch in which nothing can take the place of `missing` bad images.

    Raises:
        DataError: naming the first bad one.
    """
    if missing:
        places = f"{missing} place{'' if missing == 1 else 's'}"
        hint = "`metricli inspect-dataset --deep` lists every image that cannot be read"
        raise DataError(f"no image can be read for {places} of a batch: {bad[0][1]}, ...", hint=hint)


def _refuse_non_finite(embeddings: Tensor, rows: Tensor, dataset: ImageDataset) -> None:
    finite = torch.isfinite(embeddings).all(1)
    if not bool(finite.all()):
        row = int(rows[int((~finite).nonzero()[0])])
        raise NonFiniteError(
            f"the embedding of {str(dataset.paths[row])!r} is NaN or infinite",
            hint="the weights are damaged or training diverged; try a lower learning rate",
        )
