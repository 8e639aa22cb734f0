"""The doors to miners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from metricli.errors import Problem
from metricli.specs.base import show, spec_error
from metricli.specs.kinds import MinerSpec

if TYPE_CHECKING:
    from torch import nn

    from metricli.data.facts import TableFacts


def _ranks(value: Any) -> Any:
    pair = [1, value] if isinstance(value, int) and not isinstance(value, bool) else value
    whole = isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)
    if not whole or not 1 <= pair[0] <= pair[1]:
        raise spec_error(f"expected a number, 1 or more, or the first and the last rank, got {show(value)}")
    return pair


_RANK = {"type": "integer", "minimum": 1}
Ranks = Annotated[
    list[int],
    BeforeValidator(_ranks),
    WithJsonSchema({"anyOf": [_RANK, {"type": "array", "items": _RANK, "minItems": 2, "maxItems": 2}]}),
]
By = Literal["euclidean", "cosine"]


class AllTriplets(MinerSpec):
    """Every anchor with each of its positives and each of its negatives.

    The steadiest gradient, and exact without a list of the triplets; most of them are soon without a loss,
    so that a mean over all shrinks: `reduction: mean_active` then. The choice for small and clean batches.
    """

    name: Literal["all_triplets"] = "all_triplets"

    def build(self) -> nn.Module:
        """An `AllTriplets`."""
        from metricli.components import miners

        return miners.AllTriplets()


class HardTriplets(MinerSpec):
    """Every anchor with its farthest positive and its nearest negative (Hermans et al. 2017).

    The usual choice with a balanced sampler: quick, and no triplet is wasted on what is learned. Where labels
    are often wrong it learns the errors, and from scratch it may collapse; `n_hard` or `semi_hard` then.
    """

    name: Literal["hard_triplets"] = "hard_triplets"
    distance: By = Field("euclidean", description="distance to rank by")

    def build(self) -> nn.Module:
        """A `HardTriplets`."""
        from metricli.components import miners

        return miners.HardTriplets(distance=self.distance)


class SemiHard(MinerSpec):
    """Every positive pair with the nearest negative beyond the positive (Schroff et al. 2015).

    For training from scratch and large batches, where the hardest negatives collapse all embeddings into one
    point. Where every negative is nearer than the positive, the farthest of them is taken.
    """

    name: Literal["semi_hard"] = "semi_hard"
    distance: By = Field("euclidean", description="distance to rank by")

    def build(self) -> nn.Module:
        """A `SemiHard`."""
        from metricli.components import miners

        return miners.SemiHard(distance=self.distance)


class NHard(MinerSpec):
    """Every anchor with several of its farthest positives and of its nearest negatives (Hermans et al. 2017).

    Steadier than one hardest of each, and cheaper than all. Where labels are often wrong, ranks such as
    `negatives: [2, 6]` leave out the very hardest, which are often those.
    """

    name: Literal["n_hard"] = "n_hard"
    positives: Ranks = Field([1, 1], description="how many of the farthest, or their ranks: [first, last]")
    negatives: Ranks = Field([1, 1], description="how many of the nearest, or their ranks: [first, last]")
    distance: By = Field("euclidean", description="distance to rank by")

    def build(self) -> nn.Module:
        """An `NHard`."""
        from metricli.components import miners

        return miners.NHard(positives=self.positives, negatives=self.negatives, distance=self.distance)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """An anchor has no more positives than the sampler gives it."""
        problems = super().check(spec, table)
        instances = spec.sampler.instances_per_label if spec.sampler is not None else 1
        first, last = self.positives
        if instances < 2 or last < instances:
            return problems
        held = f"sampler.n_instances: {instances} gives an anchor {instances - 1}"
        if first >= instances:
            what = f"the positives start at rank {first}, and {held}, so there is no triplet; lower it"
            problems.append(Problem("positives", what))
        else:
            what = f"asks for positives up to rank {last}, and {held}; all there are will be taken"
            problems.append(Problem("positives", what, severity="warning"))
        return problems


class HardCluster(MinerSpec):
    """The mean of each label with its farthest image and the nearest other mean (Alex et al. 2018).

    For labels that should form tight clusters, and against noise: a single image moves a mean little. It
    gives one triplet a label, so batches want many labels.
    """

    name: Literal["hard_cluster"] = "hard_cluster"
    chooses_means: ClassVar[bool] = True
    distance: By = Field("euclidean", description="distance to rank by")

    def build(self) -> nn.Module:
        """A `HardCluster`."""
        from metricli.components import miners

        return miners.HardCluster(distance=self.distance)


class EasyPositive(MinerSpec):
    """Every anchor with its nearest positive and a hard or semi-hard negative (Xuan et al. 2020).

    For labels of many looks (sides of a car, seasons of a place), which need not all come together: it
    keeps an image near some of its label rather than near all. It often serves labels never seen better.
    """

    name: Literal["easy_positive"] = "easy_positive"
    negative: Literal["semi_hard", "hard"] = Field(
        "semi_hard", description="the nearest negative beyond the positive, or the nearest"
    )
    distance: By = Field("euclidean", description="distance to rank by")

    def build(self) -> nn.Module:
        """An `EasyPositive`."""
        from metricli.components import miners

        return miners.EasyPositive(negative=self.negative, distance=self.distance)


class DistanceWeighted(MinerSpec):
    """Every positive pair with a negative at random, evenly over distances (Wu et al. 2017).

    Between hard mining, which is noisy, and random negatives, which teach little; for large batches of
    normalised embeddings. An anchor all of whose negatives are beyond `nonzero_loss_cutoff` is left out.
    """

    name: Literal["distance_weighted"] = "distance_weighted"
    cutoff: float = Field(0.5, gt=0, description="nearer negatives have the weight of this distance")
    nonzero_loss_cutoff: float = Field(1.4, le=2, description="negatives as far or farther are not drawn")

    @model_validator(mode="after")
    def _in_order(self) -> DistanceWeighted:
        if self.cutoff >= self.nonzero_loss_cutoff:
            raise spec_error(
                f"cutoff must be below nonzero_loss_cutoff, got {self.cutoff} and {self.nonzero_loss_cutoff}"
            )
        return self

    def build(self) -> nn.Module:
        """A `DistanceWeighted`."""
        from metricli.components import miners

        return miners.DistanceWeighted(cutoff=self.cutoff, nonzero_loss_cutoff=self.nonzero_loss_cutoff)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Its weights are those of points on a sphere."""
        problems = super().check(spec, table)
        if not spec.extractor.normalize:
            what = (
                "draws by distances of normalised embeddings, and extractor.normalize is false; "
                "set it to true, or use another miner"
            )
            problems.append(Problem("", what, severity="warning"))
        return problems
