"""Putting what a last.ckpt holds back into a learner, also one of a spec that has changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metricli.errors import CheckpointError
from metricli.runs.learner import Learner

__all__ = ["load_state"]


def load_state(
    learner: Learner,
    state: Mapping[str, Any],
    *,
    new_optimizer: bool = False,
    new_rates: bool = False,
    epochs: int = 0,
    steps: int = 0,
) -> None:
    """Put a saved state, that of `Learner.state`, back.

    With `new_rates` the rates, and all else that the groups of the optimizer say, stay as the spec built
    them, and its schedule is taken to where it would be after `epochs` and `steps`. With `new_optimizer`
    it begins anew, without the moments of the one before.

    Raises:
        CheckpointError: it does not fit what the spec built.
    """
    scaler = learner.context.accelerator.scaler
    try:
        learner.extractor.load_state_dict(state["extractor"])
        learner.loss.load_state_dict(state["loss"])
        if learner.ema is not None:
            learner.ema.module.load_state_dict(state["ema"] or state["extractor"])
        if not new_optimizer:
            _load_optimizer(learner, state["optimizer"], new_rates=new_rates)
        if not new_rates:
            known = learner.scheduler.state_dict()
            found = {key: value for key, value in state["scheduler"].items() if key in known}
            learner.scheduler.load_state_dict(known | found)
        if state["scaler"] is not None and scaler is not None:
            scaler.load_state_dict(state["scaler"])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = str(error).strip().rpartition("\n")[2].strip(" .") or type(error).__name__
        raise CheckpointError(
            f"the state of the run does not fit the changed spec: {what}",
            hint="begin another run, with extractor.weights set to the best.ckpt of this one",
        ) from None
    if new_rates and not learner.spec.scheduler.monitored:
        done = steps if learner.spec.scheduler.interval == "step" else epochs
        for step in range(1, done + 1):
            learner.advance_schedule(step)


def _load_optimizer(learner: Learner, saved: Mapping[str, Any], *, new_rates: bool) -> None:
    optimizer = learner.optimizer
    own = optimizer.state_dict()["param_groups"]
    groups = [
        one | {"params": other["params"]} for one, other in zip(own, saved["param_groups"], strict=True)
    ]
    kept = {"param_groups": groups} if new_rates else {}
    optimizer.load_state_dict({**saved, **kept})
    _retype(optimizer.state, learner.parameters, saved["state"])


def _retype(state: Mapping[Any, Any], parameters: Sequence[Tensor], saved: Mapping[int, Any]) -> None:
    """Undo torch's cast of all of an optimizer's state to the type of its parameter, as of asgd's rates."""
    for index, values in saved.items():
        own = state[parameters[index]]
        own |= {k: own[k].to(v.dtype) for k, v in values.items() if isinstance(v, Tensor)}
