"""Proxy-Anchor: one proxy for each label, each the anchor of the whole batch (Kim et al. 2020)."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from metricli.components.losses.head import HeadLoss, HeadOptions, check_cosine_margin, check_positive
from metricli.core.losses.proxies import proxy_anchor_loss

__all__ = ["ProxyAnchorLoss"]


class ProxyAnchorLoss(HeadLoss):
    """Pulls embeddings to the proxy of their label and pushes others off it, the hard ones the most.

    Proxies are the centres of `HeadLoss`, whose statistics and `chosen` these are.
    Kim et al., Proxy Anchor Loss for Deep Metric Learning, 2020.

    Args:
        alpha: how much more a hard example counts than an easy one.
        margin: a difference of cosines, in [0, 1).
        head: settings of `HeadLoss`; dim and num_labels are required.

    Raises:
        ValueError: alpha not above 0, a margin outside [0, 1), or as `HeadLoss`.
    """

    def __init__(self, *, alpha: float = 32.0, margin: float = 0.1, **head: Unpack[HeadOptions]) -> None:
        super().__init__(**head)
        self.alpha = check_positive("alpha", alpha)
        self.margin = check_cosine_margin(margin)

    def of_cosines(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """The mean over proxies with a positive, and that over all proxies."""
        return proxy_anchor_loss(cosines, labels, self.alpha, self.margin)

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"{super().extra_repr()}, alpha={self.alpha}, margin={self.margin}"
