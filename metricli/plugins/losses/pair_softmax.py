"""The doors to losses that put a softmax over the pairs of an anchor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.plugins.losses.common import judged_by_another
from metricli.plugins.losses.memory import ReferenceLossSpec

if TYPE_CHECKING:
    from torch import nn

    from metricli.data.facts import TableFacts


class NTXent(ReferenceLossSpec):
    """NT-Xent: a softmax of each positive pair against the anchor's negatives (Chen et al. 2020).

    Use it for ranking with large batches, which give it many negatives; it has one setting and no margin.
    With many images of a label in a batch `supcon` weighs them alike.
    """

    name: Literal["nt_xent"] = "nt_xent"
    temperature: float = Field(0.07, gt=0, description="divides the cosines; lower: nearest negatives count")

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """An `NTXentLoss`."""
        from metricli.components.losses import NTXentLoss

        del num_labels, label_to_category
        loss = NTXentLoss(temperature=self.temperature)
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A temperature that makes the softmax flat or hard."""
        problems = super().check(spec, table) + _doubtful_temperature(self.temperature)
        return problems + judged_by_another("", "cosine", spec)


class NPairs(ReferenceLossSpec):
    """N-pair loss: a softmax over inner products, for embeddings of free length (Sohn 2016).

    Use it with `extractor.normalize: false`, where the model may learn its own scale. For normalised
    embeddings `nt_xent` is the same loss with a temperature.
    """

    name: Literal["n_pairs"] = "n_pairs"
    l2_penalty: float = Field(0.0, ge=0, description="weight of the embeddings' mean squared length")

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """An `NPairsLoss`."""
        from metricli.components.losses import NPairsLoss

        del num_labels, label_to_category
        loss = NPairsLoss(l2_penalty=self.l2_penalty)
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Embeddings of free length, and a ranking that is near that of inner products."""
        problems = super().check(spec, table)
        if spec.extractor.normalize:
            if self.l2_penalty > 0:
                what = "the embeddings are normalised, so their length is always 1; remove it"
                problems.append(Problem("l2_penalty", what))
            what = (
                "inner products of normalised embeddings are at most 1, so that the softmax stays flat; "
                "set extractor.normalize: false, or take loss: nt_xent, which has a temperature"
            )
            problems.append(Problem("", what, severity="warning"))
        elif spec.validation.distance != "cosine":
            what = (
                f"the loss learns inner products, and validation.distance is {spec.validation.distance}, "
                "which ranks embeddings of different lengths otherwise; set validation.distance: cosine"
            )
            problems.append(Problem("", what, severity="warning"))
        return problems


class SupCon(ReferenceLossSpec):
    """SupCon: a softmax over the batch that all positives of an anchor share (Khosla et al. 2020, L_out).

    Use it where batches hold several images of each label: all of them pull alike. Large batches help, as
    with `nt_xent`.
    """

    name: Literal["supcon"] = "supcon"
    temperature: float = Field(0.1, gt=0, description="divides the cosines; lower: nearest rows count")

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `SupConLoss`."""
        from metricli.components.losses import SupConLoss

        del num_labels, label_to_category
        loss = SupConLoss(temperature=self.temperature)
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A temperature that makes the softmax flat or hard."""
        problems = super().check(spec, table) + _doubtful_temperature(self.temperature)
        return problems + judged_by_another("", "cosine", spec)


def _doubtful_temperature(temperature: float) -> list[Problem]:
    if temperature > 1:
        what = (
            f"{temperature:g} keeps a softmax of cosines, which span -1 to 1, so flat that all negatives "
            "count alike; 0.05 to 0.5 is usual"
        )
    elif temperature < 0.01:
        what = (
            f"{temperature:g} is so low that the nearest negative counts alone, a wrong label first; "
            "0.05 to 0.5 is usual"
        )
    else:
        return []
    return [Problem("temperature", what, severity="warning")]
