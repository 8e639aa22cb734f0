"""The doors to losses that classify labels, their head inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.plugins.losses.heads import (
    HeadSpec,
    cosine_margin_problems,
    scale_problems,
    temperature_problems,
)

if TYPE_CHECKING:
    from torch import nn

    from metricli.data.facts import TableFacts


class SoftmaxHeadSpec(HeadSpec):
    """A head that is a cross-entropy over labels: its targets can be smoothed."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread over all labels")
    category_smoothing: float = Field(
        0.0, ge=0, lt=1, description="probability spread over the labels of the same category"
    )

    @property
    def needs_categories(self) -> bool:  # type: ignore[override]
        """Only smoothing within the category does."""
        return self.category_smoothing > 0

    def head(self, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> dict[str, Any]:
        """The arguments of every component of this kind."""
        return {
            **super().head(dim, num_labels, label_to_category),
            "label_smoothing": self.label_smoothing,
            "category_smoothing": self.category_smoothing,
            "label_to_category": label_to_category if self.category_smoothing else None,
        }

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Smoothing that leaves a share to the label."""
        problems = super().check(spec, table)
        if self.label_smoothing + self.category_smoothing >= 1:
            total = f"{self.label_smoothing:g} + {self.category_smoothing:g}"
            what = f"the two smoothings must leave a share to the label: {total} >= 1"
            problems.append(Problem("category_smoothing", what))
        return problems


class AngularMarginSpec(SoftmaxHeadSpec):
    """A softmax over cosines with an angular margin."""

    scale: float = Field(64.0, gt=0, description="scale of the cosines, the inverse of a temperature")
    margin: float = Field(0.5, ge=0, description="angular margin in radians")

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The margin in its units, and a scale that the softmax can work with."""
        problems = super().check(spec, table)
        if self.margin > math.pi / 2:
            what = (
                f"{self.margin:g} is more than a quarter turn (1.57); the margin is in radians, "
                f"0.5 is usual, and {self.margin:g}° are {math.radians(self.margin):.3g}"
            )
            problems.append(Problem("margin", what))
        return problems + scale_problems("scale", self.scale, table)


class ArcFace(AngularMarginSpec):
    """ArcFace: classification with an angular margin, its head inside the loss (Deng et al. 2019).

    Use it where labels are many, have clean images, and those to come are told apart by the same traits: it
    is the usual first choice for faces and re-identification. It needs no sampler and no miner.
    """

    name: Literal["arcface"] = "arcface"

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """An `ArcFaceLoss` with a centre for each of `num_labels`."""
        from metricli.components.losses import ArcFaceLoss

        return ArcFaceLoss(
            scale=self.scale, margin=self.margin, **self.head(dim, num_labels, label_to_category)
        )


class SubCenterArcFace(AngularMarginSpec):
    """ArcFace with several centres for each label, of which the nearest counts (Deng et al. 2020).

    Use it instead of ArcFace where some labels hold wrong images or several looks: each finds a centre of
    its own and stops pulling on the others. With clean labels it gains nothing and its head is larger.
    """

    name: Literal["sub_center_arcface"] = "sub_center_arcface"
    centers_per_label: int = Field(3, ge=2, description="centres of each label")

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `SubCenterArcFaceLoss` with `centers_per_label` centres for each of `num_labels`."""
        from metricli.components.losses import SubCenterArcFaceLoss

        return SubCenterArcFaceLoss(
            centers_per_label=self.centers_per_label,
            scale=self.scale,
            margin=self.margin,
            **self.head(dim, num_labels, label_to_category),
        )


class CosFace(SoftmaxHeadSpec):
    """CosFace: classification with a margin between cosines, its head inside the loss (Wang et al. 2018).

    Use it where ArcFace is slow to start or unstable: its gradient is the plain softmax's, and results are
    much the same. It needs no sampler and no miner.
    """

    name: Literal["cosface"] = "cosface"
    scale: float = Field(64.0, gt=0, description="scale of the cosines, the inverse of a temperature")
    margin: float = Field(0.35, ge=0, description="margin as a difference of cosines, below 1")

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `CosFaceLoss` with a centre for each of `num_labels`."""
        from metricli.components.losses import CosFaceLoss

        return CosFaceLoss(
            scale=self.scale, margin=self.margin, **self.head(dim, num_labels, label_to_category)
        )

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The margin in its units, and a scale that the softmax can work with."""
        return [
            *super().check(spec, table),
            *cosine_margin_problems(self.margin, usual="0.35"),
            *scale_problems("scale", self.scale, table),
        ]


class AdaCos(SoftmaxHeadSpec):
    """AdaCos: classification by cosine whose scale sets itself, without a margin (Zhang et al. 2019).

    Use it as a first classification loss on a new table, since there is nothing to tune. Where there is time
    to tune scale and margin, ArcFace or CosFace usually end higher.
    """

    name: Literal["adacos"] = "adacos"

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """An `AdaCosLoss` with a centre for each of `num_labels`."""
        from metricli.components.losses import AdaCosLoss

        return AdaCosLoss(**self.head(dim, num_labels, label_to_category))

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Labels enough for its scale."""
        problems = super().check(spec, table)
        if table is not None and table.train_labels < 3:
            what = (
                f"its scale, sqrt(2) * log(labels - 1), needs 3 labels or more, and the table has "
                f"{table.train_labels}; normalized_softmax works with any number"
            )
            problems.append(Problem("", what))
        return problems


class NormalizedSoftmax(SoftmaxHeadSpec):
    """Softmax over cosines with a temperature, without a margin (Wang et al. 2017, Zhai and Wu 2019).

    Use it as the baseline that a margin must beat, and for retrieval of products or landmarks, where it is
    hard to beat. It needs no sampler and no miner.
    """

    name: Literal["normalized_softmax"] = "normalized_softmax"
    temperature: float = Field(0.05, gt=0, description="what the cosines are divided by")

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `NormalizedSoftmaxLoss` with a centre for each of `num_labels`."""
        from metricli.components.losses import NormalizedSoftmaxLoss

        return NormalizedSoftmaxLoss(
            temperature=self.temperature, **self.head(dim, num_labels, label_to_category)
        )

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A temperature that the softmax can work with."""
        return super().check(spec, table) + temperature_problems(self.temperature, table, usual="0.05")
