"""The triplet loss over distances: over listed triplets, and over all of them without a list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["TripletSums", "all_triplets_sums", "listed_triplets_sums", "triplet_losses"]

SEARCHED_POSITIVES = 200
"""From so many positives an anchor, a binary search among them is faster than a comparison with each."""
BLOCK_ELEMENTS, CUDA_BLOCK_ELEMENTS = 2**18, 2**25
"""Triplets are looked at in blocks of so many: few enough to stay in a processor's cache."""
MULTIPLIED = 64
"""So many probabilities of at least a half have a product that no float type lets underflow."""


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
    counted by comparisons in blocks, or by binary search among an anchor's sorted positives where these
    are many. The soft margin, which is above 0 and so active for every triplet, goes through all in blocks.
    """
    with torch.no_grad(), torch.autocast(distances.device.type, enabled=False):
        near = _Positives.of(positives)
        anchored = near.values(distances)
        is_negative = _as_numbers(negatives, distances.dtype)
        num_negatives = is_negative.sum(1)
        of_negatives = torch.linalg.vecdot(is_negative, distances)
        # 1 / 1 - 1 = 0 and 1 / 0 - 1 = inf: on a processor a third of the time of torch.where
        candidates = is_negative.reciprocal_().sub_(1).add_(distances)
        triplets = (near.counts * num_negatives.long()).sum()
        if margin is None:
            value, of_candidates, of_anchored = _soft_margin(candidates, anchored)
            gradient, active = near.placed(of_anchored, of_candidates.neg_()), triplets
        else:
            count = _count_by_search if near.width >= SEARCHED_POSITIVES else _count_in_blocks
            of_candidates, of_anchored = count(candidates, anchored + margin)
            gradient = near.placed(of_anchored, of_candidates.neg_())
            active = of_anchored.sum(dtype=torch.int64)
            value = torch.linalg.vecdot(gradient, distances).sum() + margin * active
    return TripletSums(
        loss=_KnownGradient.apply(distances, value, gradient),
        triplets=triplets,
        active=active,
        positive_distance=(anchored[near.rows, near.slots] * num_negatives[near.rows]).sum(),
        negative_distance=(of_negatives * near.counts).sum(),
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
    counts: Tensor
    width: int

    @classmethod
    def of(cls, mask: Tensor) -> _Positives:
        rows, columns = mask.nonzero(as_tuple=True)
        counts = mask.sum(1, dtype=torch.int32).long()
        slots = torch.arange(len(rows), device=mask.device) - (counts.cumsum(0) - counts)[rows]
        return cls(rows, columns, slots, counts, int(counts.max()) if len(rows) else 0)

    def values(self, matrix: Tensor) -> Tensor:
        """The cells' values as (B, width), padded with -inf."""
        padded = matrix.new_full((len(self.counts), self.width), -torch.inf)
        padded[self.rows, self.slots] = matrix[self.rows, self.columns]
        return padded

    def placed(self, values: Tensor, matrix: Tensor) -> Tensor:
        """`matrix` with its cells set, in place, from `values` (B, width)."""
        matrix[self.rows, self.columns] = values[self.rows, self.slots]
        return matrix


def _as_numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 and 1 in place of a mask, by way of bytes: on a processor 8 times as fast as from bools."""
    return mask.contiguous().view(torch.uint8).to(dtype)


def _blocks(candidates: Tensor, reach: Tensor) -> Iterator[slice]:
    """Slices of rows whose triplets, reaches (B, P) times candidates (B, R), are a block."""
    elements = CUDA_BLOCK_ELEMENTS if candidates.is_cuda else BLOCK_ELEMENTS
    step = max(1, elements // max(1, reach.shape[1] * candidates.shape[1]))
    return (slice(start, start + step) for start in range(0, len(candidates), step))


def _count_in_blocks(candidates: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """How many reaches (B, P) lie beyond each candidate (B, R), and candidates within each reach."""
    of_candidates, of_reaches = torch.empty_like(candidates), torch.empty_like(reach)
    within = candidates.new_empty(0)
    for rows in _blocks(candidates, reach):
        # into floats: a result of bools costs several times as much to make, and to sum
        within = torch.lt(candidates[rows, None, :], reach[rows, :, None], out=within.resize_(0))
        torch.sum(within, 1, out=of_candidates[rows])
        torch.sum(within, 2, out=of_reaches[rows])
    return of_candidates, of_reaches


def _count_by_search(candidates: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """What `_count_in_blocks` counts, by binary search, in O(R log P) a row."""
    ordered, order = reach.sort(1)
    passed = torch.searchsorted(ordered, candidates, right=True)
    at_place = torch.zeros_like(reach, dtype=torch.int64)
    at_place = F.pad(at_place, (0, 1)).scatter_add_(1, passed, torch.ones_like(passed))
    within = at_place.cumsum(1)[:, :-1]
    of_reaches = torch.empty_like(within).scatter_(1, order, within)
    return (reach.shape[1] - passed).to(reach.dtype), of_reaches.to(reach.dtype)


def _soft_margin(candidates: Tensor, anchored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of log(1 + exp(d_ap - d_an)), and its slopes in d_an (B, R), negated, and in d_ap (B, P).

    With s the logistic function of a gap, log(1 + exp(gap)) = max(0, gap) - log(1/2 + |s - 1/2|); s is
    the slope, and a sum of such logarithms is one of a product.
    """
    of_candidates, of_anchored = torch.empty_like(candidates), torch.empty_like(anchored)
    value = candidates.new_zeros(())
    gaps, likelier = candidates.new_empty(0), candidates.new_empty(0)
    for rows in _blocks(candidates, anchored):
        torch.sub(anchored[rows, :, None], candidates[rows, None, :], out=gaps.resize_(0))
        value += torch.clamp(gaps, min=0, out=likelier.resize_(0)).sum()
        slopes = gaps.sigmoid_()
        torch.sum(slopes, 1, out=of_candidates[rows])
        torch.sum(slopes, 2, out=of_anchored[rows])
        torch.sub(slopes, 0.5, out=likelier).abs_().add_(0.5)
        for start in range(0, likelier.shape[1], MULTIPLIED):
            value -= likelier[:, start : start + MULTIPLIED].prod(1).log_().sum()
    return value, of_candidates, of_anchored
