"""The embeddings that are judged: every row of a split through an extractor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from metricli.components.dataset import ImageDataset
from metricli.data.table import Rows
from metricli.errors import DataError
from metricli.reporter import Reporter
from metricli.runs.context import Context
from metricli.runs.embed import RowLoader, embed
from metricli.runs.protocol import Judged
from metricli.specs.data import DataSpec
from metricli.specs.validate import ValidationSpec


def row_loader(context: Context, dataset: ImageDataset, validation: ValidationSpec) -> RowLoader:
    """The loader of the rows to judge."""
    return RowLoader(context, dataset, batch_size=validation.batch_size, num_workers=validation.num_workers)


def embed_rows(
    context: Context, extractor: nn.Module, rows: Rows, loader: RowLoader, data: DataSpec
) -> tuple[Judged, list[int]]:
    """Embeddings of all rows on the device, and the rows that were not readable."""
    count = len(loader.dataset)
    held: list[Tensor] = []

    def keep(rows: np.ndarray, found: Tensor) -> None:
        if not held:
            held.append(torch.zeros(count, found.shape[1], dtype=found.dtype, device=found.device))
        held[0][torch.from_numpy(rows).to(found.device)] = found

    skipped = embed(context, extractor, loader, keep, data=data, name="embed")
    readable = np.ones(count, dtype=bool)
    readable[skipped] = False
    return Judged(rows, held[0] if held else torch.zeros(count, 1), readable), skipped


def images_of(dataset: ImageDataset, device: torch.device, places: Tensor) -> Tensor:
    """The images (n, 3, H, W) of some rows (n,), read anew.

    Raises:
        DataError: one cannot be read.
    """
    items = [dataset[int(place)] for place in places]
    bad = next((item.bad for item in items if item.image is None), None)
    if bad is not None:
        raise DataError(bad[0][1])
    return torch.stack([item.image for item in items if item.image is not None]).to(device)


def skipped_paths(rows: Rows, skipped: list[int], reporter: Reporter) -> list[str]:
    """The paths of skipped rows, counted aloud."""
    paths = [str(rows.paths[row]) for row in skipped]
    if paths:
        shown = ", ".join(map(repr, paths[:3])) + (", ..." if len(paths) > 3 else "")
        reporter.warn(f"{len(paths)} of {len(rows)} images could not be read and were skipped: {shown}")
    return paths
