"""Run an extractor over the rows of a data set, in row order, and hand the embeddings on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from metricli.components.dataset import Batch, ImageDataset, image_loader
from metricli.errors import DataError, NonFiniteError
from metricli.runs.context import Context
from metricli.specs.data import DataSpec

Sink = Callable[[np.ndarray, Tensor], None]


class RowLoader:
    """Every row of a data set once, in order, in batches; its workers live as long as it does."""

    def __init__(
        self, context: Context, dataset: ImageDataset, *, batch_size: int, num_workers: int | None
    ) -> None:
        rows = range(len(dataset))
        self.dataset = dataset
        self.batches = [
            list(rows[start : start + batch_size]) for start in range(0, len(dataset), batch_size)
        ]
        self.loader = image_loader(
            dataset,
            self.batches,
            num_workers=context.workers(num_workers, len(dataset)),
            pin_memory=context.device.type == "cuda",
        )


def embed(
    context: Context, extractor: nn.Module, rows: RowLoader, sink: Sink, *, data: DataSpec, name: str
) -> list[int]:
    """Call `sink(rows (B,), embeddings (B, D) on the device)` for each batch; the rows left out come back.

    The extractor is put into eval mode and back; it runs in the type of its parameters, outside autocast, so
    that every verb sees the same embeddings.

    Raises:
        DataError: an image cannot be read, and `data.on_bad_image` is "raise".
        NonFiniteError: an embedding is NaN or infinite.
    """
    dataset = rows.dataset
    dtype = next((p.dtype for p in extractor.parameters()), torch.float32)
    skipped: list[int] = []
    was_training = extractor.training
    extractor.eval()
    context.reporter.begin(name, len(dataset), "image")
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


def _refuse_non_finite(embeddings: Tensor, rows: Tensor, dataset: ImageDataset) -> None:
    finite = torch.isfinite(embeddings).all(1)
    if not bool(finite.all()):
        row = int(rows[int((~finite).nonzero()[0])])
        raise NonFiniteError(
            f"the embedding of {str(dataset.paths[row])!r} is NaN or infinite",
            hint="the weights are damaged or training diverged; try a lower learning rate",
        )
