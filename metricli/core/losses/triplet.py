"""The triplet loss over distances: over listed triplets, and over all of them without a list."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["TripletSums", "all_triplets_sums", "listed_triplets_sums", "triplet_losses"]

LOOPED_POSITIVES = 16
"""Up to so many positives an anchor, a pass for each of them is faster than a binary search among them."""


class TripletSums(NamedTuple):
    """Sums over triplets, 0-dim; only `loss` has a gradient, `triplets` and `active` are int64."""

    loss: Tensor
    triplets: Tensor
    active: Tensor
    positive_distance: Tensor
    negative_distance: Tensor


def triplet_losses(positive_distances: Tensor, negative_distances: Tensor, margin: float | None) -> Tensor:
    """max(0, d_ap - d_an + margin), or the soft margin log(1 + exp(d_ap - d_an)) where `margin` is None."""
    if margin is None:
        return -F.logsigmoid(negative_distances - positive_distances)
    return (positive_distances - negative_distances + margin).relu()


def listed_triplets_sums(
    positive_distances: Tensor, negative_distances: Tensor, margin: float | None
) -> TripletSums:
    """Sums over triplets given by their distances d_ap (T,) and d_an (T,)."""
    losses = triplet_losses(positive_distances, negative_distances, margin)
    return TripletSums(
        loss=losses.sum(),
        triplets=torch.tensor(len(losses), device=losses.device),
        active=(losses.detach() > 0).sum(),
        positive_distance=positive_distances.detach().sum(),
        negative_distance=negative_distances.detach().sum(),
    )


def all_triplets_sums(
    distances: Tensor, positives: Tensor, negatives: Tensor, margin: float | None
) -> TripletSums:
    """Sums over every triplet of `distances` (B, R), exact in value and gradient, in O(B R) memory.

    `positives` and `negatives` are bool masks (B, R). A triplet's margin loss is linear in its two
    distances while it is active, so the sum needs only how often each distance is in an active triplet:
    counted by a pass over the matrix for each positive, or by binary search among an anchor's sorted
    positives. The soft margin takes a pass for each positive.
    """
    with torch.no_grad():
        known = _Positives.of(positives)
        if margin is None:
            value, gradient, active = _soft_margin(distances, known, negatives)
        else:
            value, gradient, active = _hard_margin(distances, known, negatives, margin)
        num_positives, num_negatives = positives.sum(1), negatives.sum(1)
        of_positives = torch.where(positives, distances, 0.0).sum(1) @ num_negatives.to(distances.dtype)
        of_negatives = torch.where(negatives, distances, 0.0).sum(1) @ num_positives.to(distances.dtype)
    return TripletSums(
        loss=_KnownGradient.apply(distances, value, gradient),
        triplets=(num_positives * num_negatives).sum(),
        active=active,
        positive_distance=of_positives,
        negative_distance=of_negatives,
    )


class _KnownGradient(torch.autograd.Function):
    """A value already computed, together with its gradient with respect to the distances."""

    @staticmethod
    def forward(ctx: Any, _distances: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None


class _Positives(NamedTuple):
    """The true cells (row, column) of a mask (B, R), each with its place among those of its row."""

    rows: Tensor
    columns: Tensor
    slots: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: Tensor) -> _Positives:
        rows, columns = mask.nonzero(as_tuple=True)
        counts = mask.sum(1)
        slots = torch.arange(len(rows), device=mask.device) - (counts.cumsum(0) - counts)[rows]
        width = int(counts.max()) if len(rows) else 0
        return cls(rows, columns, slots, (len(mask), width))

    def values(self, matrix: Tensor) -> Tensor:
        """The cells' values as (B, width), padded with -inf."""
        padded = matrix.new_full(self.shape, -torch.inf)
        padded[self.rows, self.slots] = matrix[self.rows, self.columns]
        return padded


def _hard_margin(
    distances: Tensor, positives: _Positives, negatives: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient (B, R) and number of active triplets of the margin loss."""
    reach = positives.values(distances) + margin
    candidates = distances.masked_fill(~negatives, torch.inf)
    count = _count_by_pass if reach.shape[1] <= LOOPED_POSITIVES else _count_by_search
    of_negatives, of_positives = count(candidates, reach)
    gradient = of_negatives.neg_()
    gradient[positives.rows, positives.columns] = of_positives[positives.rows, positives.slots]
    active = of_positives.sum(dtype=torch.int64)
    return (gradient * distances).sum() + margin * active, gradient, active


def _count_by_pass(candidates: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """How many reaches (B, P) lie beyond each candidate (B, R), and candidates within each reach."""
    of_candidates, of_reaches = torch.zeros_like(candidates), torch.zeros_like(reach)
    for slot in range(reach.shape[1]):
        within = (candidates < reach[:, slot, None]).to(reach.dtype)
        of_candidates += within
        of_reaches[:, slot] = within.sum(1)
    return of_candidates, of_reaches


def _count_by_search(candidates: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """What `_count_by_pass` counts, by binary search, in O(R log P) a row."""
    ordered, order = reach.sort(1)
    passed = torch.searchsorted(ordered, candidates, right=True)
    at_place = torch.zeros_like(reach, dtype=torch.int64)
    at_place = F.pad(at_place, (0, 1)).scatter_add_(1, passed, torch.ones_like(passed))
    within = at_place.cumsum(1)[:, :-1]
    of_reaches = torch.empty_like(within).scatter_(1, order, within)
    return (reach.shape[1] - passed).to(reach.dtype), of_reaches.to(reach.dtype)


def _soft_margin(
    distances: Tensor, positives: _Positives, negatives: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient (B, R) and number of triplets above 0 of the soft margin loss."""
    anchored = positives.values(distances)
    candidates = distances.masked_fill(~negatives, torch.inf)
    gradient = torch.zeros_like(distances)
    of_positives = torch.zeros_like(anchored)
    value = distances.new_zeros(())
    active = torch.zeros((), dtype=torch.int64, device=distances.device)
    for slot in range(anchored.shape[1]):
        gaps = anchored[:, slot, None] - candidates
        losses = -F.logsigmoid(-gaps)
        value += losses.sum()
        active += (losses > 0).sum()
        weights = gaps.sigmoid_()
        gradient -= weights
        of_positives[:, slot] = weights.sum(1)
    gradient[positives.rows, positives.columns] = of_positives[positives.rows, positives.slots]
    return value, gradient, active
