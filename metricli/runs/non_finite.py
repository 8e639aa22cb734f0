"""Which images were in a step whose loss or gradient is not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from metricli.errors import NonFiniteError

SHOWN = 10
"""Images that a message names."""


def non_finite(
    what: str,
    step: int,
    rows: Sequence[int] = (),
    bad: Mapping[str, Tensor] = MappingProxyType({}),
    paths: Sequence[str] | NDArray[Any] = (),
) -> NonFiniteError:
    """The error of a step whose `what` is not finite, with the images to look at.

    `bad` tells which of the batch's `rows` (B,) have something that is not finite, by what: the first of
    these that names any counts, else all of the batch is named; by path, or by row of the train split where
    the paths are not known.
    """
    message = f"the {what} is NaN or infinite at step {step + 1}; this step was not taken"
    if len(rows):
        message += "; " + _whose(rows, bad, paths)
    return NonFiniteError(
        message,
        hint="look at the images, or try a lower learning rate, warm-up, training.grad_clip_norm, or "
        "precision fp32; what was saved before this step is good",
    )


def not_finite(values: Tensor) -> Tensor:
    """Which rows (B,) of values (B, ...) hold one that is not finite; on the CPU."""
    return ~torch.isfinite(values.detach().flatten(1)).all(1).cpu()


def _whose(rows: Sequence[int], bad: Mapping[str, Tensor], paths: Sequence[str] | NDArray[Any]) -> str:
    for thing, which in bad.items():
        if bool(which.any()):
            chosen = [row for row, is_bad in zip(rows, which.tolist(), strict=True) if is_bad]
            named = _named(chosen, paths)
            return f"the {thing} of {len(chosen)} of its {len(rows)} images are not finite: {named}"
    return f"its {len(rows)} images: {_named(rows, paths)}"


def _named(rows: Sequence[int], paths: Sequence[str] | NDArray[Any]) -> str:
    unique = list(dict.fromkeys(rows))
    names = [repr(str(paths[row])) if len(paths) else f"row {row}" for row in unique[:SHOWN]]
    return ", ".join([*names, "..."] if len(unique) > SHOWN else names)
