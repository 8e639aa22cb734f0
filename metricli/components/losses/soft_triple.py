"""SoftTriple: several centres for each label, softly chosen, and no more than needed (Qian et al. 2019)."""

from __future__ import annotations

import math
from typing import Unpack

import torch.nn.functional as F
from torch import Tensor

from metricli.components.losses.head import HeadLoss, HeadOptions, check_cosine_margin, check_positive
from metricli.core.distances import at_least_float32, unit_rows
from metricli.core.losses.classification import cosface_logits
from metricli.core.losses.proxies import center_spread, soft_similarities

__all__ = ["SoftTripleLoss"]


class SoftTripleLoss(HeadLoss):
    """Cross-entropy over similarities to labels, each a softmax-weighted mean of cosines to its centres.

    Row `label * centers_per_label + k` of `weight` is centre k of a label. The distances between centres of
    one label are added, times tau, so that those a label does not need fall together. Statistics and
    `chosen` are those of `HeadLoss`, with the similarity in place of the cosine, and `center_spread`, the
    mean distance between centres of one label.
    Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, 2019.

    Args:
        centers_per_label: centres of each label.
        la: λ, the similarities' multiplier.
        gamma: temperature of the softmax over the centres of a label.
        margin: a difference of cosines, in [0, 1).
        tau: weight of the regulariser, half the mean distance between centres of one label.
        head: settings of `HeadLoss`; dim and num_labels are required.

    Raises:
        ValueError: la or gamma not above 0, a margin outside [0, 1), tau below 0 or not finite, or as
            `HeadLoss`.
    """

    def __init__(
        self,
        *,
        centers_per_label: int = 10,
        la: float = 20.0,
        gamma: float = 0.1,
        margin: float = 0.01,
        tau: float = 0.2,
        **head: Unpack[HeadOptions],
    ) -> None:
        super().__init__(centers_per_label=centers_per_label, **head)
        if not 0 <= tau < math.inf:
            raise ValueError(f"tau must be a finite number, 0 or more, got {tau!r}")
        self.la = check_positive("la", la)
        self.gamma = check_positive("gamma", gamma)
        self.margin = check_cosine_margin(margin)
        self.tau = float(tau)

    def of_labels(self, cosines: Tensor) -> Tensor:
        """Similarities to labels (B, num_labels)."""
        return soft_similarities(self.by_label(cosines), self.gamma)

    def of_cosines(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy, and the regulariser."""
        logits = cosface_logits(cosines, labels, self.la, self.margin)
        loss = F.cross_entropy(logits, labels) if len(labels) else logits.sum()
        centres = unit_rows(at_least_float32(self.weight))
        spread = center_spread(centres.reshape(self.num_labels, self.centers_per_label, -1))
        self.stats["center_spread"] = spread.detach()
        return loss + self.tau / 2 * spread

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        settings = f"la={self.la}, gamma={self.gamma}, margin={self.margin}, tau={self.tau}"
        return f"{super().extra_repr()}, {settings}"
