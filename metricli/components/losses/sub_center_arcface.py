"""Sub-center ArcFace: ArcFace with several centres for each label (Deng et al. 2020)."""

from __future__ import annotations

from typing import Unpack

from metricli.components.losses.arcface import ArcFaceLoss
from metricli.components.losses.head import SoftmaxHeadOptions

__all__ = ["SubCenterArcFaceLoss"]


class SubCenterArcFaceLoss(ArcFaceLoss):
    """ArcFace over the cosine to the nearest of a label's centres, so that mislabelled images get their own.

    Row `label * centers_per_label + k` of `weight` is centre k of a label.
    Deng et al., Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces, 2020.

    Args:
        centers_per_label: centres of each label; 3 is the paper's.
        scale: as of `ArcFaceLoss`.
        margin: in radians, in [0, π/2].
        head: settings of `SoftmaxHeadLoss`; dim and num_labels are required.

    Raises:
        ValueError: as `ArcFaceLoss`.
    """

    def __init__(
        self,
        *,
        centers_per_label: int = 3,
        scale: float = 64.0,
        margin: float = 0.5,
        **head: Unpack[SoftmaxHeadOptions],
    ) -> None:
        super().__init__(centers_per_label=centers_per_label, scale=scale, margin=margin, **head)
