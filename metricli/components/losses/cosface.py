"""CosFace: classification of labels by cosine, with an additive margin (Wang et al. 2018)."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from metricli.components.losses.head import (
    SoftmaxHeadLoss,
    SoftmaxHeadOptions,
    check_cosine_margin,
    check_positive,
)
from metricli.core.losses.classification import cosface_logits

__all__ = ["CosFaceLoss"]


class CosFaceLoss(SoftmaxHeadLoss):
    """Cross-entropy over scaled cosines to a learnt centre for each label, the target's less a margin.

    Centres, statistics and `chosen` are those of `HeadLoss`.
    Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, 2018.

    Args:
        scale: the cosines' multiplier.
        margin: a difference of cosines, in [0, 1).
        head: settings of `SoftmaxHeadLoss`; dim and num_labels are required.

    Raises:
        ValueError: scale not above 0, a margin outside [0, 1), or as `SoftmaxHeadLoss`.
    """

    def __init__(
        self, *, scale: float = 64.0, margin: float = 0.35, **head: Unpack[SoftmaxHeadOptions]
    ) -> None:
        super().__init__(**head)
        self.scale = check_positive("scale", scale)
        self.margin = check_cosine_margin(margin)

    def logits(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """scale * cos θ, and scale * (cos θ - margin) for the target."""
        return cosface_logits(cosines, labels, self.scale, self.margin)

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"{super().extra_repr()}, scale={self.scale}, margin={self.margin}"
