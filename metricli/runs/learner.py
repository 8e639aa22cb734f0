"""Everything that learns: the model, its loss, the optimizer and the schedule, and one step of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metricli.components.dataset import Batch
from metricli.components.param_groups import parameter_groups
from metricli.errors import NonFiniteError, Problem, SpecError
from metricli.runs.context import Context
from metricli.runs.parts import built_extractor
from metricli.specs.train import TrainSpec

MAX_SKIPPED = 50
"""Steps in a row that fp16's scaler may skip before the run stops; it halves its scale with each."""


@dataclass
class Learner:
    """The trainable state of a run on its device."""

    context: Context
    extractor: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    spec: TrainSpec

    def __post_init__(self) -> None:
        # Not the modules: `prepare` would leave autocast in their `forward`, and the loss and evaluation
        # want float32.
        self._optimizer = self.context.accelerator.prepare(self.optimizer)
        backbone = getattr(self.extractor, "backbone", self.extractor)
        self._skipped = 0
        self._freezable = [p for p in backbone.parameters() if p.requires_grad]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that the optimizer may change."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def lr(self) -> float:
        """The learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def start_epoch(self, epoch: int) -> bool:
        """Training mode; the backbone frozen, its batch norm included, in the first `freeze_epochs`."""
        frozen = epoch < self.spec.training.freeze_epochs
        self.extractor.train()
        self.loss.train()
        for parameter in self._freezable:
            parameter.requires_grad_(not frozen)
        if frozen:
            getattr(self.extractor, "backbone", self.extractor).eval()
        return frozen

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """One optimizer step on a batch; its loss, gradient norm and the loss's stats.

        Raises:
            NonFiniteError: the loss or the gradient is NaN or infinite; the weights are as before.
        """
        accelerator = self.context.accelerator
        torch.manual_seed(_noise_seed(self.spec.seed, step, accelerator.process_index))
        images = batch.images.to(self.context.device, self.context.dtype, non_blocking=True)
        labels = batch.labels.to(self.context.device, non_blocking=True)
        with accelerator.autocast():
            embeddings: Tensor = self.extractor(images)
        loss: Tensor = self.loss(embeddings.to(self.context.dtype), labels)
        if not bool(torch.isfinite(loss)):
            raise _non_finite("loss", step)
        values = {"loss": float(loss.detach())}
        self._optimizer.zero_grad()
        accelerator.backward(loss)
        norm = self._gradient_norm()
        if norm is not None:
            if not np.isfinite(norm):
                raise _non_finite("gradient", step)
            values["grad_norm"] = norm
        self._optimizer.step()
        self._refuse_skipping(step)
        if not self.spec.scheduler.monitored and self.spec.scheduler.interval == "step":
            self._advance_schedule(step + 1)
        stats = getattr(self.loss, "stats", {})
        return values | {name: float(value) for name, value in stats.items()}

    def _refuse_skipping(self, step: int) -> None:
        """Stop when fp16's scaler has found the gradient not finite so often that it never will be."""
        skipped = bool(getattr(self._optimizer, "step_was_skipped", False))
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= MAX_SKIPPED:
            raise _non_finite("gradient", step)

    def _gradient_norm(self) -> float | None:
        """The gradient's norm, clipped if the spec says so; None in fp16, whose scaler skips bad steps."""
        limit = self.spec.training.grad_clip_norm
        if limit is not None:
            norm = float(self.context.accelerator.clip_grad_norm_(self.parameters, limit))
        elif self.spec.training.precision != "fp16":
            norm = float(nn.utils.get_total_norm(p.grad for p in self.parameters if p.grad is not None))
        return None if self.spec.training.precision == "fp16" else norm

    def end_epoch(self, epoch: int) -> None:
        """Step a schedule that counts epochs."""
        if not self.spec.scheduler.monitored and self.spec.scheduler.interval == "epoch":
            self._advance_schedule(epoch + 1)

    def _advance_schedule(self, done: int) -> None:
        if done % self.spec.scheduler.frequency == 0:
            with (
                warnings.catch_warnings()
            ):  # an fp16 step that was skipped is no mistake in the order of calls
                warnings.filterwarnings("ignore", "Detected call of")
                self.scheduler.step()

    def tell_schedule(self, value: float) -> None:
        """Give a schedule that watches it the monitored value; higher is better, NaN is not told."""
        if self.spec.scheduler.monitored and not np.isnan(value):
            self.scheduler.step(value)

    def state(self) -> dict[str, Any]:
        """All that a resume needs."""
        scaler = self.context.accelerator.scaler
        return {
            "extractor": self.extractor.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {
                k: v for k, v in self.scheduler.state_dict().items() if not callable(v) and k != "lr_lambdas"
            },
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        self.extractor.load_state_dict(state["extractor"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(self.scheduler.state_dict() | state["scheduler"])
        if state["scaler"] is not None and self.context.accelerator.scaler is not None:
            self.context.accelerator.scaler.load_state_dict(state["scaler"])


def build_learner(
    spec: TrainSpec,
    context: Context,
    *,
    num_labels: int,
    label_to_category: list[int] | None,
    steps_per_epoch: int,
) -> Learner:
    """Build and place everything that learns; the initial weights follow the seed alone.

    Raises:
        SpecError: freezing the backbone would leave nothing to train.
    """
    torch.manual_seed(spec.seed)
    extractor = built_extractor(spec.extractor, load_weights=True, dtype=context.dtype)
    loss = spec.loss.build(dim=extractor.dim, num_labels=num_labels, label_to_category=label_to_category)  # type: ignore[arg-type]
    loss = loss.to(context.dtype)
    extractor.to(context.device)
    loss.to(context.device)
    options = spec.optimizer
    groups = parameter_groups(
        extractor,
        loss,
        lr=options.lr,
        head_lr=options.head_lr,
        weight_decay=options.weight_decay,
        decay_norms_and_biases=options.decay_norms_and_biases,
    )
    if spec.training.freeze_epochs and not any(group["name"].startswith("head") for group in groups):
        what = (
            "freezing the backbone leaves nothing to train: no projection, BNNeck or parameters in the loss"
        )
        raise SpecError("the spec", [Problem("training.freeze_epochs", what)])
    optimizer = options.build(groups)
    scheduler = spec.scheduler.build(
        optimizer, total_steps=spec.training.epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch
    )
    return Learner(context, extractor, loss, optimizer, scheduler, spec)


def _noise_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _non_finite(what: str, step: int) -> NonFiniteError:
    return NonFiniteError(
        f"the {what} is NaN or infinite at step {step + 1}; this step was not taken",
        hint="try a lower learning rate, warm-up, training.grad_clip_norm, or precision fp32",
    )
