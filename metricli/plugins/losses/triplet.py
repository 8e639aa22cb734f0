"""The door to the triplet loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.plugins.losses.common import judged_by_another
from metricli.plugins.losses.memory import ReferenceLossSpec
from metricli.specs.kinds import MinerSpec
from metricli.specs.plugin import named

if TYPE_CHECKING:
    from torch import nn

    from metricli.data.facts import TableFacts


_HARD = ("hard_cluster", "hard_triplets", "n_hard")
"""Miners that take the hardest alone; where these are too hard, all embeddings are pulled together."""


class Triplet(ReferenceLossSpec):
    """Triplet loss: a positive must be nearer than a negative by a margin (Schroff et al. 2015).

    The plainest choice, which wants no head and any number of labels. With `all_triplets` and `reduction:
    mean_active` it starts smoothly; `hard_triplets` goes further once the embeddings have some order.
    """

    name: Literal["triplet"] = "triplet"
    margin: float | None = Field(
        0.2,
        gt=0,
        description="the margin; null: the soft margin log(1 + exp(d_ap - d_an)) (Hermans et al. 2017)",
    )
    miner: MinerSpec = Field(
        default_factory=named(MinerSpec, "hard_triplets"), description="picks the triplets of a batch"
    )
    distance: Literal["euclidean", "cosine"] = Field(
        "euclidean", description="distance that the margin is in"
    )
    squared: bool = Field(False, description="square the euclidean distances, as FaceNet does")
    reduction: Literal["mean", "mean_active", "sum"] = Field(
        "mean", description="over all triplets, over those with a loss above 0, or their sum"
    )

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `TripletLoss` with its miner, and a memory if the spec has one."""
        from metricli.components.losses import TripletLoss

        del num_labels, label_to_category
        loss = TripletLoss(
            margin=self.margin,
            miner=self.miner.build(),
            distance=self.distance,
            squared=self.squared,
            reduction=self.reduction,
        )
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The margin against the range of the distances."""
        problems = super().check(spec, table)
        farthest = self._farthest(spec.extractor.normalize)
        if self.squared and self.distance == "cosine":
            problems.append(
                Problem("squared", "squares euclidean distances, and the distance is cosine; remove it")
            )
        if self.margin is None and farthest:
            problems.append(
                Problem(
                    "margin",
                    f"a soft margin wants distances without a bound, and these are at most {farthest}, which "
                    "starves its gradient; set a margin such as 0.2, or " + self._unbounded(),
                )
            )
        elif self.margin is not None and farthest and self.margin >= farthest:
            what = (
                f"distances are at most {farthest} here, so no triplet can keep a margin of {self.margin:g}; "
                "near 0.2 is usual"
            )
            problems.append(Problem("margin", what))
        elif self.margin is not None and farthest and self.margin > 0.3 * farthest:
            what = f"{self.margin:g} is wide for distances of at most {farthest}; near 0.2 is usual"
            problems.append(Problem("margin", what, severity="warning"))
        mined = getattr(self.miner, "distance", self.distance)
        if isinstance(mined, str) and mined != self.distance and not spec.extractor.normalize:
            what = (
                f"mines by {mined} distance and the loss is {self.distance}, which rank embeddings that are "
                f"not normalised differently; set it to {self.distance!r}"
            )
            problems.append(Problem("miner.distance", what))
        if self.miner.name == "hard_triplets" and getattr(spec.sampler, "n_instances", None) == 2:  # type: ignore[attr-defined]
            what = (
                "takes the hardest positive, and sampler.n_instances 2 leaves a single one, so a mislabelled "
                "image is in every triplet of its label; 4 is usual"
            )
            problems.append(Problem("miner", what, severity="warning"))
        return problems + judged_by_another("distance", self.distance, spec)

    def remedies(self, spec: Any) -> list[str]:
        """Easier triplets, and a margin that never lets go, where they are not in use."""
        name = self.miner.name  # type: ignore[attr-defined]
        found = ["an easier miner such as all_triplets"] if name in _HARD else []
        if self.margin is not None and not self._farthest(spec.extractor.normalize):
            found.append("the soft margin (margin: null)")
        return found

    def _farthest(self, normalized: bool) -> int | None:
        """The largest possible distance; None if there is no bound."""
        if self.distance == "cosine":
            return 2
        return (4 if self.squared else 2) if normalized else None

    def _unbounded(self) -> str:
        return "extractor.normalize: false" + (
            " and distance: euclidean" if self.distance == "cosine" else ""
        )
