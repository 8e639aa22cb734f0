"""Losses on soft ranks and soft histograms: smooth surrogates of average precision, recall and precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "average_precision",
    "fast_ap_loss",
    "precision_at_k_loss",
    "recall_at_k_loss",
    "smooth_ap_loss",
    "soft_ranks",
]

BLOCK_ELEMENTS = 2**22
"""Pairs of items that are compared at once: the memory of soft ranks beyond their input."""


def smooth_ap_loss(distances: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """1 - the mean Smooth-AP of `distances` (B, R) under bool masks (B, R); 0 where no anchor has a positive.

    AP of an anchor is the mean, over its positives, of the soft rank among positives over the soft rank
    among all. Anchors without a positive are left out of the mean.
    Brown et al., Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval, 2020.
    """
    rows, columns = positives.nonzero(as_tuple=True)
    counts = positives.sum(1)
    near, slots = _padded(distances, rows, columns, counts)
    of_pairs = distances[rows, columns]
    among_positives = soft_ranks(of_pairs, near, rows, slots, temperature)
    among_all = soft_ranks(of_pairs, _ranked(distances, positives, negatives), rows, columns, temperature)
    return _over_anchors((1 - among_positives / among_all) / counts[rows], counts)


def recall_at_k_loss(
    distances: Tensor,
    positives: Tensor,
    negatives: Tensor,
    ks: tuple[int, ...],
    k_temperature: float,
    rank_temperature: float,
) -> Tensor:
    """1 - the mean soft recall within the nearest k of `distances` (B, R), averaged over `ks` too; scalar.

    A positive of soft rank r counts as sigmoid((k - r) / k_temperature), one half at rank k itself, and an
    anchor's sum is divided by the most that k can hold, min(k, its positives). Soft ranks of positives that
    crowd together add up to a little more than that, so the loss may end slightly below 0. Anchors without a
    positive are left out.
    Patel et al., Recall@k Surrogate Loss with Large Batches and Similarity Mixup, 2022.
    """
    rows, columns = positives.nonzero(as_tuple=True)
    counts = positives.sum(1)
    ranked = _ranked(distances, positives, negatives)
    ranks = soft_ranks(distances[rows, columns], ranked, rows, columns, rank_temperature)
    losses = [_soft_top_k_loss(ranks, rows, counts, k, k_temperature) for k in ks]
    return torch.stack(losses).mean()


def precision_at_k_loss(
    distances: Tensor,
    positives: Tensor,
    negatives: Tensor,
    k: int | None,
    k_temperature: float,
    rank_temperature: float,
) -> Tensor:
    """1 - the mean soft precision within the nearest k of `distances` (B, R); scalar.

    A positive of soft rank r counts as sigmoid((k + 1/2 - r) / k_temperature): the step lies between the
    ranks k and k + 1. The sum is divided by min(k, positives). With k None each anchor's k is the number of
    its positives (R-precision). Anchors without a positive are left out.
    """
    rows, columns = positives.nonzero(as_tuple=True)
    counts = positives.sum(1)
    ranked = _ranked(distances, positives, negatives)
    ranks = soft_ranks(distances[rows, columns], ranked, rows, columns, rank_temperature)
    return _soft_top_k_loss(ranks - 0.5, rows, counts, k, k_temperature)


def fast_ap_loss(
    distances: Tensor, positives: Tensor, negatives: Tensor, bins: int, farthest: float
) -> Tensor:
    """1 - the mean FastAP of `distances` (B, R) in [0, farthest] under bool masks (B, R); scalar.

    Each anchor's distances are counted in soft histograms of `bins` + 1 centres, a distance shared by
    the two centres beside it. With h+ and H+ the histogram of positives and its running sum, and H that of
    all, AP is the sum of h+ H+ / H over the number of positives. Memory O(B R), whatever the bins.
    Anchors without a positive are left out. Cakir et al., Deep Metric Learning to Rank, 2019.
    """
    places = distances.clamp(0, farthest) * (bins / farthest)
    # NaN has no place of its own; in the first one its share makes the loss NaN
    lower = places.detach().floor().clamp(max=bins - 1).nan_to_num(nan=0.0)
    upper_share = places - lower
    lower = lower.long()
    counts = positives.sum(1)
    histogram = _soft_histogram(lower, upper_share, positives, bins + 1)
    of_positives = histogram.cumsum(1)
    of_all = of_positives + _soft_histogram(lower, upper_share, negatives, bins + 1).cumsum(1)
    precisions = of_positives / torch.where(of_all > 0, of_all, 1.0)
    found = (histogram * precisions).sum(1) / counts.clamp(min=1)
    return torch.where(counts > 0, 1 - found, 0.0).sum() / (counts > 0).sum().clamp(min=1)


@torch.no_grad()
def average_precision(distances: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """The mean average precision, 0-dim, of `distances` (B, R) over anchors with a positive; 0 without one.

    Of equal distances each counts as the last, so that a batch that collapsed to a point scores its share of
    positives, not 1.
    """
    rows, columns = positives.nonzero(as_tuple=True)
    counts = positives.sum(1)
    near, _ = _padded(distances, rows, columns, counts)
    of_pairs = distances[rows, columns]
    among_positives = _within(of_pairs, near, rows)
    among_all = _within(of_pairs, _ranked(distances, positives, negatives), rows)
    return _over_anchors(among_positives / among_all / counts[rows], counts)


def soft_ranks(
    distances: Tensor, candidates: Tensor, rows: Tensor, columns: Tensor, temperature: float
) -> Tensor:
    """The soft rank (P,) of each of `distances` (P,) among a row of `candidates` (N, M), from 1.

    Item i is compared with `candidates[rows[i]]`, of which `columns[i]` is itself and not compared:
    1 + the sum of sigmoid((distance - candidate) / temperature). A candidate at infinity is none.
    Blocks of items are compared at a time, again in the backward pass, so memory beyond the input is that
    of one block and the P x M comparisons are never kept.
    """
    ranks: Tensor = _SoftRanks.apply(distances, candidates, rows, columns, temperature)
    return ranks


class _SoftRanks(torch.autograd.Function):
    """Soft ranks by blocks; the backward pass compares again instead of keeping P x M numbers."""

    @staticmethod
    def forward(
        ctx: Any, distances: Tensor, candidates: Tensor, rows: Tensor, columns: Tensor, temperature: float
    ) -> Tensor:
        ctx.save_for_backward(distances, candidates, rows, columns)
        ctx.temperature = temperature
        ranks = torch.empty_like(distances)
        for block in _blocks(len(rows), candidates.shape[1]):
            compared = _compared(distances, candidates, rows, columns, temperature, block)
            ranks[block] = compared.sum(1).add_(1)
        return ranks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        distances, candidates, rows, columns = ctx.saved_tensors
        of_distances, of_candidates = torch.empty_like(distances), torch.zeros_like(candidates)
        for block in _blocks(len(rows), candidates.shape[1]):
            compared = _compared(distances, candidates, rows, columns, ctx.temperature, block)
            slopes = compared.addcmul_(compared, compared, value=-1)
            slopes *= (upstream[block] / ctx.temperature)[:, None]
            of_distances[block] = slopes.sum(1)
            of_candidates.index_add_(0, rows[block], slopes, alpha=-1)
        return of_distances, of_candidates, None, None, None


def _blocks(items: int, width: int) -> list[slice]:
    size = max(1, BLOCK_ELEMENTS // max(1, width))
    return [slice(start, start + size) for start in range(0, items, size)]


def _compared(
    distances: Tensor, candidates: Tensor, rows: Tensor, columns: Tensor, temperature: float, block: slice
) -> Tensor:
    """How far each candidate (block, M) is nearer than the item, from 0 to 1; 0 for the item itself."""
    gaps = (distances[block, None] - candidates[rows[block]]).div_(temperature)
    return gaps.sigmoid_().scatter_(1, columns[block, None], 0.0)


def _within(distances: Tensor, candidates: Tensor, rows: Tensor) -> Tensor:
    """How many of `candidates[rows]` (P, M) are no farther than `distances` (P,), by blocks; int32."""
    counts = torch.empty_like(rows, dtype=torch.int32)
    for block in _blocks(len(rows), candidates.shape[1]):
        counts[block] = (candidates[rows[block]] <= distances[block, None]).sum(1, dtype=torch.int32)
    return counts


def _ranked(distances: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """The distances, infinite where an item is neither positive nor negative (an anchor itself)."""
    return distances.masked_fill(~(positives | negatives), torch.inf)


def _padded(distances: Tensor, rows: Tensor, columns: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The cells (rows, columns) of each row as (B, most), padded with infinity, and each cell's slot (P,)."""
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    width = int(counts.max()) if len(rows) else 0
    padded = distances.new_full((len(counts), width), torch.inf)
    return padded.index_put((rows, slots), distances[rows, columns]), slots


def _soft_top_k_loss(
    ranks: Tensor, rows: Tensor, counts: Tensor, k: int | None, temperature: float
) -> Tensor:
    """1 - the mean over anchors of the sum of sigmoid((k - rank) / temperature) over min(k, positives)."""
    limits = counts[rows] if k is None else torch.full_like(rows, k)
    hits = ((limits - ranks) / temperature).sigmoid()
    return _over_anchors(1 / counts[rows] - hits / torch.minimum(limits, counts[rows]), counts)


def _over_anchors(losses: Tensor, counts: Tensor) -> Tensor:
    """The sum of `losses` over the number of anchors that have positives; 0 without one."""
    return losses.sum() / (counts > 0).sum().clamp(min=1)


def _soft_histogram(lower: Tensor, upper_share: Tensor, mask: Tensor, centres: int) -> Tensor:
    """Masked items (B, R) by centre (B, centres): `upper_share` of an item above `lower`, the rest at it."""
    counted = mask.to(upper_share.dtype)
    histogram = upper_share.new_zeros(len(lower), centres)
    histogram = histogram.scatter_add(1, lower, counted * (1 - upper_share))
    return histogram.scatter_add(1, lower + 1, counted * upper_share)
