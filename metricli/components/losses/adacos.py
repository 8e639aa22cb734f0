"""AdaCos: the softmax over cosines with a scale that sets itself (Zhang et al. 2019)."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from metricli.components.losses.head import SoftmaxHeadLoss, SoftmaxHeadOptions
from metricli.core.losses.classification import adacos_scale, fixed_adacos_scale

__all__ = ["AdaCosLoss"]


class AdaCosLoss(SoftmaxHeadLoss):
    """Cross-entropy over cosines to a learnt centre for each label, times a scale that needs no setting.

    The scale starts at √2 log(num_labels - 1). In training each batch sets it anew, before it is used, from
    the cosines to other labels and the median cosine to the target; it stays within a tenth and ten times
    its start, since a batch of equal embeddings would make it grow without end, and does not follow cosines
    that are not finite. It is the buffer `scale`, saved with the weights, and among `stats`. Centres, the
    other statistics and `chosen` are those of `HeadLoss`.
    Zhang et al., AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face
    Representations, 2019.

    Args:
        head: settings of `SoftmaxHeadLoss`; dim and num_labels are required.

    Raises:
        ValueError: num_labels below 3, where the scale would be 0, or as `SoftmaxHeadLoss`.
    """

    scale: Tensor

    def __init__(self, **head: Unpack[SoftmaxHeadOptions]) -> None:
        super().__init__(**head)
        if self.num_labels < 3:
            raise ValueError(f"num_labels must be 3 or more, got {self.num_labels!r}")
        self.register_buffer("scale", torch.tensor(fixed_adacos_scale(self.num_labels)))

    def logits(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """scale * cos θ, after the scale has followed the batch."""
        if self.training and len(labels):
            self.scale.copy_(adacos_scale(cosines.detach(), labels, self.scale.to(cosines.dtype)))
        scale = self.scale.to(cosines.dtype, copy=True)  # the next call changes the buffer in place
        self.stats["scale"] = scale
        return scale * cosines
