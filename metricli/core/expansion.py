"""Query expansion and database augmentation: a row mixed with those found nearest to it."""

from __future__ import annotations

import torch
from torch import Tensor

from metricli.core.distances import Distance, at_least_float32, unit_rows

__all__ = ["expand"]

_ENTRIES = 2**22  # numbers gathered at a time


@torch.no_grad()
def expand(rows: Tensor, others: Tensor, indices: Tensor, *, alpha: float, distance: Distance) -> Tensor:
    """Each row and those listed for it as one weighted mean, (N, D) of the type of `rows`.

    The row weighs 1, another max(0, cos)^alpha with the cosine between the two; with alpha = 0 all weigh 1
    (average query expansion: Chum et al., ICCV 2007; alpha: Radenovic, Tolias and Chum, TPAMI 2018). For
    cosine the rows enter with norm 1 and the mean is given norm 1 again; for euclidean they enter as they
    are.

    Args:
        rows: (N, D).
        others: (M, D).
        indices: (N, k) int64 rows of `others`; -1 is none.
        alpha: at least 0; the larger, the less do far rows weigh.
        distance: "cosine" or "euclidean".
    """
    mixed = torch.empty_like(rows)
    step = max(1, _ENTRIES // max(1, indices.shape[1] * rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        own, listed = at_least_float32(rows[part]), indices[part]
        near = at_least_float32(others[listed.clamp_min(0).view(-1)])
        own_unit, near_unit = unit_rows(own), unit_rows(near).view(*listed.shape, -1)
        if alpha == 0:
            weights = torch.ones(listed.shape, dtype=own.dtype, device=own.device)
        else:
            cosines = torch.einsum("nd,nkd->nk", own_unit, near_unit)
            weights = cosines.clamp_min(0) ** alpha
        weights.masked_fill_(listed < 0, 0.0)
        if distance == "cosine":
            mixed[part] = unit_rows(own_unit + torch.einsum("nk,nkd->nd", weights, near_unit)).to(rows.dtype)
        else:
            total = own + torch.einsum("nk,nkd->nd", weights, near.view(*listed.shape, -1))
            mixed[part] = (total / (1 + weights.sum(1, keepdim=True))).to(rows.dtype)
    return mixed
