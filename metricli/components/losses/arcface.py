"""ArcFace: classification of labels by angle, with an additive angular margin (Deng et al. 2019)."""

from __future__ import annotations

import math
from typing import Unpack

from torch import Tensor

from metricli.components.losses.head import SoftmaxHeadLoss, SoftmaxHeadOptions, check_positive
from metricli.core.losses.classification import arcface_logits

__all__ = ["ArcFaceLoss"]


class ArcFaceLoss(SoftmaxHeadLoss):
    """Cross-entropy over scaled cosines to a learnt centre for each label, with an angular margin.

    Centres, statistics and `chosen` are those of `HeadLoss`.
    Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019.

    Args:
        scale: the cosines' multiplier; 64 is the paper's, found on 85 thousand labels, and the peers'
            default. Some 30 gives a softer loss that suits a few thousand labels or less.
        margin: in radians, in [0, π/2].
        centers_per_label: centres of each label, of which the nearest counts.
        head: settings of `SoftmaxHeadLoss`; dim and num_labels are required.

    Raises:
        ValueError: scale not above 0, a margin outside [0, π/2], or as `SoftmaxHeadLoss`.
    """

    def __init__(
        self,
        *,
        scale: float = 64.0,
        margin: float = 0.5,
        centers_per_label: int = 1,
        **head: Unpack[SoftmaxHeadOptions],
    ) -> None:
        super().__init__(centers_per_label=centers_per_label, **head)
        if not 0 <= margin <= math.pi / 2:
            raise ValueError(f"margin must be in radians, from 0 to π/2, got {margin!r}")
        self.scale = check_positive("scale", scale)
        self.margin = float(margin)

    def logits(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """scale * cos θ, and scale * cos(θ + margin) for the target."""
        return arcface_logits(cosines, labels, self.scale, self.margin)

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"{super().extra_repr()}, scale={self.scale}, margin={self.margin}"
