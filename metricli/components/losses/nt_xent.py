"""Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020: NT-Xent."""

from __future__ import annotations

import math

from torch import Tensor

from metricli.components.losses.pairwise import PairwiseLoss, masked_mean
from metricli.core.losses.pairs import pair_cross_entropies

__all__ = ["NTXentLoss"]


class NTXentLoss(PairwiseLoss):
    """The temperature-scaled cross-entropy of each positive pair against the negatives of its anchor.

    With labels an anchor may have several positives: each gives one term, whose denominator holds that
    positive and the anchor's negatives, not the other positives. The loss is the mean over positive pairs; an
    anchor without a positive is left out, and of a batch without positives or without negatives it is zero.

    Args:
        temperature: divides the cosines; the lower, the more the nearest negatives count.

    Raises:
        ValueError: a temperature that is not above 0 or not finite.
    """

    def __init__(self, *, temperature: float = 0.07) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a finite number above 0, got {temperature!r}")
        self.temperature = float(temperature)

    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of cosine `distances` (B, R) with bool masks (B, R)."""
        losses = pair_cross_entropies((1 - distances) / self.temperature, negatives)
        return masked_mean(losses, positives), {}

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"temperature={self.temperature}"
