"""Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, 2016, in two forms."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from metricli.components.losses.pairwise import PairwiseLoss, masked_mean
from metricli.core.distances import Distance
from metricli.core.losses.pairs import anchor_mask, generalized_lifted_losses, lifted_losses

__all__ = ["LiftedForm", "LiftedStructureLoss"]

LiftedForm = Literal["pairwise", "generalized"]


class LiftedStructureLoss(PairwiseLoss):
    """Positive pairs, or anchors, against all their negatives at once, by a smooth maximum.

    "pairwise" is the paper's: ½ max(0, log Σ exp(margin - d) + d_ap)², the sum over the negatives of both
    ends of a positive pair, the mean over positive pairs. "generalized" is Hermans et al. 2017:
    max(0, log Σ exp(d_ap) + log Σ exp(margin - d_an)), all positives of an anchor at once, the mean over
    anchors, where the paper has a sum. An anchor without a positive is left out, and of a batch without
    positives or without negatives the loss is zero. With a reference the negatives of the other end of a
    pair are the anchors of another label. `stats` adds `active`, the share with a loss above 0.

    Args:
        margin: in units of the distance.
        form: "pairwise" or "generalized".
        distance: "euclidean", or "cosine" (1 - cos, in [0, 2]).

    Raises:
        ValueError: an unknown form or distance, or a margin below 0 or not finite.
    """

    def __init__(
        self, *, margin: float = 1.0, form: LiftedForm = "pairwise", distance: Distance = "euclidean"
    ) -> None:
        super().__init__()
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin must be a finite number, 0 or more, got {margin!r}")
        if form not in ("pairwise", "generalized"):
            raise ValueError(f"form must be 'pairwise' or 'generalized', got {form!r}")
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}")
        self.margin = float(margin)
        self.form: LiftedForm = form
        self.distance = distance

    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of `distances` (B, R) with bool masks (B, R)."""
        if self.form == "pairwise":
            losses, counted = lifted_losses(distances, negatives, self.margin), positives
        else:
            losses = generalized_lifted_losses(distances, positives, negatives, self.margin)
            counted = anchor_mask(positives, negatives)
        active = (losses.detach() > 0).to(losses.dtype)
        return masked_mean(losses, counted), {"active": masked_mean(active, counted)}

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"margin={self.margin}, form={self.form!r}, distance={self.distance!r}"
