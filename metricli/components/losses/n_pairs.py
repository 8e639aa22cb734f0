"""Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, 2016."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metricli.components.losses.pairwise import PairwiseLoss, masked_mean
from metricli.core.distances import at_least_float32
from metricli.core.losses.pairs import pair_cross_entropies
from metricli.core.mining import check_batch, label_masks

__all__ = ["NPairsLoss"]


class NPairsLoss(PairwiseLoss):
    """log(1 + Σ_n exp(x_a·x_n - x_a·x_p)) over positive pairs, by inner products.

    The paper draws one pair of each label, and takes the positives of the other pairs as negatives of an
    anchor; here every positive pair (a, p) gives one term, against all rows of other labels. With the pairs'
    anchors as embeddings and their positives as reference it is the paper's loss. The loss is the mean
    over positive pairs; an anchor without a positive is left out, and of a batch without positives or without
    negatives the loss is zero, but for the penalty.
    After each call `stats` holds `positive_product` and `negative_product`, the mean inner products, and
    `squared_norm`, the mean squared length of the embeddings.

    Args:
        l2_penalty: weight of the mean squared length of the embeddings, added to the loss of a batch; not to
            that against a reference, so that a memory bank does not count it twice.

    Raises:
        ValueError: a penalty below 0 or not finite.
    """

    def __init__(self, *, l2_penalty: float = 0.0) -> None:
        super().__init__()
        if not 0 <= l2_penalty < math.inf:
            raise ValueError(f"l2_penalty must be a finite number, 0 or more, got {l2_penalty!r}")
        self.l2_penalty = float(l2_penalty)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        """The scalar loss of embeddings (B, D) with labels (B,), against a reference as the base has it.

        Raises:
            ValueError: shapes that do not fit, or a reference without its labels.
        """
        check_batch(embeddings, labels, reference, reference_labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            rows = at_least_float32(embeddings)
            others = rows if reference is None else at_least_float32(reference)
            dtype = torch.promote_types(rows.dtype, others.dtype)
            products = rows.to(dtype) @ others.to(dtype).T
            positives, negatives = label_masks(labels, reference_labels)
            loss, _ = self.of_distances(-products, positives, negatives)
            squared_norm = rows.square().sum() / max(1, len(rows))
        known = products.detach()
        self.stats = {
            "positive_product": masked_mean(known, positives),
            "negative_product": masked_mean(known, negatives),
            "squared_norm": squared_norm.detach(),
        }
        return loss if reference is not None else loss + self.l2_penalty * squared_norm

    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss without its penalty; `distances` (B, R) are negated inner products."""
        losses = pair_cross_entropies(-distances, negatives)
        return masked_mean(losses, positives), {}

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"l2_penalty={self.l2_penalty}"
