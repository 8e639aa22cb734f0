"""The softmax over cosines with a temperature (Wang et al. 2017, Zhai and Wu 2019)."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from metricli.components.losses.head import SoftmaxHeadLoss, SoftmaxHeadOptions, check_positive

__all__ = ["NormalizedSoftmaxLoss"]


class NormalizedSoftmaxLoss(SoftmaxHeadLoss):
    """Cross-entropy over cosines to a learnt centre for each label, divided by a temperature.

    Centres, statistics and `chosen` are those of `HeadLoss`.
    Wang et al., NormFace: L2 Hypersphere Embedding for Face Verification, 2017; Zhai and Wu,
    Classification is a Strong Baseline for Deep Metric Learning, 2019.

    Args:
        temperature: the cosines' divisor.
        head: settings of `SoftmaxHeadLoss`; dim and num_labels are required.

    Raises:
        ValueError: temperature not above 0, or as `SoftmaxHeadLoss`.
    """

    def __init__(self, *, temperature: float = 0.05, **head: Unpack[SoftmaxHeadOptions]) -> None:
        super().__init__(**head)
        self.temperature = check_positive("temperature", temperature)

    def logits(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """cos θ / temperature."""
        del labels
        return cosines / self.temperature

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"{super().extra_repr()}, temperature={self.temperature}"
