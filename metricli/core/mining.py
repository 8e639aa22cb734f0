"""Choosing pairs and triplets: what a miner returns, batch-hard mining, every triplet listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metricli.core.distances import Distance, batch_distances

__all__ = [
    "Clusters",
    "Mined",
    "Pairs",
    "Triplets",
    "all_triplets",
    "check_batch",
    "group_means",
    "hard_triplets",
    "label_masks",
    "triplets_of_pairs",
]


class Triplets(NamedTuple):
    """Triplets by index: three int64 tensors (T,); anchors into the batch, the others into the reference."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor


class Pairs(NamedTuple):
    """Pairs by index: two int64 tensors (P,); anchors into the batch, others into the reference."""

    anchors: Tensor
    others: Tensor


class Clusters(NamedTuple):
    """Triplets whose anchors and negatives are means of groups of rows (`group_means`); all int64.

    `groups` (B,) and `reference_groups` (R,) number the groups of the embeddings and of the reference.
    `anchors` (T,) are groups of the embeddings, `positives` (T,) rows of the reference, and `negatives`
    (T,) groups of the reference.
    """

    groups: Tensor
    reference_groups: Tensor
    anchors: Tensor
    positives: Tensor
    negatives: Tensor


@dataclass(frozen=True)
class Mined:
    """What a miner chose, in one form: listed triplets, listed pairs, `everything`, or triplets of clusters.

    Anchors index the embeddings; positives, negatives and others index the reference: the batch itself,
    or the memory bank the miner was given. `everything` is all triplets (pairs) there are, which a loss
    evaluates in closed form without listing them.

    Raises:
        ValueError: not exactly one form, pairs of one sign only, or index tensors of different lengths.
    """

    triplets: Triplets | None = None
    positive_pairs: Pairs | None = None
    negative_pairs: Pairs | None = None
    everything: bool = False
    clusters: Clusters | None = None

    def __post_init__(self) -> None:
        if (self.positive_pairs is None) != (self.negative_pairs is None):
            raise ValueError("positive_pairs and negative_pairs come together, one of them may be empty")
        listed = (self.triplets, self.positive_pairs, self.clusters)
        forms = sum(form is not None for form in listed) + self.everything
        if forms != 1:
            what = "expected triplets, pairs, clusters or everything=True, exactly one"
            raise ValueError(f"{what}, got {forms} of them")
        chosen = None if self.clusters is None else Triplets(*self.clusters[2:])
        for indices in (self.triplets, self.positive_pairs, self.negative_pairs, chosen):
            if (
                indices is not None
                and len({tuple(index.shape) for index in indices} | {(len(indices[0]),)}) > 1
            ):
                shapes = ", ".join(str(tuple(index.shape)) for index in indices)
                raise ValueError(f"index tensors must share one shape (T,), got {shapes}")


def check_batch(
    embeddings: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
) -> None:
    """Check embeddings (B, D) against labels (B,), and a reference (R, D) against its labels (R,).

    Raises:
        ValueError: a shape does not fit, or only one of `reference` and `reference_labels` is given.
    """
    _check_rows("embeddings", embeddings, "labels", labels)
    if (reference is None) != (reference_labels is None):
        raise ValueError("reference and reference_labels come together, got only one of them")
    if reference is not None and reference_labels is not None:
        _check_rows("reference", reference, "reference_labels", reference_labels)
        if reference.shape[1] != embeddings.shape[1]:
            raise ValueError(
                f"reference must have embeddings' {embeddings.shape[1]} columns, got {reference.shape[1]}"
            )


def label_masks(labels: Tensor, reference_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Where the reference holds positives and negatives of each anchor: two bool masks (B, R).

    Without `reference_labels` the batch is its own reference and self, excluded by index, is neither.
    A given reference must not hold the anchors themselves: all it has of an anchor's label is positive.
    """
    if reference_labels is not None:
        positives = labels[:, None] == reference_labels[None, :]
        return positives, ~positives
    same = labels[:, None] == labels[None, :]
    return same.clone().fill_diagonal_(False), ~same


def group_means(rows: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Means (num_groups, D) of the rows (N, D) of each group; `groups` (N,) are numbered from 0."""
    sums = rows.new_zeros(num_groups, rows.shape[1]).index_add(0, groups, rows)
    return sums / groups.bincount(minlength=num_groups).clamp(min=1)[:, None]


@torch.no_grad()
def hard_triplets(
    embeddings: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    distance: Distance = "euclidean",
) -> Mined:
    """For each anchor its farthest positive and its nearest negative: at most B triplets, without gradient.

    Anchors (B, D) with labels (B,) are compared with the reference (R, D), by default the batch itself
    without self; a given reference must not hold the anchors. An anchor without a positive or without a
    negative is left out. Of equal distances the first in the reference wins.
    Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017 ("batch hard").

    Raises:
        ValueError: shapes that do not fit, a reference without its labels, or an unknown distance.
    """
    check_batch(embeddings, labels, reference, reference_labels)
    others = labels if reference_labels is None else reference_labels
    distances = batch_distances(embeddings, reference, distance)
    if distances.numel() == 0:
        nothing = torch.empty(0, dtype=torch.int64, device=labels.device)
        return Mined(triplets=Triplets(nothing, nothing, nothing))
    same = labels[:, None] == others
    near = torch.where(same, distances, -torch.inf)
    if reference_labels is None:
        near.fill_diagonal_(-torch.inf)
    farthest, place = near.max(1)
    nearest, other = distances.masked_fill_(same, torch.inf).min(1)
    anchors = ((farthest != -torch.inf) & (nearest != torch.inf)).nonzero().squeeze(1)  # NaN stays in
    return Mined(triplets=Triplets(anchors, place[anchors], other[anchors]))


def all_triplets(labels: Tensor, reference_labels: Tensor | None = None) -> Mined:
    """Every triplet, listed in the order of (anchor, positive, negative); memory grows with their number.

    `TripletLoss` needs no list: it evaluates `Mined(everything=True)` in closed form.
    """
    positives, negatives = label_masks(labels, reference_labels)
    anchors, others = positives.nonzero(as_tuple=True)
    pair, negative = negatives[anchors].nonzero(as_tuple=True)
    return Mined(triplets=Triplets(anchors[pair], others[pair], negative))


def triplets_of_pairs(positive_pairs: Pairs, negative_pairs: Pairs) -> Triplets:
    """Every positive pair with every negative pair of its anchor, in the order of the positive pairs."""
    order = negative_pairs.anchors.argsort(stable=True)
    anchors, negatives = negative_pairs.anchors[order], negative_pairs.others[order]
    first = torch.searchsorted(anchors, positive_pairs.anchors)
    counts = torch.searchsorted(anchors, positive_pairs.anchors, right=True) - first
    pair = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    within = torch.arange(len(pair), device=counts.device) - (counts.cumsum(0) - counts)[pair]
    return Triplets(
        positive_pairs.anchors[pair], positive_pairs.others[pair], negatives[first[pair] + within]
    )


def _check_rows(name: str, rows: Tensor, labels_name: str, labels: Tensor) -> None:
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"{name} must be a float tensor (rows, dim), got {rows.dtype} {tuple(rows.shape)}")
    if labels.shape != rows.shape[:1]:
        raise ValueError(
            f"{labels_name} must be of shape ({len(rows)},), one a row of {name}, got {tuple(labels.shape)}"
        )
