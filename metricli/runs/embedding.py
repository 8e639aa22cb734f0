"""The embeddings that are judged: every row of a split through an extractor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from metricli.components.dataset import ImageDataset
from metricli.data.table import Rows
from metricli.errors import DataError, MetricliError, UsageError
from metricli.reporter import Reporter
from metricli.runs.context import Context
from metricli.runs.embed import RowLoader, embed
from metricli.runs.halting import NEVER, Halt
from metricli.runs.protocol import Judged
from metricli.runs.shared_rows import Host, complete, share, shared_matrix
from metricli.specs.data import DataSpec
from metricli.specs.validate import ValidationSpec

_SPARE = 2**28
"""Bytes that a search needs on a GPU beside the embeddings."""


def row_loader(context: Context, dataset: ImageDataset, validation: ValidationSpec) -> RowLoader:
    """The loader of the rows to judge: of this process's share of them."""
    return RowLoader(
        context,
        dataset,
        batch_size=validation.batch_size,
        num_workers=validation.num_workers,
        rows=share(context.world, len(dataset)),
    )


def embed_rows(
    context: Context,
    extractor: nn.Module,
    rows: Rows,
    loader: RowLoader,
    data: DataSpec,
    *,
    halt: Halt = NEVER,
) -> tuple[Judged, list[int]]:
    """Embeddings of all rows, and the rows that were not readable.

    They are on the device. Those of several processes are first brought together in one matrix on each host,
    and stay there, said so, if a GPU has no room for them.

    Raises:
        DataError: an image cannot be read, and `data.on_bad_image` is "raise".
        Interrupted: `halt` has a signal.
        NonFiniteError: an embedding is NaN or infinite.
        ResourceError: there is no room for what the processes of a host share.
        UsageError: several processes, and the extractor gives another type or size than it says.
    """
    world, count = context.world, len(loader.dataset)
    times = np.zeros(count, dtype=np.uint8)
    held: list[Tensor] = []
    host = Host.of(world)
    if world.size > 1:
        dtype = next((p.dtype for p in extractor.parameters()), torch.float32)
        held.append(shared_matrix(host, count, int(extractor.dim), dtype))  # type: ignore[arg-type]

    def keep(rows: np.ndarray, found: Tensor) -> None:
        if not held:
            with torch.inference_mode(False):
                held.append(torch.zeros(count, found.shape[1], dtype=found.dtype, device=found.device))
        _require_room(held[0], found)
        held[0][torch.from_numpy(rows).to(held[0].device)] = found.to(held[0].device, held[0].dtype)
        times[rows] += 1

    name = "embed" if world.size == 1 else f"embed (1 of {world.size} processes)"
    skipped = embed(context, extractor, loader, keep, data=data, name=name, halt=halt)
    times[skipped] += 1
    done, left_out, signums = zip(*world.gather((times, skipped, halt.signum())), strict=True)
    halt.heed_all(signums)
    _require_each_once(sum(done), rows)
    skipped = sorted(row for each in left_out for row in each)
    readable = np.ones(count, dtype=bool)
    readable[skipped] = False
    if world.size > 1:
        complete(host, held[0])
        held[0] = placed(context, held[0])
    return Judged(rows, held[0] if held else torch.zeros(count, 1), readable), skipped


def _require_room(matrix: Tensor, found: Tensor) -> None:
    """Refuse embeddings that a matrix made before they were known cannot hold exactly.

    Raises:
        UsageError: they have another dimension or a wider type.
    """
    exact = torch.promote_types(matrix.dtype, found.dtype) == matrix.dtype
    if found.shape[1] != matrix.shape[1] or not exact:
        said, given = (f"{x.shape[1]} dimensions of {x.dtype}" for x in (matrix, found))
        raise UsageError(
            f"the extractor says {said} and gives {given}".replace("torch.", ""),
            hint="tell the plugin's author, or use one process",
        )


def _require_each_once(times: np.ndarray, rows: Rows) -> None:
    """Refuse to judge rows of which one was lost or doubled.

    Raises:
        MetricliError: naming the first.
    """
    wrong = np.flatnonzero(times != 1)
    if len(wrong):
        path, count = str(rows.paths[wrong[0]]), int(times[wrong[0]])
        raise MetricliError(f"{len(wrong)} rows were not embedded once, the first, {path!r}, {count} times")


def placed(context: Context, matrix: Tensor) -> Tensor:
    """A matrix of the host on the device of this process, if every GPU has room for it and a selection."""
    if context.device.type != "cuda":
        return matrix
    size = matrix.numel() * matrix.element_size()
    free = min(context.world.gather(torch.cuda.mem_get_info(context.device)[0]))
    if 2 * size + _SPARE <= free:
        return matrix.to(context.device)
    context.reporter.warn(
        f"the embeddings ({size / 2**20:.0f} MB, twice) do not fit a GPU ({free / 2**20:.0f} MB are free): "
        "they are searched on the CPU"
    )
    return matrix


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


def skipped_paths(rows: Rows, skipped: list[int], reporter: Reporter, of: int | None = None) -> list[str]:
    """The paths of skipped rows, counted aloud: out of `of`, which is all rows unless they are a shard."""
    paths = [str(rows.paths[row]) for row in skipped]
    if paths:
        shown = ", ".join(map(repr, paths[:3])) + (", ..." if len(paths) > 3 else "")
        reporter.warn(f"{len(paths)} of {of or len(rows)} images could not be read and were skipped: {shown}")
    return paths
