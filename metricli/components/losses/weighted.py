"""A sum of losses, each with its weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["WeightedSum"]


class WeightedSum(nn.Module):
    """The sum of several losses of one batch, each times its weight.

    Parameters and buffers of all losses are its own, below `losses.0`, `losses.1`, ... in the state. After
    each call `stats` holds, for a loss named `triplet`, its value without the weight as `triplet_loss` and
    its own stats as `triplet_active` and so on.

    Args:
        losses: modules `(embeddings, labels) -> scalar`, with or without `stats`.
        weights: one for each loss, above 0.
        names: one for each loss, all different: the prefixes of their stats.

    Raises:
        ValueError: no loss, weights or names that do not fit, a weight that is not a finite number above 0,
            or a name given twice.
    """

    stats: dict[str, Tensor]

    def __init__(
        self, *, losses: Sequence[nn.Module], weights: Sequence[float], names: Sequence[str]
    ) -> None:
        super().__init__()
        if not losses or len(losses) != len(weights) or len(losses) != len(names):
            raise ValueError(
                "losses, weights and names must be of one length, 1 or more, "
                f"got {len(losses)}, {len(weights)} and {len(names)}"
            )
        for weight in weights:
            if not 0 < weight < math.inf:
                raise ValueError(f"a weight must be a finite number above 0, got {weight!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"names must differ, got {list(names)!r}")
        self.losses = nn.ModuleList(losses)
        self.weights = [float(weight) for weight in weights]
        self.names = list(names)
        self.stats = {}

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The scalar sum for embeddings (B, D) with labels (B,)."""
        terms, stats = [], {}
        for name, weight, loss in zip(self.names, self.weights, self.losses, strict=True):
            value: Tensor = loss(embeddings, labels)
            terms.append(weight * value)
            stats[f"{name}_loss"] = value.detach()
            stats |= {f"{name}_{key}": stat for key, stat in getattr(loss, "stats", {}).items()}
        self.stats = stats
        return torch.stack(terms).sum()

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"weights={self.weights}, names={self.names}"
