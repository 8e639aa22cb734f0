"""The triplet loss over whatever triplets a miner chooses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from metricli.core.distances import Distance, at_least_float32, batch_distances, paired_distances
from metricli.core.losses.triplet import TripletSums, all_triplets_sums, listed_triplets_sums
from metricli.core.mining import (
    Clusters,
    Mined,
    Triplets,
    check_batch,
    group_means,
    label_masks,
    triplets_of_pairs,
)

__all__ = ["Reduction", "TripletLoss"]

Reduction = Literal["mean", "mean_active", "sum"]

PAIRED_ELEMENTS = 2**24
"""Distances of listed triplets come from differences, exact near zero, up to so many elements (T times D)."""


class TripletLoss(nn.Module):
    """max(0, d_ap - d_an + margin) over mined triplets, or log(1 + exp(d_ap - d_an)) with `margin=None`.

    After each call `stats` holds detached 0-dim tensors: `triplets` their number, `active` the share with
    a positive loss, `positive_distance` and `negative_distance` the means over triplets. A batch without
    a triplet (one label, or no label twice) gives a zero with zero gradient, and all stats are 0.
    Distances are at least float32, whatever the embeddings or autocast.
    Schroff et al., FaceNet, 2015; the soft margin: Hermans et al., In Defense of the Triplet Loss, 2017.

    Args:
        margin: in units of the distance; None for the soft margin.
        miner: (embeddings, labels, reference, reference_labels) -> `Mined`.
        distance: "euclidean", or "cosine" (1 - cos, in [0, 2]).
        squared: use squared Euclidean distances, as FaceNet does.
        reduction: "mean" over all mined triplets, "mean_active" over those with a positive loss, or "sum".

    Raises:
        ValueError: an unknown distance or reduction, a margin below 0 or not finite, or `squared` with
            the cosine distance.
    """

    stats: dict[str, Tensor]

    def __init__(
        self,
        *,
        margin: float | None = 0.2,
        miner: Callable[..., Mined],
        distance: Distance = "euclidean",
        squared: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if margin is not None and not 0 <= margin < math.inf:
            raise ValueError(
                f"margin must be a finite number, 0 or more, or None for the soft margin, got {margin!r}"
            )
        if not callable(miner):
            raise ValueError(f"miner must be a module or function that returns Mined, got {miner!r}")
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
        if squared and distance != "euclidean":
            raise ValueError(f"squared needs distance 'euclidean', got {distance!r}")
        if reduction not in ("mean", "mean_active", "sum"):
            raise ValueError(f"reduction must be 'mean', 'mean_active' or 'sum', got {reduction!r}")
        self.margin = margin
        self.miner = miner
        self.distance: Distance = distance
        self.squared = squared
        self.reduction: Reduction = reduction
        self.stats = {}

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        """The scalar loss of embeddings (B, D) with labels (B,).

        Positives and negatives come from the batch without self, or from a reference (R, D) with labels
        (R,), a memory bank that must not hold the batch itself.

        Raises:
            ValueError: shapes that do not fit, a reference without its labels, or a miner that does not
                return `Mined`.
        """
        check_batch(embeddings, labels, reference, reference_labels)
        mined = self.miner(
            embeddings.detach(), labels, None if reference is None else reference.detach(), reference_labels
        )
        if not isinstance(mined, Mined):
            raise ValueError(f"the miner must return metricli.core.mining.Mined, got {type(mined).__name__}")
        if mined.everything:
            distances = batch_distances(embeddings, reference, self.distance)
            distances = distances.square() if self.squared else distances
            sums = all_triplets_sums(distances, *label_masks(labels, reference_labels), self.margin)
        elif mined.clusters is not None:
            sums = self._clustered(embeddings, embeddings if reference is None else reference, mined.clusters)
        else:
            sums = self._listed(embeddings, embeddings if reference is None else reference, _listed_in(mined))
        return self._reduced(sums)

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return (
            f"margin={self.margin}, distance={self.distance!r}, squared={self.squared}, "
            f"reduction={self.reduction!r}"
        )

    def _listed(self, embeddings: Tensor, reference: Tensor, triplets: Triplets) -> TripletSums:
        dtype = torch.promote_types(at_least_float32(embeddings).dtype, at_least_float32(reference).dtype)
        anchors, positives, negatives = triplets
        if len(anchors) * embeddings.shape[1] <= PAIRED_ELEMENTS:
            # not by brackets, whose backward pass sorts the indices
            anchored = embeddings.to(dtype).index_select(0, torch.cat([anchors, anchors]))
            others = reference.to(dtype).index_select(0, torch.cat([positives, negatives]))
            near, far = paired_distances(anchored, others, self.distance).tensor_split(2)
        else:
            distances = batch_distances(embeddings, reference, self.distance)
            near, far = distances[anchors, positives], distances[anchors, negatives]
        if self.squared:
            near, far = near.square(), far.square()
        return listed_triplets_sums(near, far, self.margin)

    def _clustered(self, embeddings: Tensor, reference: Tensor, clusters: Clusters) -> TripletSums:
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, reference = at_least_float32(embeddings), at_least_float32(reference)
            both = torch.cat([clusters.groups, clusters.reference_groups])
            count = int(both.max()) + 1 if len(both) else 0
            anchors = group_means(embeddings, clusters.groups, count)[clusters.anchors]
            others = group_means(reference, clusters.reference_groups, count)[clusters.negatives]
            near = paired_distances(anchors, reference[clusters.positives], self.distance)
            far = paired_distances(anchors, others, self.distance)
            if self.squared:
                near, far = near.square(), far.square()
            return listed_triplets_sums(near, far, self.margin)

    def _reduced(self, sums: TripletSums) -> Tensor:
        triplets = sums.triplets.clamp(min=1)
        self.stats = {
            "active": (sums.active / triplets).to(sums.loss.dtype),
            "positive_distance": sums.positive_distance / triplets,
            "negative_distance": sums.negative_distance / triplets,
            "triplets": sums.triplets.to(sums.loss.dtype),
        }
        if self.reduction == "sum":
            return sums.loss
        return sums.loss / (triplets if self.reduction == "mean" else sums.active.clamp(min=1))


def _listed_in(mined: Mined) -> Triplets:
    if mined.triplets is not None:
        return mined.triplets
    assert mined.positive_pairs is not None
    assert mined.negative_pairs is not None
    return triplets_of_pairs(mined.positive_pairs, mined.negative_pairs)
