"""The doors to losses over the pairs of a batch, by margins and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.plugins.losses.common import judged_by_another
from metricli.plugins.losses.memory import ReferenceLossSpec
from metricli.specs.kinds import MinerSpec

if TYPE_CHECKING:
    from torch import nn

    from metricli.data.facts import TableFacts


class Contrastive(ReferenceLossSpec):
    """Contrastive loss: pairs of a label near, others apart by a margin (Hadsell et al. 2006).

    Use it where one threshold on the distance must tell pairs apart, as in verification or finding
    duplicates. For ranking, losses that compare a positive with negatives learn faster.
    """

    name: Literal["contrastive"] = "contrastive"
    pos_margin: float = Field(0.0, ge=0, description="distance within which one label is let be")
    neg_margin: float = Field(1.0, gt=0, description="distance from which other labels are let be")
    miner: MinerSpec | None = Field(
        None, description="picks the pairs of a batch, of triplets both pairs; null: all pairs"
    )
    distance: Literal["euclidean", "cosine"] = Field(
        "euclidean", description="distance that the margins are in"
    )
    reduction: Literal["mean", "mean_active", "sum"] = Field(
        "mean",
        description="mean of positive plus mean of negative pairs, the same over those with a loss above 0, "
        "or the sum over all",
    )

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `ContrastiveLoss` with its miner."""
        from metricli.components.losses import ContrastiveLoss

        del num_labels, label_to_category
        loss = ContrastiveLoss(
            pos_margin=self.pos_margin,
            neg_margin=self.neg_margin,
            miner=None if self.miner is None else self.miner.build(),
            distance=self.distance,
            reduction=self.reduction,
        )
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The margins against each other and the range of the distances, and the miner's distance."""
        problems = super().check(spec, table)
        normalized = spec.extractor.normalize
        if self.neg_margin <= self.pos_margin:
            what = (
                f"negatives must be farther than positives: neg_margin {self.neg_margin:g} must be above "
                f"pos_margin {self.pos_margin:g}"
            )
            problems.append(Problem("neg_margin", what))
        if _bounded(self.distance, normalized):
            unrelated = 1.0 if self.distance == "cosine" else 2**0.5
            if self.neg_margin >= 2:
                what = (
                    f"distances are at most 2 here, so no negative pair can keep a margin of "
                    f"{self.neg_margin:g}; {unrelated / 2:.1g} to 1 is usual"
                )
                problems.append(Problem("neg_margin", what))
            elif self.neg_margin > unrelated:
                what = (
                    f"unrelated embeddings are about {unrelated:.3g} apart, so with {self.neg_margin:g} "
                    f"negatives never rest; {unrelated / 2:.1g} to 1 is usual"
                )
                problems.append(Problem("neg_margin", what, severity="warning"))
        if self.miner is not None and self.miner.chooses_means:
            problems.append(Problem("miner", "chooses means of images; this loss is over pairs of images"))
        mined = getattr(self.miner, "distance", self.distance)
        if mined != self.distance and not normalized:
            what = (
                f"mines by {mined} distance and the loss is {self.distance}, which rank embeddings that are "
                f"not normalised differently; set it to {self.distance!r}"
            )
            problems.append(Problem("miner.distance", what))
        return problems + judged_by_another("distance", self.distance, spec)


class MultiSimilarity(ReferenceLossSpec):
    """Multi-similarity loss: soft hinges on hard pairs of both kinds (Wang et al. 2019).

    Use it for ranking images with fine differences in small batches: its own mining keeps the hard pairs of
    each, and the defaults travel well. With many wrong labels the hard pairs are the wrong ones.
    """

    name: Literal["multi_similarity"] = "multi_similarity"
    alpha: float = Field(2.0, gt=0, description="sharpness of the positive term")
    beta: float = Field(50.0, gt=0, description="sharpness of the negative term")
    base: float = Field(0.5, description="cosine that positives should be above and negatives below")
    mine: bool = Field(True, description="keep only the hard pairs, as the paper does")
    epsilon: float = Field(0.1, description="slack of that choice, in units of the cosine")

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `MultiSimilarityLoss`."""
        from metricli.components.losses import MultiSimilarityLoss

        del num_labels, label_to_category
        loss = MultiSimilarityLoss(
            alpha=self.alpha, beta=self.beta, base=self.base, mine=self.mine, epsilon=self.epsilon
        )
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A base that a cosine can pass, and sharpnesses that are not swapped."""
        problems = super().check(spec, table)
        if not -1 < self.base < 1:
            what = f"{self.base:g} is no cosine that a pair could lie on both sides of; 0.5 is usual"
            problems.append(Problem("base", what))
        if self.alpha >= self.beta:
            what = (
                f"{self.alpha:g} is not below beta {self.beta:g}, so that the farthest positive counts more "
                "than the nearest negative; alpha 2 and beta 50 are usual"
            )
            problems.append(Problem("alpha", what, severity="warning"))
        if self.mine and self.epsilon < 0:
            what = f"{self.epsilon:g} leaves out pairs that are ranked wrongly; 0.1 is usual"
            problems.append(Problem("epsilon", what, severity="warning"))
        return problems + judged_by_another("", "cosine", spec)


class Circle(ReferenceLossSpec):
    """Circle loss: each pair is pulled the more, the farther it is from its optimum (Sun et al. 2020).

    Use it for re-identification and other ranking where positives of an anchor differ widely in difficulty.
    The paper takes m 0.25 with gamma 128 for persons, and m 0.4 with gamma 80 for fine-grained retrieval.
    """

    name: Literal["circle"] = "circle"
    m: float = Field(
        0.4, ge=0, lt=1, description="relaxation: positives rest at cosine 1 - m, negatives at m"
    )
    gamma: float = Field(80.0, gt=0, description="scale of the exponents, the inverse of a temperature")

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `CircleLoss`."""
        from metricli.components.losses import CircleLoss

        del num_labels, label_to_category
        loss = CircleLoss(m=self.m, gamma=self.gamma)
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A relaxation that still asks for an order, and a scale in the range the paper tried."""
        problems = super().check(spec, table)
        if self.m >= 0.5:
            what = (
                f"at {self.m:g} positives may rest at a cosine of {1 - self.m:g} and negatives at "
                f"{self.m:g}, in no order; 0.25 to 0.4 is usual"
            )
            problems.append(Problem("m", what, severity="warning"))
        if self.gamma < 16:
            what = f"{self.gamma:g} is so low that easy and hard pairs count alike; 32 to 256 is usual"
            problems.append(Problem("gamma", what, severity="warning"))
        elif self.gamma > 1024:
            what = f"{self.gamma:g} is so high that one pair of an anchor counts alone; 32 to 256 is usual"
            problems.append(Problem("gamma", what, severity="warning"))
        return problems + judged_by_another("", "cosine", spec)


class LiftedStructure(ReferenceLossSpec):
    """Lifted structure loss: positive pairs against all their negatives at once (Oh Song et al. 2016).

    Use it where triplets of one negative give too noisy a gradient, with distances as the triplet loss has
    them. `form: generalized` takes all positives of an anchor at once as well (Hermans et al. 2017).
    """

    name: Literal["lifted_structure"] = "lifted_structure"
    margin: float = Field(1.0, gt=0, description="margin of positives before negatives")
    form: Literal["pairwise", "generalized"] = Field(
        "pairwise", description="the paper's, for each positive pair; or for each anchor"
    )
    distance: Literal["euclidean", "cosine"] = Field(
        "euclidean", description="distance that the margin is in"
    )

    needs_positives: ClassVar[bool] = True

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `LiftedStructureLoss`."""
        from metricli.components.losses import LiftedStructureLoss

        del num_labels, label_to_category
        loss = LiftedStructureLoss(margin=self.margin, form=self.form, distance=self.distance)
        return self.remembering(loss, dim=dim)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The margin against the range of the distances."""
        problems = super().check(spec, table)
        if self.margin >= 2 and _bounded(self.distance, spec.extractor.normalize):
            what = (
                f"distances are at most 2 here, so no positive pair can be before its negatives by "
                f"{self.margin:g}; 1 is usual"
            )
            problems.append(Problem("margin", what, severity="warning"))
        return problems + judged_by_another("distance", self.distance, spec)


def _bounded(distance: str, normalized: bool) -> bool:
    """Whether no distance is above 2."""
    return distance == "cosine" or normalized
