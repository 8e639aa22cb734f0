"""Which images were in a step whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from metricli.components.dataset import Batch
from metricli.errors import NonFiniteError

SHOWN = 10
"""Images that a message names."""


def non_finite(
    what: str,
    step: int,
    batch: Batch | None = None,
    embeddings: Tensor | None = None,
    paths: Sequence[str] | NDArray[Any] = (),
) -> NonFiniteError:
    """The error of a step whose `what` is not finite, with the images to look at.

    Those whose pixels are not finite, else those whose embeddings (B, D) are not, else all of the batch; by
    path, or by row of the train split where the paths are not known.
    """
    message = f"the {what} is NaN or infinite at step {step + 1}; this step was not taken"
    if batch is not None and len(batch.rows):
        message += "; " + _whose(batch, embeddings, paths)
    return NonFiniteError(
        message,
        hint="look at the images, or try a lower learning rate, warm-up, training.grad_clip_norm, or "
        "precision fp32; what was saved before this step is good",
    )


def _whose(batch: Batch, embeddings: Tensor | None, paths: Sequence[str] | NDArray[Any]) -> str:
    count = len(batch.rows)
    for thing, values in (("pixels", batch.images), ("embeddings", embeddings)):
        if values is None:
            continue
        bad = ~torch.isfinite(values.detach().flatten(1)).all(1).cpu()
        if bool(bad.any()):
            rows = batch.rows[bad].tolist()
            return f"the {thing} of {len(rows)} of its {count} images are not finite: {_named(rows, paths)}"
    return f"its {count} images: {_named(batch.rows.tolist(), paths)}"


def _named(rows: list[int], paths: Sequence[str] | NDArray[Any]) -> str:
    unique = list(dict.fromkeys(rows))
    names = [repr(str(paths[row])) if len(paths) else f"row {row}" for row in unique[:SHOWN]]
    return ", ".join([*names, "..."] if len(unique) > SHOWN else names)
