"""Distances between embeddings, safe in half precision and in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Distance = Literal["euclidean", "cosine"]

__all__ = [
    "Distance",
    "at_least_float32",
    "batch_distances",
    "paired_distances",
    "pairwise_distances",
    "safe_sqrt",
    "unit_rows",
]


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 if it is a half type, else `x`: half sums of squares overflow and cancel."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root, 0 with gradient 0 (not infinite) at and below 0; NaN stays NaN; same shape as `x`."""
    root: Tensor = _SafeSqrt.apply(x)
    return root


class _SafeSqrt(torch.autograd.Function):
    """In few passes over `x`: between large matrices memory is what costs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        root = x.clamp(min=0).sqrt_()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        slope: Tensor = (0.5 / root).masked_fill_(root == 0, 0.0)
        return slope.mul_(upstream)


def unit_rows(x: Tensor) -> Tensor:
    """Rows of `x` (N, D) divided by their norms; a zero row stays zero.

    The gradient at a zero row is finite, where `torch.nn.functional.normalize` multiplies it by 1e12.
    """
    norms = safe_sqrt(x.square().sum(1, keepdim=True))
    return x / torch.where(norms > 1e-12, norms, 1.0)


def pairwise_distances(x: Tensor, y: Tensor, distance: Distance = "euclidean") -> Tensor:
    """Distances (N, M) between the rows of `x` (N, D) and `y` (M, D).

    Euclidean: ||x - y||, by the expansion ||x||² + ||y||² - 2x·y. Cosine: 1 - cos(x, y), in [0, 2].
    Computed outside autocast in the wider of the two types, float32 at least. The gradient at equal rows is
    0, never NaN.

    Raises:
        ValueError: `distance` is neither "euclidean" nor "cosine".
    """
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(at_least_float32(x).dtype, at_least_float32(y).dtype)
        x, y = _both(lambda rows: rows.to(dtype), x, y)
        if distance == "cosine":
            x, y = _both(unit_rows, x, y)
            return 1 - x @ y.T
        of_x, of_y = _both(lambda rows: rows.square().sum(1), x, y)
        return safe_sqrt(torch.mm(x * -2, y.T).add_(of_x[:, None]).add_(of_y))


def paired_distances(x: Tensor, y: Tensor, distance: Distance = "euclidean") -> Tensor:
    """Distances (N,) between row i of `x` (N, D) and row i of `y` (N, D), from the differences themselves.

    Raises:
        ValueError: `distance` is neither "euclidean" nor "cosine".
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = at_least_float32(x), at_least_float32(y)
        if distance == "cosine":
            x, y = unit_rows(x), unit_rows(y)
            return 1 - (x * y).sum(1)
        if distance != "euclidean":
            raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
        return safe_sqrt((x - y).square().sum(1))


def batch_distances(x: Tensor, y: Tensor | None = None, distance: Distance = "euclidean") -> Tensor:
    """`pairwise_distances` (N, M) of a training batch `x` (N, D) to `y` (M, D), by default `x` itself.

    Rows are first moved by the mean of `x`, which no Euclidean distance notices, so that the expansion
    keeps its digits when embeddings crowd far from the origin. Types are promoted to the wider of the two.

    Raises:
        ValueError: `distance` is neither "euclidean" nor "cosine".
    """
    with torch.autocast(x.device.type, enabled=False):
        y = x if y is None else y
        dtype = torch.promote_types(at_least_float32(x).dtype, at_least_float32(y).dtype)
        x, y = _both(lambda rows: rows.to(dtype), x, y)
        if distance == "euclidean" and len(x):
            centre = x.detach().mean(0)
            x, y = _both(lambda rows: rows - centre, x, y)
        return pairwise_distances(x, y, distance)


def _both(of: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`of` both, once where they are the same tensor."""
    found = of(x)
    return found, found if y is x else of(y)
