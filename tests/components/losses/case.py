"""What the contract of losses needs to know of each: how it is made, and what it is by its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

DIM, NUM_LABELS = 6, 5


@dataclass(frozen=True)
class Case:
    """A loss with settings.

    `naive(module, embeddings, labels)` is the value by loops or plain formulas over float64 tensors, written
    from the paper and sharing no code with `metricli`; it reads settings and parameters off the module, and
    its gradient comes from autograd. `peer`, where another library agrees, is the same by that library.
    """

    name: str
    make: Callable[[], nn.Module]
    naive: Callable[[nn.Module, Tensor, Tensor], Tensor]
    peer: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
    entry: str = ""
    """The entry point, where it is not the name up to the first space."""
    smooth: bool = True
    """Whether the gradient exists at embeddings drawn at random."""

    @property
    def plugin(self) -> str:
        """The entry point."""
        return self.entry or self.name.split(" ")[0]
