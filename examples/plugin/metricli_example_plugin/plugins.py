"""The doors: what a spec may say about our optimizer and loss. No torch until `build` is called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from metricli.specs.kinds import LossSpec, OptimizerSpec

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]


class Lion(OptimizerSpec):
    """Lion: steps of one size, along the sign of a momentum (Chen et al. 2023)."""

    name: Literal["lion"] = "lion"
    lr: float = Field(1e-4, gt=0, description="learning rate of the backbone; a third of AdamW's or less")
    betas: Betas = Field([0.9, 0.99], description="share of the momentum in a step, and its decay")

    def build(self, params: Iterable[dict[str, Any]]) -> Optimizer:
        """A `LionOptimizer`; a group's own lr and weight_decay win over these."""
        from metricli_example_plugin.components import LionOptimizer

        return LionOptimizer(
            params, lr=self.lr, betas=(self.betas[0], self.betas[1]), weight_decay=self.weight_decay
        )


class HeatedSoftmax(LossSpec):
    """Softmax of cosines over a temperature, with one proxy a label (Zhang et al. 2018)."""

    name: Literal["heated_softmax"] = "heated_softmax"
    temperature: float = Field(0.05, gt=0, description="divides the cosines; lower is sharper")

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A `HeatedSoftmaxLoss` with `num_labels` proxies of `dim`."""
        from metricli_example_plugin.components import HeatedSoftmaxLoss

        del label_to_category
        return HeatedSoftmaxLoss(dim=dim, num_labels=num_labels, temperature=self.temperature)
