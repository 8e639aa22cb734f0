"""What the doors to losses that take a reference have in common: a memory bank of past batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from metricli.errors import Problem
from metricli.specs.base import SpecModel
from metricli.specs.kinds import LossSpec

if TYPE_CHECKING:
    from torch import nn

    from metricli.data.facts import TableFacts


class MemorySpec(SpecModel):
    """A bank of embeddings of past batches that the loss compares the batch with (Wang et al. 2020)."""

    size: int = Field(ge=1, description="embeddings that the bank holds, those of the latest batches")
    start_after: int = Field(
        0, ge=0, description="steps before the bank is compared with; it fills from the first"
    )


class ReferenceLossSpec(LossSpec):
    """A loss that can compare a batch with a reference, so that it can have a memory bank.

    A door derives from this, and its `build` ends in `return self.remembering(TheLoss(...), dim=dim)`.
    """

    memory: MemorySpec | None = Field(
        None, description="also compare with a bank of past embeddings, {size: 4096} (XBM); null: do not"
    )

    def remembering(self, loss: nn.Module, *, dim: int) -> nn.Module:
        """The loss itself, or a `MemoryLoss` over it where the spec has a memory."""
        from metricli.components.losses import MemoryLoss

        if self.memory is None:
            return loss
        return MemoryLoss(loss, size=self.memory.size, dim=dim, start_after=self.memory.start_after)

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The bank against the batch, the run and the table."""
        problems = super().check(spec, table)
        if self.memory is None:
            return problems
        size, start_after = self.memory.size, self.memory.start_after
        batch = spec.training.batch_size if spec.sampler is None else spec.sampler.images_per_batch
        if batch is not None and size < batch:
            what = f"a bank of {size} cannot hold one batch of {batch} images; several batches are usual"
            problems.append(Problem("memory.size", what))
        if table is None:
            return problems
        if table.train_rows and size >= 2 * table.train_rows:
            what = (
                f"a bank of {size} holds each of the {table.train_rows} train images about "
                f"{size / table.train_rows:.0f} times, most of them long out of date; lower it"
            )
            problems.append(Problem("memory.size", what, severity="warning"))
        steps = spec.steps(table)
        if steps is not None and start_after >= steps:
            what = f"the run has {steps} steps, so the bank is never used; lower it"
            problems.append(Problem("memory.start_after", what))
        return problems
