"""The doors to miners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from metricli.specs.kinds import MinerSpec

if TYPE_CHECKING:
    from torch import nn


class AllTriplets(MinerSpec):
    """Every anchor with each of its positives and each of its negatives."""

    name: Literal["all_triplets"] = "all_triplets"

    def build(self) -> nn.Module:
        """An `AllTriplets`."""
        from metricli.components import miners

        return miners.AllTriplets()


class HardTriplets(MinerSpec):
    """Every anchor with its farthest positive and its nearest negative (Hermans et al. 2017)."""

    name: Literal["hard_triplets"] = "hard_triplets"
    distance: Literal["euclidean", "cosine"] = Field("euclidean", description="distance to rank by")

    def build(self) -> nn.Module:
        """A `HardTriplets`."""
        from metricli.components import miners

        return miners.HardTriplets(distance=self.distance)
