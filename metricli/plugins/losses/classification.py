"""The doors to losses that classify labels, their head inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.plugins.losses.common import judged_by_another
from metricli.specs.kinds import LossSpec

if TYPE_CHECKING:
    from torch import nn

    from metricli.data.facts import TableFacts


class ArcFace(LossSpec):
    """ArcFace: classification with an angular margin, its head inside the loss (Deng et al. 2019)."""

    name: Literal["arcface"] = "arcface"
    scale: float = Field(64.0, gt=0, description="scale of the cosines, the inverse of a temperature")
    margin: float = Field(0.5, ge=0, description="angular margin in radians")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability spread over all labels")
    category_smoothing: float = Field(
        0.0, ge=0, lt=1, description="probability spread over the labels of the same category"
    )

    @property
    def needs_categories(self) -> bool:  # type: ignore[override]
        """Only smoothing within the category does."""
        return self.category_smoothing > 0

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """An `ArcFaceLoss` with a head of `num_labels` vectors of `dim`."""
        from metricli.components.losses import ArcFaceLoss

        return ArcFaceLoss(
            dim=dim,
            num_labels=num_labels,
            scale=self.scale,
            margin=self.margin,
            label_smoothing=self.label_smoothing,
            category_smoothing=self.category_smoothing,
            label_to_category=label_to_category if self.category_smoothing else None,
        )

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The margin in its units, and smoothing that has something to smooth."""
        problems = super().check(spec, table)
        if self.margin > math.pi / 2:
            what = (
                f"{self.margin:g} is more than a quarter turn (1.57); the margin is in radians, 0.5 is usual"
            )
            problems.append(Problem("margin", what))
        if self.label_smoothing + self.category_smoothing >= 1:
            total = f"{self.label_smoothing:g} + {self.category_smoothing:g}"
            problems.append(
                Problem(
                    "category_smoothing", f"the two smoothings must leave a share to the label: {total} >= 1"
                )
            )
        if self.scale < 4:
            what = f"{self.scale:g} is so low that the softmax stays flat; 16 to 64 is usual"
            problems.append(Problem("scale", what, severity="warning"))
        return problems + judged_by_another("", "cosine", spec)
