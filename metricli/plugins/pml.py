"""The door to the miners of pytorch-metric-learning, and what it shares with that to its losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.specs.base import SpecModel
from metricli.specs.kinds import MinerSpec
from metricli.specs.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from metricli.components.pml import PMLKind
    from metricli.data.facts import TableFacts


class PMLPart(SpecModel):
    """A class of pytorch-metric-learning and its arguments."""

    name: str = Field(description="name of the class")
    args: dict[str, Any] = Field({}, description="its arguments")

    def named(self) -> tuple[str, dict[str, Any]]:
        """The name and the arguments."""
        return self.name, self.args


def installed() -> bool:
    """Whether pytorch-metric-learning is there; this imports nothing."""
    return find_spec("pytorch_metric_learning") is not None


def not_installed() -> Problem:
    """What to say where it is not."""
    return Problem("", "needs the package pytorch-metric-learning: pip install 'metricli[pml]'")


def unknown(path: str, kind: PMLKind, name: str) -> list[Problem]:
    """A problem at `path` if the package has no such class."""
    from metricli.components.pml import known_classes

    known = list(known_classes(kind))
    if name in known:
        return []
    near = did_you_mean(name, known) or ";"
    return [
        Problem(path, f"no class {name!r} in pytorch_metric_learning.{kind}{near} known: {', '.join(known)}")
    ]


def refused(path: str, kind: PMLKind, name: str, args: Mapping[str, Any]) -> list[Problem]:
    """A problem at `path` if a known class does not take these arguments; it is made, to try."""
    import torch

    from metricli.components.pml import made

    try:
        with torch.random.fork_rng(devices=[]):
            made(kind, name, args)
    except ValueError as error:
        return [Problem(path, str(error))]
    return []


def failing(path: str, part: Callable[[Tensor, Tensor], object]) -> list[Problem]:
    """A problem at `path` if an object that could be made takes no batch, for a type that its class left.

    Other errors may be of the small batch, here of 2 labels in 4 dimensions, and are left to the run.
    """
    import torch

    from metricli.errors import UsageError

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = torch.nn.functional.normalize(torch.randn(8, 4)).requires_grad_()
        try:
            part(rows, torch.arange(8) % 2)
        except UsageError as error:
            if isinstance(error.__cause__, TypeError | AttributeError):
                return [Problem(path, str(error))]
        except RuntimeError:
            pass
    return []


def wrong_part(path: str, kind: PMLKind, part: PMLPart | None) -> list[Problem]:
    """What is wrong with one part of its own."""
    if part is None:
        return []
    return unknown(f"{path}.name", kind, part.name) or refused(f"{path}.args", kind, part.name, part.args)


class PMLMiner(MinerSpec):
    """Any miner of pytorch-metric-learning (extra `pml`).

    For a miner that is not built in, and to repeat what was found with that library.
    """

    name: Literal["pml"] = "pml"
    miner: str = Field(description="name of a class in pytorch_metric_learning.miners")
    args: dict[str, Any] = Field({}, description="its arguments")
    distance: PMLPart | None = Field(
        None,
        description="{name, args} of a class in pytorch_metric_learning.distances; null: the miner's default",
    )

    def build(self) -> nn.Module:
        """A `PMLMiner`.

        Raises:
            UsageError: pytorch-metric-learning is not installed.
        """
        from metricli.components.miners import pml

        distance = self.distance.named() if self.distance else None
        return pml.PMLMiner(miner=self.miner, args=self.args, distance=distance)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The package, the names, and the arguments, by making the class once."""
        problems = super().check(spec, table)
        if not installed():
            return [*problems, not_installed()]
        found = wrong_part("distance", "distances", self.distance) + unknown("miner", "miners", self.miner)
        if not found:
            from metricli.components.pml import made

            distance = {"distance": made("distances", *self.distance.named())} if self.distance else {}
            found = refused("args", "miners", self.miner, {**self.args, **distance})
            found = found or failing("args", self.build())
        return problems + found
