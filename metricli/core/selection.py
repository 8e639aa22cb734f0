"""Which triplets of a batch a miner chooses, by the distances (B, R) and the positives and negatives.

An anchor without a positive or without a negative is in no triplet. Triplets come in the order of their
anchors. Nothing here has a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metricli.core.distances import Distance, at_least_float32, batch_distances
from metricli.core.mining import Clusters, Triplets, group_means

__all__ = [
    "distance_weighted",
    "easy_positives",
    "hard_clusters",
    "inverse_density",
    "ranked",
    "semi_hard",
]

BLOCK_ELEMENTS = 2**22
"""Pairs are compared with all negatives in blocks of so many distances."""


def semi_hard(distances: Tensor, positives: Tensor, negatives: Tensor) -> Triplets:
    """For each anchor and positive the nearest negative that is farther than the positive.

    Where every negative is as near as the positive or nearer, it is the farthest of them. Of equal
    distances the first in the reference wins. Schroff et al., FaceNet, 2015.
    """
    anchors, others = (positives & negatives.any(1, keepdim=True)).nonzero(as_tuple=True)
    chosen = torch.empty_like(others)
    step = max(1, BLOCK_ELEMENTS // max(1, distances.shape[1]))
    for start in range(0, len(anchors), step):
        pairs = slice(start, start + step)
        far, found = _nearest_beyond(distances, negatives, anchors[pairs], others[pairs])
        rows = anchors[pairs][~found]
        far[~found] = distances[rows].masked_fill(~negatives[rows], -torch.inf).argmax(1)
        chosen[pairs] = far
    return Triplets(anchors, others, chosen)


def ranked(
    distances: Tensor,
    positives: Tensor,
    negatives: Tensor,
    positive_ranks: tuple[int, int],
    negative_ranks: tuple[int, int],
) -> Triplets:
    """Every triplet of an anchor's positives and negatives of these ranks, first and last, from 1.

    Rank 1 is the farthest positive and the nearest negative. An anchor that has fewer gives those it has; one
    that has none of the ranks is left out. Equal distances are ranked in any order.
    """
    near, is_near = _of_ranks(distances, positives, *positive_ranks, farthest=True)
    far, is_far = _of_ranks(distances, negatives, *negative_ranks, farthest=False)
    anchors, first, second = (is_near[:, :, None] & is_far[:, None, :]).nonzero(as_tuple=True)
    return Triplets(anchors, near[anchors, first], far[anchors, second])


def easy_positives(distances: Tensor, positives: Tensor, negatives: Tensor, beyond: bool) -> Triplets:
    """For each anchor its nearest positive, with its nearest negative: at most B triplets.

    With `beyond`, the nearest of the negatives that are farther than the positive; an anchor that has none
    is left out. Of equal distances the first in the reference wins.
    Xuan et al., Improved Embeddings with Easy Positive Triplet Mining, 2020.
    """
    anchors = (positives.any(1) & negatives.any(1)).nonzero().squeeze(1)
    if len(anchors) == 0:
        return Triplets(anchors, anchors, anchors)
    near = distances[anchors].masked_fill(~positives[anchors], torch.inf).argmin(1)
    if not beyond:
        far = distances[anchors].masked_fill(~negatives[anchors], torch.inf).argmin(1)
        return Triplets(anchors, near, far)
    far, found = _nearest_beyond(distances, negatives, anchors, near)
    return Triplets(anchors[found], near[found], far[found])


def distance_weighted(
    distances: Tensor,
    positives: Tensor,
    negatives: Tensor,
    dim: int,
    cutoff: float,
    nonzero_loss_cutoff: float,
) -> Triplets:
    """For each anchor and positive a negative drawn by `inverse_density`, from torch's global generator.

    `distances` are Euclidean, of unit rows of `dim` numbers. An anchor all of whose negatives lie at
    `nonzero_loss_cutoff` or beyond is left out. Wu et al., Sampling Matters in Deep Embedding Learning, 2017.
    """
    weights = inverse_density(distances, negatives, dim, cutoff, nonzero_loss_cutoff)
    drawable = (weights.sum(1) > 0) & positives.any(1)
    anchors, others = (positives & drawable[:, None]).nonzero(as_tuple=True)
    if len(anchors) == 0:
        return Triplets(anchors, others, others)
    rows = drawable.nonzero().squeeze(1)
    counts = positives[rows].sum(1)
    drawn = torch.multinomial(weights[rows], int(counts.max()), replacement=True)
    taken = torch.arange(drawn.shape[1], device=drawn.device) < counts[:, None]
    return Triplets(anchors, others, drawn[taken])


def inverse_density(
    distances: Tensor, negatives: Tensor, dim: int, cutoff: float, nonzero_loss_cutoff: float
) -> Tensor:
    """Probabilities (B, R) of an anchor's negatives; a row without a candidate is all 0.

    Distances d between points spread evenly over the sphere in `dim` dimensions have the density
    q(d) ~ d^(dim-2) (1 - d^2 / 4)^((dim-3)/2); a negative has a weight of 1 / q(max(d, cutoff)), and 0 from
    `nonzero_loss_cutoff` on, where a margin leaves no loss. Wu et al. 2017, section 4.
    """
    floored = distances.clamp(cutoff, 2)
    # at 2 the density of the sphere is 0 (or infinite, in two dimensions); a step before it, all is finite
    outer = (1 - 0.25 * floored.square()).clamp(min=torch.finfo(distances.dtype).eps)
    logits = (2 - dim) * floored.log() - (dim - 3) / 2 * outer.log()
    candidates = negatives & (distances < nonzero_loss_cutoff)
    # the mask ends with zeros what is NaN: a softmax of -inf alone
    return logits.masked_fill(~candidates, -torch.inf).softmax(1).masked_fill(~candidates, 0.0)


def hard_clusters(
    embeddings: Tensor,
    labels: Tensor,
    reference: Tensor | None,
    reference_labels: Tensor | None,
    distance: Distance,
) -> Clusters:
    """For each label: its mean, its row that is farthest from it, and the nearest mean of another label.

    Means are of the rows of embeddings (B, D), for the anchors, and of the reference (R, D), by default the
    same, for the others; the farthest row is of the reference. A label that is alone, or has a single row
    in the batch or none in the reference, is left out. Of equal distances the first row, or the lowest label,
    wins. Alex et al., Cluster Loss for Person Re-Identification, 2018.
    """
    alone = reference is None or reference_labels is None
    rows = embeddings if reference is None else reference
    of_rows = labels if reference_labels is None else reference_labels
    known, groups = torch.unique(torch.cat([labels, of_rows]), return_inverse=True)
    groups, of_others = groups[: len(labels)], groups[len(labels) :]
    positives = torch.arange(len(known), device=labels.device)[:, None] == of_others
    anchored = groups.bincount(minlength=len(known)) >= (2 if alone else 1)
    present = positives.any(1)
    anchors = (anchored & present & (present.sum() > present.int())).nonzero().squeeze(1)
    clusters = Clusters(groups, of_others, anchors, anchors, anchors)
    if len(anchors) == 0:
        return clusters
    means = group_means(at_least_float32(embeddings), groups, len(known))[anchors]
    others = group_means(at_least_float32(rows), of_others, len(known))
    near = batch_distances(means, rows, distance).masked_fill(~positives[anchors], -torch.inf).argmax(1)
    same = anchors[:, None] == torch.arange(len(known), device=labels.device)
    far = batch_distances(means, others, distance).masked_fill(same | ~present, torch.inf).argmin(1)
    return clusters._replace(positives=near, negatives=far)


def _nearest_beyond(
    distances: Tensor, negatives: Tensor, anchors: Tensor, positives: Tensor
) -> tuple[Tensor, Tensor]:
    """For pairs (P,) the nearest negative farther than the positive (P,), and whether there is one (P,)."""
    beyond = distances[anchors] > distances[anchors, positives][:, None]
    beyond &= negatives[anchors]
    nearest = distances[anchors].masked_fill_(~beyond, torch.inf).argmin(1)
    return nearest, beyond.gather(1, nearest[:, None]).squeeze(1)


def _of_ranks(
    distances: Tensor, allowed: Tensor, first: int, last: int, *, farthest: bool
) -> tuple[Tensor, Tensor]:
    """Columns (B, last - first + 1) of these ranks among the allowed, and which of them exist."""
    masked = distances.masked_fill(~allowed, -torch.inf if farthest else torch.inf)
    order = masked.topk(min(last, distances.shape[1]), dim=1, largest=farthest).indices[:, first - 1 :]
    places = torch.arange(first, first + order.shape[1], device=order.device)
    return order, places <= allowed.sum(1, keepdim=True)
