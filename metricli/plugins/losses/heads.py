"""What the doors to losses with learnt centres have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from metricli.errors import Problem
from metricli.plugins.losses.common import judged_by_another
from metricli.specs.kinds import LossSpec

if TYPE_CHECKING:
    from metricli.data.facts import TableFacts

LEAST_SCALE = 4.0
"""Below it the softmax over cosines is flat whatever the number of labels."""


class HeadSpec(LossSpec):
    """A loss that owns a matrix of centres (proxies), by cosine."""

    mlp: list[Annotated[int, Field(ge=2)]] = Field(
        default_factory=list,
        description="hidden and output sizes of linear layers, ReLU between, that training puts before the "
        "centres; the embeddings are those before them",
    )

    def head(self, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> dict[str, Any]:
        """The arguments of every component of this kind."""
        del label_to_category
        return {"dim": dim, "num_labels": num_labels, "mlp": self.mlp}

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The distance that the embeddings are judged by."""
        return super().check(spec, table) + judged_by_another("", "cosine", spec)


def scale_problems(
    key: str, scale: float, table: TableFacts | None, usual: str = "16 to 64"
) -> list[Problem]:
    """A warning about a scale of cosines that leaves the softmax flat."""
    if scale < LEAST_SCALE:
        what = f"{scale:g} is so low that the softmax stays flat; {usual} is usual"
    elif table is not None and scale < (least := least_scale(table.train_labels)):
        what = (
            f"{scale:g} is low for {table.train_labels} labels: below {math.ceil(least * 10) / 10:g} even "
            f"evenly spread centres cannot give each label a probability of 0.9; {usual} is usual"
        )
    else:
        return []
    return [Problem(key, what, severity="warning")]


def temperature_problems(
    temperature: float, table: TableFacts | None, *, usual: str, numerator: float = 1.0
) -> list[Problem]:
    """A warning about a temperature that leaves the softmax flat; `numerator` / temperature is the scale."""
    scale = numerator / temperature
    if scale < LEAST_SCALE:
        what = f"{temperature:g} is so high that the softmax stays flat; {usual} is usual"
    elif table is not None and scale < (least := least_scale(table.train_labels)):
        most = math.floor(numerator / least * 1000) / 1000
        what = (
            f"{temperature:g} is high for {table.train_labels} labels: above {most:g} even evenly spread "
            f"centres cannot give each label a probability of 0.9; {usual} is usual"
        )
    else:
        return []
    return [Problem("temperature", what, severity="warning")]


def cosine_margin_problems(margin: float, usual: str) -> list[Problem]:
    """An error about a margin that is no difference of cosines."""
    if margin < 1:
        return []
    what = f"{margin:g} is not below 1; the margin is a difference of cosines, {usual} is usual"
    return [Problem("margin", what)]


def least_scale(num_labels: int, probability: float = 0.9) -> float:
    """The scale at which centres spread as far as they can give each label this probability at its centre.

    (C - 1) / C * log((C - 1) p / (1 - p)) for C labels, 0 for one (Wang et al., CosFace, 2018, equation 6).
    """
    others = num_labels - 1
    return others / num_labels * math.log(others * probability / (1 - probability)) if others > 0 else 0.0
