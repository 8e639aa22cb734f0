"""The doors to losses that rank a batch: smooth surrogates of average precision, recall and precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.plugins.losses.common import judged_by_another
from metricli.plugins.losses.memory import ReferenceLossSpec

if TYPE_CHECKING:
    from torch import nn

    from metricli.data.facts import TableFacts


class SmoothAP(ReferenceLossSpec):
    """Smooth-AP: average precision itself, its ranks counted by sigmoids (Brown et al. 2020).

    Use it when the whole ranking counts (mAP) and a batch holds several images of each label, 4 or more.
    Take the batch as large as memory allows: its ranking stands in for that of the gallery.
    """

    name: Literal["smooth_ap"] = "smooth_ap"
    temperature: float = Field(0.01, gt=0, description="temperature of the sigmoids, in units of the cosine")

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `SmoothAPLoss`."""
        from metricli.components.losses import SmoothAPLoss

        del num_labels, label_to_category
        loss = SmoothAPLoss(temperature=self.temperature)
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A temperature that still ranks and still learns."""
        problems = super().check(spec, table) + _of_ranks("temperature", self.temperature)
        return problems + judged_by_another("", "cosine", spec)


class RecallAtK(ReferenceLossSpec):
    """Recall@k surrogate: positives among the nearest k, for several k at once (Patel et al. 2022).

    Use it when the head of the ranking counts (recall@k, cmc@k) and batches hold hundreds of images or more.
    In a small batch almost every image is among the nearest k, and little is left to learn.
    """

    name: Literal["recall_at_k"] = "recall_at_k"
    k: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 2, 4, 8, 16], min_length=1, description="depths of the list of nearest images"
    )
    k_temperature: float = Field(
        1.0, gt=0, description="temperature of the sigmoid at depth k, in ranks (tau 1 of the paper)"
    )
    rank_temperature: float = Field(
        0.01, gt=0, description="temperature of the sigmoids that count ranks, in units of the cosine (tau 2)"
    )

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `RecallAtKLoss`."""
        from metricli.components.losses import RecallAtKLoss

        del num_labels, label_to_category
        loss = RecallAtKLoss(
            k=self.k, k_temperature=self.k_temperature, rank_temperature=self.rank_temperature
        )
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Depths within the batch, and temperatures that still rank and still learn."""
        problems = super().check(spec, table)
        twice = sorted({k for k in self.k if self.k.count(k) > 1})
        if twice:
            problems.append(Problem("k", f"names {', '.join(map(str, twice))} twice; name each depth once"))
        problems += _of_depth(max(self.k), spec) + _of_step(self.k_temperature)
        problems += _of_ranks("rank_temperature", self.rank_temperature)
        return problems + judged_by_another("", "cosine", spec)


class SurrogatePrecision(ReferenceLossSpec):
    """Surrogate precision: positives among the nearest k, counted by two sigmoids (Patel et al. 2022).

    Use it when precision@k or R-precision is judged and a batch holds 4 or more images of each label.
    With k null each image asks for as many neighbours as it has positives, so that labels of any size count.
    """

    name: Literal["surrogate_precision"] = "surrogate_precision"
    k: int | None = Field(
        None,
        ge=1,
        description="depth of the list of nearest images; null: the number of positives of each image",
    )
    k_temperature: float = Field(1.0, gt=0, description="temperature of the sigmoid at depth k, in ranks")
    rank_temperature: float = Field(
        0.01, gt=0, description="temperature of the sigmoids that count ranks, in units of the distance"
    )
    distance: Literal["euclidean", "cosine"] = Field("euclidean", description="distance to rank by")

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `SurrogatePrecisionLoss`."""
        from metricli.components.losses import SurrogatePrecisionLoss

        del num_labels, label_to_category
        loss = SurrogatePrecisionLoss(
            k=self.k,
            k_temperature=self.k_temperature,
            rank_temperature=self.rank_temperature,
            distance=self.distance,
        )
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A depth within the batch, and temperatures that still rank and still learn."""
        problems = super().check(spec, table) + ([] if self.k is None else _of_depth(self.k, spec))
        problems += _of_step(self.k_temperature)
        if spec.extractor.normalize or self.distance == "cosine":
            problems += _of_ranks("rank_temperature", self.rank_temperature)
        return problems + judged_by_another("distance", self.distance, spec)


class FastAP(ReferenceLossSpec):
    """FastAP: average precision from soft histograms of the distances (Cakir et al. 2019).

    Use it as smooth_ap, where labels have many images in a batch or a memory bank is large: its cost does not
    grow with the positives. Its gradient is coarser, as distances within one bin are told apart by little.
    """

    name: Literal["fast_ap"] = "fast_ap"
    bins: int = Field(10, ge=2, description="intervals of the histogram of distances")

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `FastAPLoss`."""
        from metricli.components.losses import FastAPLoss

        del num_labels, label_to_category
        loss = FastAPLoss(bins=self.bins)
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Bins wide enough to hold neighbours."""
        problems = super().check(spec, table)
        if self.bins > 100:
            what = (
                f"{self.bins} bins are so narrow that few images of a batch share one, and only those that "
                "do are compared; 10 to 25 are usual"
            )
            problems.append(Problem("bins", what, severity="warning"))
        return problems + judged_by_another("", "cosine", spec)


def _of_ranks(path: str, temperature: float) -> list[Problem]:
    """The temperature of sigmoids over distances of at most 2."""
    if temperature > 0.1:
        what = f"{temperature:g} is so high that all soft ranks are alike; 0.01 is usual"
    elif temperature < 0.001:
        what = f"{temperature:g} is so low that most gradients vanish; 0.01 is usual"
    else:
        return []
    return [Problem(path, what, severity="warning")]


def _of_step(temperature: float) -> list[Problem]:
    """The temperature of the sigmoid at depth k, over ranks."""
    if temperature >= 0.1:
        return []
    what = f"{temperature:g} is so low that only ranks next to k have a gradient; 1 is usual"
    return [Problem("k_temperature", what, severity="warning")]


def _of_depth(k: int, spec: Any) -> list[Problem]:
    """A depth that the other images of a batch do not all reach."""
    images = None if spec.sampler is None else spec.sampler.images_per_batch
    if images is None:
        return []
    others = images - 1
    if k < others:
        return []
    what = (
        f"the {others} other images of a batch are all among the nearest {k}, which leaves little to learn "
        "there; lower it or enlarge the batch"
    )
    return [Problem("k", what, severity="warning")]
