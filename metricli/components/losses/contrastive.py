"""Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping, 2006: the contrastive loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from metricli.components.losses.pairwise import PairwiseLoss, masked_mean
from metricli.core.distances import Distance
from metricli.core.losses.pairs import contrastive_losses
from metricli.core.mining import Mined, label_masks

__all__ = ["ContrastiveLoss"]


class ContrastiveLoss(PairwiseLoss):
    """½ max(0, d - pos_margin)² for positive pairs, ½ max(0, neg_margin - d)² for negative ones.

    Each pair of a batch counts from both of its ends. Negative pairs are many more than positive ones, so
    the means are taken for each kind and added: "mean" over all pairs of the kind, "mean_active" over those
    with a loss above 0; "sum" is the paper's sum over all pairs. A kind without a pair adds nothing.
    `stats` adds `active_positives` and `active_negatives`, the shares of pairs with a loss above 0.

    Args:
        pos_margin: positives nearer than this are let be.
        neg_margin: negatives farther than this are let be; both in units of the distance.
        miner: (embeddings, labels, reference, reference_labels) -> `Mined`, whose listed pairs count, or
            the pairs (anchor, positive) and (anchor, negative) of its triplets, each once; None: all pairs.
        distance: "euclidean", or "cosine" (1 - cos, in [0, 2]).
        reduction: "mean", "mean_active" or "sum".

    Raises:
        ValueError: an unknown distance or reduction, a pos_margin below 0, or a neg_margin that is not above
            it or not finite.
    """

    def __init__(
        self,
        *,
        pos_margin: float = 0.0,
        neg_margin: float = 1.0,
        miner: Callable[..., Mined] | None = None,
        distance: Distance = "euclidean",
        reduction: Literal["mean", "mean_active", "sum"] = "mean",
    ) -> None:
        super().__init__()
        if not 0 <= pos_margin < neg_margin < math.inf:
            raise ValueError(
                "margins must be finite with 0 <= pos_margin < neg_margin, "
                f"got {pos_margin!r} and {neg_margin!r}"
            )
        if miner is not None and not callable(miner):
            raise ValueError(f"miner must be a module or function that returns Mined, got {miner!r}")
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
        if reduction not in ("mean", "mean_active", "sum"):
            raise ValueError(f"reduction must be 'mean', 'mean_active' or 'sum', got {reduction!r}")
        self.pos_margin = float(pos_margin)
        self.neg_margin = float(neg_margin)
        self.miner = miner
        self.distance = distance
        self.reduction = reduction

    def pairs(
        self, embeddings: Tensor, labels: Tensor, reference: Tensor | None, reference_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Bool masks (B, R) of the pairs that the miner chooses; all without one.

        Raises:
            ValueError: the miner does not return `Mined`, or chooses means of images.
        """
        every = label_masks(labels, reference_labels)
        if self.miner is None:
            return every
        bank = None if reference is None else reference.detach()
        mined = self.miner(embeddings.detach(), labels, bank, reference_labels)
        if not isinstance(mined, Mined):
            raise ValueError(f"the miner must return metricli.core.mining.Mined, got {type(mined).__name__}")
        return _masks(mined, *every)

    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of `distances` (B, R) with bool masks (B, R)."""
        losses = contrastive_losses(distances, positives, self.pos_margin, self.neg_margin)
        active = ~(losses.detach() <= 0)  # NaN is active, and shows in the loss
        stats = {
            "active_positives": masked_mean(active.to(losses.dtype), positives),
            "active_negatives": masked_mean(active.to(losses.dtype), negatives),
        }
        if self.reduction == "sum":
            return torch.where(positives | negatives, losses, 0.0).sum(), stats
        if self.reduction == "mean_active":
            positives, negatives = positives & active, negatives & active
        return masked_mean(losses, positives) + masked_mean(losses, negatives), stats

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return (
            f"pos_margin={self.pos_margin}, neg_margin={self.neg_margin}, distance={self.distance!r}, "
            f"reduction={self.reduction!r}"
        )


def _masks(mined: Mined, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Bool masks (B, R) of the pairs that a miner chose; all those given, if it chose everything."""
    if mined.everything:
        return positives, negatives
    near, far = mined.positive_pairs, mined.negative_pairs
    if mined.triplets is not None:
        anchors, others, strangers = mined.triplets
        return _at(positives, anchors, others), _at(negatives, anchors, strangers)
    if near is None or far is None:
        raise ValueError("the contrastive loss takes pairs or triplets of images, and the miner chose means")
    return _at(positives, *near), _at(negatives, *far)


def _at(like: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    mask = torch.zeros_like(like)
    mask[rows, columns] = True
    return mask
