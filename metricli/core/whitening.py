"""PCA and whitening of embeddings (Jégou and Chum, ECCV 2012)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metricli.core.distances import Distance, at_least_float32, unit_rows
from metricli.core.ranking import wide_dtype

__all__ = ["Whitening"]

_ROWS = 4096


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ projection: uncorrelated, and of variance 1 where it was fitted."""

    mean: Tensor
    """(D,) in the wide type."""
    projection: Tensor
    """(D, d): the d directions of most variance, each divided by its standard deviation."""
    distance: Distance
    """For cosine, rows enter with norm 1 and leave with norm 1."""

    @staticmethod
    @torch.no_grad()
    def fit(rows: Tensor, dim: int, *, eps: float, distance: Distance) -> Whitening:
        """Fitted on `rows` (N, D); `eps` times the largest variance is added to every variance.

        Raises:
            ValueError: `dim` is above D or N - 1, the directions in which N rows vary, or no row differs.
        """
        num, width = rows.shape
        if not 1 <= dim <= min(width, num - 1):
            raise ValueError(
                f"dim must be from 1 to {min(width, num - 1)} for {num} rows of {width} columns, got {dim!r}"
            )
        wide = wide_dtype(rows.device)
        mean = torch.zeros(width, dtype=wide, device=rows.device)
        for part in torch.split(rows, _ROWS):
            mean += _entered(part.to(wide), distance).sum(0) / num
        covariance = torch.zeros(width, width, dtype=wide, device=rows.device)
        for part in torch.split(rows, _ROWS):
            x = _entered(part.to(wide), distance) - mean
            covariance.addmm_(x.T, x, alpha=1 / num)
        variances, directions = torch.linalg.eigh(covariance)
        variances, directions = variances.flip(0).clamp_min(0), directions.flip(1)
        if not variances[0] > 0:
            raise ValueError(f"all {num} rows are equal: there is no direction to whiten")
        scale = (variances[:dim] + eps * variances[0]).rsqrt()
        return Whitening(mean, directions[:, :dim] * scale, distance)

    @torch.no_grad()
    def apply(self, rows: Tensor) -> Tensor:
        """Rows (N, D) -> (N, d) of the same type."""
        out = torch.empty(len(rows), self.projection.shape[1], dtype=rows.dtype, device=rows.device)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            x = _entered(rows[part].to(self.mean.dtype), self.distance) - self.mean
            out[part] = _entered(x @ self.projection, self.distance).to(rows.dtype)
        return out


def _entered(rows: Tensor, distance: Distance) -> Tensor:
    return unit_rows(at_least_float32(rows)) if distance == "cosine" else rows
