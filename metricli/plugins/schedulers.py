"""The doors to learning-rate schedules: closed forms of the step, each with warm-up, and plateau."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.specs.kinds import Scheduler, SchedulerSpec

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from metricli.data.facts import TableFacts


class _ClosedForm(SchedulerSpec):
    """A factor of the base rate as a function of the step, after a linear warm-up."""

    warmup_epochs: float = Field(0.0, ge=0, description="epochs (or a part of one) of linear warm-up")
    warmup_start: float = Field(
        0.01, ge=0, le=1, description="factor of the rate that the warm-up starts from"
    )

    def build(self, optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int) -> Scheduler:
        """A `ClosedFormSchedule` of the form that the class names."""
        from metricli.components import schedulers

        shared = {"name", "interval", "frequency", "warmup_epochs", "warmup_start"}
        return schedulers.ClosedFormSchedule(
            optimizer,
            form=getattr(schedulers, self.name)(**self.model_dump(exclude=shared)),  # type: ignore[attr-defined]
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            stride=self.frequency * (steps_per_epoch if self.interval == "epoch" else 1),
            warmup_steps=round(self.warmup_epochs * steps_per_epoch),
            warmup_start=self.warmup_start,
        )

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A warm-up that outlasts the run never reaches the rate."""
        problems = super().check(spec, table)
        if self.warmup_epochs >= spec.training.epochs:
            what = f"must be below training.epochs, {spec.training.epochs}, got {self.warmup_epochs:g}"
            problems.append(Problem("warmup_epochs", what))
        elif self.interval == "epoch" and 0 < self.warmup_epochs < 2 * self.frequency:
            first = "epoch" if self.frequency == 1 else f"{self.frequency} epochs"
            what = (
                f"{self.warmup_epochs:g} is fewer than two intervals, so the rate stays at warmup_start for "
                f"the whole first {first}; interval: step rises with every step"
            )
            problems.append(Problem("warmup_epochs", what, severity="warning"))
        return problems


class Constant(_ClosedForm):
    """The same rate throughout."""

    name: Literal["constant"] = "constant"


class Cosine(_ClosedForm):
    """Half a cosine from the base rate down to `min_factor` of it (Loshchilov and Hutter 2017)."""

    name: Literal["cosine"] = "cosine"
    min_factor: float = Field(0.0, ge=0, le=1, description="factor of the rate at the end")


class Exponential(_ClosedForm):
    """The rate times `gamma` with every epoch."""

    name: Literal["exponential"] = "exponential"
    gamma: float = Field(gt=0, le=1, description="factor of the rate from one epoch to the next")


class Linear(_ClosedForm):
    """A straight line from the base rate down to `min_factor` of it."""

    name: Literal["linear"] = "linear"
    min_factor: float = Field(0.0, ge=0, le=1, description="factor of the rate at the end")


class MultiStep(_ClosedForm):
    """The rate times `gamma` at each of the milestones."""

    name: Literal["multistep"] = "multistep"
    milestones: list[int] = Field(min_length=1, description="epochs, from 0, at whose start the rate falls")
    gamma: float = Field(0.1, gt=0, le=1, description="factor at each milestone")

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Milestones rise and lie within the run."""
        problems = super().check(spec, table)
        if sorted(set(self.milestones)) != self.milestones or self.milestones[0] < 1:
            problems.append(Problem("milestones", f"must rise, from 1 on, got {self.milestones}"))
        elif self.milestones[-1] >= spec.training.epochs:
            what = f"epoch {self.milestones[-1]} never comes in a run of {spec.training.epochs} epochs"
            problems.append(Problem("milestones", what, severity="warning"))
        return problems


class OneCycle(_ClosedForm):
    """Up by a cosine to the base rate, then far down (Smith and Topin 2018); the momentum is left alone."""

    name: Literal["one_cycle"] = "one_cycle"
    pct_start: float = Field(0.3, gt=0, lt=1, description="share of the run in which the rate rises")
    start_factor: float = Field(0.04, gt=0, le=1, description="factor of the rate at the start")
    min_factor: float = Field(4e-6, ge=0, le=1, description="factor of the rate at the end")

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The cycle begins with a rise of its own."""
        if self.warmup_epochs > 0:
            what = "one_cycle rises by itself for pct_start of the run; remove the warm-up, or set pct_start"
            return [Problem("warmup_epochs", what)]
        return super().check(spec, table)


class Step(_ClosedForm):
    """The rate times `gamma` every `step_epochs` epochs."""

    name: Literal["step"] = "step"
    step_epochs: int = Field(ge=1, description="epochs between two falls")
    gamma: float = Field(0.1, gt=0, le=1, description="factor at each fall")


class Plateau(SchedulerSpec):
    """The rate times `factor` when the monitored metric has not improved for `patience` validations."""

    name: Literal["plateau"] = "plateau"
    interval: Literal["epoch"] = Field("epoch", description="a validation is an epoch's")
    frequency: Literal[1] = Field(1, description="every validation counts")
    factor: float = Field(0.1, gt=0, lt=1, description="factor at each fall")
    patience: int = Field(5, ge=0, description="validations without improvement before a fall")
    min_lr: float = Field(0.0, ge=0, description="the rate never falls below this")

    monitored: ClassVar[bool] = True

    def build(self, optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int) -> Scheduler:
        """Torch's ReduceLROnPlateau; its `step` takes a value where higher is better."""
        from metricli.components import schedulers

        del total_steps, steps_per_epoch
        return schedulers.plateau(optimizer, factor=self.factor, patience=self.patience, min_lr=self.min_lr)
