"""The door to the losses of pytorch-metric-learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.plugins.pml import PMLPart, failing, installed, not_installed, refused, unknown, wrong_part
from metricli.specs.kinds import LossSpec

if TYPE_CHECKING:
    from torch import nn

    from metricli.data.facts import TableFacts


class PML(LossSpec):
    """Any loss of pytorch-metric-learning, with its miner, distance and reducer (extra `pml`).

    Use it for a loss that is not built in, and to repeat what was found with that library.
    """

    name: Literal["pml"] = "pml"
    loss: str = Field(description="name of a class in pytorch_metric_learning.losses")
    args: dict[str, Any] = Field(
        {}, description="its arguments; a head gets num_classes and embedding_size by itself"
    )
    miner: PMLPart | None = Field(
        None, description="{name, args} of a class in pytorch_metric_learning.miners; null: none"
    )
    distance: PMLPart | None = Field(
        None,
        description="{name, args} of a class in pytorch_metric_learning.distances, for the loss and its "
        "miner; null: the default of each",
    )
    reducer: PMLPart | None = Field(
        None,
        description="{name, args} of a class in pytorch_metric_learning.reducers; null: the loss's default",
    )

    @property
    def needs_positives(self) -> bool:  # type: ignore[override]
        """All but the losses with a head compare images of one label."""
        return self._sizes() == {}

    def _sizes(self) -> dict[str, int] | None:
        """What its head asks for, in small numbers; None where there is no such loss."""
        if not installed():
            return None
        from metricli.components.pml import known_classes, sizes_asked

        found = known_classes("losses").get(self.loss)
        return None if found is None else sizes_asked(found, dim=4, num_labels=2)

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `PMLLoss`.

        Raises:
            UsageError: pytorch-metric-learning is not installed.
        """
        from metricli.components.losses.pml import PMLLoss

        del label_to_category
        return PMLLoss(
            loss=self.loss,
            args=self.args,
            miner=self.miner.named() if self.miner else None,
            distance=self.distance.named() if self.distance else None,
            reducer=self.reducer.named() if self.reducer else None,
            dim=dim,
            num_labels=num_labels,
        )

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The package, the names, and the arguments, by making each class once."""
        problems = super().check(spec, table)
        if not installed():
            return [*problems, not_installed()]
        found = [
            *unknown("loss", "losses", self.loss),
            *wrong_part("distance", "distances", self.distance),
            *wrong_part("reducer", "reducers", self.reducer),
            *(unknown("miner.name", "miners", self.miner.name) if self.miner else []),
        ]
        return problems + (found or self._refused())

    def _refused(self) -> list[Problem]:
        """What the loss and its miner say to arguments whose parts are sound."""
        from metricli.components.pml import made

        sizes = self._sizes() or {}
        what = "is known from the table and the extractor; remove it"
        problems = [Problem(f"args.{name}", what) for name in sizes if name in self.args]
        distance = {"distance": made("distances", *self.distance.named())} if self.distance else {}
        reducer = {"reducer": made("reducers", *self.reducer.named())} if self.reducer else {}
        if not problems:
            problems += refused("args", "losses", self.loss, {**self.args, **sizes, **reducer, **distance})
        if self.miner:
            problems += refused("miner.args", "miners", self.miner.name, {**self.miner.args, **distance})
        if problems:
            return problems
        if self.miner and (found := failing("miner.args", self._miner())):
            return found
        return failing("args" if self.args else "", self.build(dim=4, num_labels=2, label_to_category=None))

    def _miner(self) -> nn.Module:
        """Its miner alone."""
        from metricli.components.miners.pml import PMLMiner

        assert self.miner is not None
        distance = self.distance.named() if self.distance else None
        return PMLMiner(miner=self.miner.name, args=self.miner.args, distance=distance)
