"""Learning-rate schedules as closed forms of the step: nothing to drift, nothing to lose on resume.

A form is a function of the progress of the run, given as (epoch, share of the steps after warm-up), to a
factor of the base rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

Form = Callable[[float, float], float]

__all__ = [
    "ClosedFormSchedule",
    "constant",
    "cosine",
    "exponential",
    "linear",
    "multistep",
    "one_cycle",
    "plateau",
    "step",
]


def constant() -> Form:
    """1 throughout."""
    return lambda _epoch, _share: 1.0


def cosine(*, min_factor: float) -> Form:
    """Half a cosine from 1 to `min_factor` over the run."""
    return lambda _epoch, share: min_factor + (1 - min_factor) * (1 + math.cos(math.pi * share)) / 2


def linear(*, min_factor: float) -> Form:
    """A line from 1 to `min_factor` over the run."""
    return lambda _epoch, share: 1 + (min_factor - 1) * share


def exponential(*, gamma: float) -> Form:
    """`gamma` to the power of the epoch."""
    return lambda epoch, _share: float(gamma**epoch)


def step(*, step_epochs: int, gamma: float) -> Form:
    """`gamma` to the power of the whole spans of `step_epochs` epochs."""
    return lambda epoch, _share: float(gamma ** (math.floor(epoch + 1e-9) // step_epochs))


def multistep(*, milestones: Sequence[int], gamma: float) -> Form:
    """`gamma` to the power of the milestones (in epochs) reached."""
    return lambda epoch, _share: float(gamma ** sum(epoch + 1e-9 >= m for m in milestones))


def one_cycle(*, pct_start: float, start_factor: float, min_factor: float) -> Form:
    """Cosine up from `start_factor` to 1 at `pct_start`, then cosine down to `min_factor`."""

    def form(_epoch: float, share: float) -> float:
        low, high, part = (
            (start_factor, 1.0, share / pct_start)
            if share < pct_start
            else (1.0, min_factor, (share - pct_start) / (1 - pct_start))
        )
        return high + (low - high) * (1 + math.cos(math.pi * part)) / 2

    return form


class ClosedFormSchedule(LambdaLR):
    """Sets every group's rate to its base rate times a form of the step.

    Args:
        optimizer: whose groups' rates at construction are the base rates.
        form: factor of (epoch, share of the steps after warm-up, in [0, 1]).
        total_steps: optimizer steps of the whole run; the last of them has share 1.
        steps_per_epoch: optimizer steps of an epoch.
        stride: optimizer steps between two calls of `step`.
        warmup_steps: first steps, over which a factor rises linearly from `warmup_start` to 1.
        warmup_start: where that factor starts.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        form: Form,
        total_steps: int,
        steps_per_epoch: int,
        stride: int = 1,
        warmup_steps: int = 0,
        warmup_start: float = 0.0,
    ) -> None:
        def factor(calls: int) -> float:
            at = calls * stride
            if at < warmup_steps:
                return warmup_start + (1 - warmup_start) * at / warmup_steps
            share = (at - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
            return form(at / steps_per_epoch, min(1.0, share))

        super().__init__(optimizer, factor)


def plateau(optimizer: Optimizer, *, factor: float, patience: int, min_lr: float) -> ReduceLROnPlateau:
    """Torch's ReduceLROnPlateau over a value where higher is better, any improvement counting."""
    return ReduceLROnPlateau(
        optimizer,
        mode="max",
        factor=factor,
        patience=patience,
        min_lr=min_lr,
        threshold=0.0,
        threshold_mode="abs",
    )
