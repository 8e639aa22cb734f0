"""Proxy-NCA++: each embedding against one proxy of every label, with a temperature (Teh et al. 2020)."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from metricli.components.losses.head import SoftmaxHeadLoss, SoftmaxHeadOptions, check_positive

__all__ = ["ProxyNCALoss"]


class ProxyNCALoss(SoftmaxHeadLoss):
    """Cross-entropy over squared Euclidean distances of unit vectors to a proxy for each label.

    The probability of a label is exp(-d² / temperature) over the sum of that of all labels, its own among
    them. Proxies are the centres of `HeadLoss`, whose statistics and `chosen` these are.
    Teh et al., ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component Analysis, 2020.

    Args:
        temperature: the squared distances' divisor; the paper's is 1/9.
        head: settings of `SoftmaxHeadLoss`; dim and num_labels are required.

    Raises:
        ValueError: temperature not above 0, or as `SoftmaxHeadLoss`.
    """

    def __init__(self, *, temperature: float = 0.11, **head: Unpack[SoftmaxHeadOptions]) -> None:
        super().__init__(**head)
        self.temperature = check_positive("temperature", temperature)

    def logits(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """-d² / temperature up to a constant: of unit vectors d² = 2 - 2 cos θ."""
        del labels
        return cosines * (2 / self.temperature)

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"{super().extra_repr()}, temperature={self.temperature}"
