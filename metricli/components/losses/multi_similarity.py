"""Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, 2019."""

from __future__ import annotations

import math

from torch import Tensor

from metricli.components.losses.pairwise import PairwiseLoss, masked_mean
from metricli.core.losses.pairs import multi_similarity_losses, multi_similarity_pairs

__all__ = ["MultiSimilarityLoss"]


class MultiSimilarityLoss(PairwiseLoss):
    """Soft hinges over the cosines of an anchor's positives and negatives, after the paper's choice of pairs.

    The loss is the mean over all anchors, as in the paper; a sum over no pairs is 0, so an anchor without
    positives has its negative term alone, and with `mine` no term at all. `stats` adds `positives_kept` and
    `negatives_kept`, the shares of pairs that are left after the choice.

    Args:
        alpha: sharpness of the positive term.
        beta: sharpness of the negative term.
        base: the cosine that both terms pull over; 0.5 in the authors' code.
        mine: keep only positives less similar than the nearest negative plus epsilon, and negatives more
            similar than the farthest positive minus epsilon.
        epsilon: slack of that choice, in units of the cosine.

    Raises:
        ValueError: alpha or beta not above 0, or a value that is not finite.
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        mine: bool = True,
        epsilon: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
        for name, value in (("base", base), ("epsilon", epsilon)):
            if not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.base = float(base)
        self.mine = mine
        self.epsilon = float(epsilon)

    def of_distances(
        self, distances: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of cosine `distances` (B, R) with bool masks (B, R)."""
        similarities = 1 - distances
        kept = positives, negatives
        if self.mine:
            kept = multi_similarity_pairs(similarities.detach(), positives, negatives, self.epsilon)
        losses = multi_similarity_losses(similarities, *kept, self.alpha, self.beta, self.base)
        dtype = losses.dtype
        return losses.sum() / max(1, len(losses)), {
            "positives_kept": masked_mean(kept[0].to(dtype), positives),
            "negatives_kept": masked_mean(kept[1].to(dtype), negatives),
        }

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return (
            f"alpha={self.alpha}, beta={self.beta}, base={self.base}, mine={self.mine}, "
            f"epsilon={self.epsilon}"
        )
