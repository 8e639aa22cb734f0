"""The doors to losses of proxies, which their labels own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.plugins.losses.classification import SoftmaxHeadSpec
from metricli.plugins.losses.heads import (
    LEAST_SCALE,
    HeadSpec,
    cosine_margin_problems,
    scale_problems,
    temperature_problems,
)

if TYPE_CHECKING:
    from torch import nn

    from metricli.data.facts import TableFacts


class ProxyNCA(SoftmaxHeadSpec):
    """Proxy-NCA++: each embedding nearer to the proxy of its label than to any other (Teh et al. 2020).

    Use it on fine-grained tables of tens to a few thousand labels, where it learns fast in small batches.
    Give the proxies an `optimizer.loss_lr` far above the backbone's lr, as the paper does.
    """

    name: Literal["proxy_nca"] = "proxy_nca"
    temperature: float = Field(
        0.11, gt=0, description="what the squared distances are divided by; the paper's is 1/9"
    )

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `ProxyNCALoss` with a proxy for each of `num_labels`."""
        from metricli.components.losses import ProxyNCALoss

        return ProxyNCALoss(temperature=self.temperature, **self.head(dim, num_labels, label_to_category))

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A temperature that the softmax can work with; squared distances are twice the cosines."""
        problems = super().check(spec, table)
        return problems + temperature_problems(self.temperature, table, usual="0.11", numerator=2)


class ProxyAnchor(HeadSpec):
    """Proxy-Anchor: proxies pull and push the whole batch, hard examples the most (Kim et al. 2020).

    Use it on fine-grained tables with large batches, where relations within the batch help and triplets are
    slow to converge. Give the proxies an `optimizer.loss_lr` some 100 times the lr, as the paper does.
    """

    name: Literal["proxy_anchor"] = "proxy_anchor"
    alpha: float = Field(32.0, gt=0, description="how much more a hard example counts than an easy one")
    margin: float = Field(0.1, ge=0, description="margin as a difference of cosines, below 1")

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `ProxyAnchorLoss` with a proxy for each of `num_labels`."""
        from metricli.components.losses import ProxyAnchorLoss

        return ProxyAnchorLoss(
            alpha=self.alpha, margin=self.margin, **self.head(dim, num_labels, label_to_category)
        )

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The margin in its units, and an alpha that tells hard from easy."""
        problems = super().check(spec, table) + cosine_margin_problems(self.margin, usual="0.1")
        if self.alpha < LEAST_SCALE:
            what = f"{self.alpha:g} is so low that hard and easy examples count alike; 32 is usual"
            problems.append(Problem("alpha", what, severity="warning"))
        return problems


class SoftTriple(HeadSpec):
    """SoftTriple: a softmax over labels of several centres each, superfluous ones merged (Qian et al. 2019).

    Use it where a label has several looks, such as sides of a product, so that one centre for all of them
    would be nowhere. With one look a label, normalized_softmax does the same with a smaller head.
    """

    name: Literal["soft_triple"] = "soft_triple"
    centers_per_label: int = Field(10, ge=1, description="centres of each label")
    la: float = Field(20.0, gt=0, description="λ, the scale of the similarities")
    gamma: float = Field(0.1, gt=0, description="temperature of the softmax over the centres of a label")
    margin: float = Field(0.01, ge=0, description="margin as a difference of cosines, below 1")
    tau: float = Field(0.2, ge=0, description="weight of the regulariser that merges centres of a label")

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `SoftTripleLoss` with `centers_per_label` centres for each of `num_labels`."""
        from metricli.components.losses import SoftTripleLoss

        return SoftTripleLoss(
            centers_per_label=self.centers_per_label,
            la=self.la,
            gamma=self.gamma,
            margin=self.margin,
            tau=self.tau,
            **self.head(dim, num_labels, label_to_category),
        )

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The margin in its units, and a scale that the softmax can work with."""
        return [
            *super().check(spec, table),
            *cosine_margin_problems(self.margin, usual="0.01"),
            *scale_problems("la", self.la, table, usual="20"),
        ]
