"""Everything that learns: the model, its loss, the optimizer and the schedule, and one step of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metricli.components.dataset import Batch
from metricli.components.stages import Stage, frozen_stages, rest, rest_batch_norm, stages_of
from metricli.components.timm_alone import ModelEmaV3
from metricli.core.gather import broadcast_from_main, gather_rows, mean_gradients, sum_gradients
from metricli.errors import NonFiniteError
from metricli.runs.context import Context
from metricli.runs.non_finite import non_finite, not_finite
from metricli.runs.stepping import Model, compile_errors, parts_of, taken
from metricli.specs.train import TrainSpec

MAX_SKIPPED = 50
"""Steps in a row that fp16's scaler may skip before the run stops; it halves its scale with each."""

_OF_THE_LOSS = 2**32 - 1
"""In place of a rank: the noise that all processes share."""


@dataclass
class Learner:
    """The trainable state of a run on its device; `paths` name the rows of its batches in errors."""

    context: Context
    extractor: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    spec: TrainSpec
    paths: Sequence[str] | NDArray[Any] = ()

    def __post_init__(self) -> None:
        # Not the modules: `prepare` would leave autocast in their `forward`, and the loss and evaluation
        # want float32.
        self._optimizer = self.context.accelerator.prepare(self.optimizer)
        training = self.spec.training
        self.embeddings: Tensor | None = None
        """Those of the latest step (B, D), of all processes, as the loss had them, detached."""
        self.labels: Tensor | None = None
        """Their labels (B,), on the device."""
        self.ema: ModelEmaV3 | None = None
        if training.ema is not None:
            options = training.ema
            self.ema = ModelEmaV3(self.extractor, decay=options.decay, use_warmup=options.warmup)
            self.ema.requires_grad_(False)
        # The compiled module shares the parameters; checkpoints are of the plain one, with its plain names.
        self._forward: Any = torch.compile(self.extractor) if training.compile else self.extractor
        self._skipped = 0
        self._freezable = [p for p in self.backbone.parameters() if p.requires_grad]
        whole = Stage("the backbone", list(self.backbone.parameters()))
        self.stages = (training.thaw_epochs and stages_of(self.backbone)) or [whole]

    @property
    def backbone(self) -> nn.Module:
        """What freezing freezes: a submodule of that name, or all of the extractor."""
        found: nn.Module = getattr(self.extractor, "backbone", self.extractor)
        return found

    @property
    def judged(self) -> nn.Module:
        """The extractor to validate and to ship: that of the averaged weights, if there are any."""
        return self.extractor if self.ema is None else self.ema.module

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that the optimizer may change."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def lr(self) -> float:
        """The learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def start_epoch(self, epoch: int) -> bool:
        """Training mode, but for what is frozen in this epoch, its batch norm included; whether all of it is.

        Stages that thaw with this epoch are said.
        """
        self.extractor.train()
        self.loss.train()
        count = self._frozen(epoch)
        frozen = {id(p) for stage in self.stages[:count] for p in stage.parameters}
        for parameter in self._freezable:
            parameter.requires_grad_(id(parameter) not in frozen)
        if count == len(self.stages):
            self.backbone.eval()
        elif frozen:
            rest(self.backbone, frozen)
        if self.spec.training.freeze_batch_norm:
            rest_batch_norm(self.backbone)
        before = self._frozen(epoch - 1) if epoch else len(self.stages)
        if count < before and (epoch or self.spec.training.thaw_epochs):
            names = ", ".join(stage.name for stage in reversed(self.stages[count:before]))
            still = f"; {count} of its {len(self.stages)} stages are still frozen" if count else ""
            of = " of the backbone" if len(self.stages) > 1 else ""
            self.context.reporter.say(f"epoch {epoch + 1} thaws {names}{of}{still}")
        return count == len(self.stages)

    def _frozen(self, epoch: int) -> int:
        training = self.spec.training
        return frozen_stages(
            len(self.stages), epoch, freeze_epochs=training.freeze_epochs, thaw_epochs=training.thaw_epochs
        )

    def step(self, batch: Batch, step: int) -> dict[str, float]:
        """One optimizer step on the global batch, of which `batch` is this process's slice.

        Its loss, gradient norm and the loss's stats come back, the same in every process.

        Raises:
            NonFiniteError: the loss or the gradient is NaN or infinite; the weights are as before, while
                batch norm and a memory bank may have seen the batch: nothing is to be saved after it.
            UsageError: torch cannot compile the extractor.
        """
        training, context = self.spec.training, self.context
        torch.manual_seed(_noise_seed(self.spec.seed, step, context.world.rank))
        images = batch.images.to(context.device, context.dtype, non_blocking=True)
        if training.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        labels, sizes = self._labels_of_all(batch)
        self.labels = labels.to(context.device, non_blocking=True)
        self._optimizer.zero_grad()
        with compile_errors() if training.compile else nullcontext():
            model, parts = self._model(step, sizes), parts_of(sizes, training.micro_batch)
            self.embeddings, loss = taken(model, images, self.labels, parts)
        self._sum_gradients()
        norm = self._gradient_norm()
        measured = {"loss": loss} | ({} if norm is None else {"grad_norm": norm})
        # a miner may pass over such a row, and in fp16 no norm of the gradient tells
        measured["embeddings"] = torch.where(self.embeddings.isfinite().all(), 0.0, torch.nan)
        stats = {k: v for k, v in getattr(self.loss, "stats", {}).items() if k not in measured}
        values = _on_the_host(measured | stats, context.dtype)
        kept = values.pop("embeddings")
        for value, what in (
            (values["loss"], "loss"),
            (kept, "embedding of an image"),
            (values.get("grad_norm", 0.0), "gradient"),
        ):
            if not np.isfinite(value):
                raise self._non_finite(what, step, batch)
        self._optimizer.step()
        self._refuse_skipping(step, batch)
        if self.ema is not None:
            self.ema.update(self.extractor, step + 1)
            values["ema_decay"] = self.ema.get_decay(step + 1)
        if not self.spec.scheduler.monitored and self.spec.scheduler.interval == "step":
            self.advance_schedule(step + 1)
        return values

    def _labels_of_all(self, batch: Batch) -> tuple[Tensor, list[int]]:
        """The labels (B,) of the global batch, and how many each process has."""
        told = self.context.world.gather(batch.labels.numpy())
        return torch.from_numpy(np.concatenate(told)), [len(labels) for labels in told]

    def _model(self, step: int = 0, sizes: Sequence[int] = ()) -> Model:
        context = self.context
        model = Model(
            self.extractor,
            self._forward,
            partial(self._seeded_loss, step),
            context.accelerator,
            context.dtype,
            self.spec.training.gradient_checkpointing,
        )
        return model if context.world.size == 1 else replace(model, gather=partial(gather_rows, sizes=sizes))

    def _seeded_loss(self, step: int, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, whose random choices (a miner's) are those of the step, in every process the same."""
        torch.manual_seed(_noise_seed(self.spec.seed, step, _OF_THE_LOSS))
        loss: Tensor = self.loss(embeddings, labels)
        return loss

    def _sum_gradients(self) -> None:
        """Make each process's gradients those of the global batch."""
        if self.context.world.size > 1:
            own = {id(parameter) for parameter in self.loss.parameters()}
            sum_gradients(p for p in self.parameters if id(p) not in own)
            mean_gradients(p for p in self.parameters if id(p) in own)

    def _non_finite(self, what: str, step: int, batch: Batch) -> NonFiniteError:
        """The error that names the images of all processes; all of them must be asking."""
        told = self.context.world.gather((batch.rows.tolist(), not_finite(batch.images)))
        rows = [row for part, _ in told for row in part]
        bad = {"pixels": torch.cat([pixels for _, pixels in told])}
        if self.embeddings is not None:
            bad["embeddings"] = not_finite(self.embeddings)
        return non_finite(what, step, rows, bad, self.paths)

    def _refuse_skipping(self, step: int, batch: Batch | None = None) -> None:
        """Stop when fp16's scaler has found the gradient not finite so often that it never will be."""
        skipped = bool(getattr(self._optimizer, "step_was_skipped", False))
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped >= MAX_SKIPPED:
            raise non_finite("gradient", step) if batch is None else self._non_finite("gradient", step, batch)

    def _gradient_norm(self) -> Tensor | None:
        """The gradient's norm, clipped if the spec says so; None in fp16, whose scaler skips bad steps."""
        limit = self.spec.training.grad_clip_norm
        norm: Tensor | None = None
        if limit is not None:
            norm = self.context.accelerator.clip_grad_norm_(self.parameters, limit)
        elif self.spec.training.precision != "fp16":
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return None if self.spec.training.precision == "fp16" else norm

    def agree(self) -> None:
        """Make the buffers of what is judged those of the main process, whose are saved.

        Batch norm that is not synchronised has other statistics in each.
        """
        if self.context.world.size > 1:
            broadcast_from_main(self.judged.buffers())

    def end_epoch(self, epoch: int) -> None:
        """Step a schedule that counts epochs."""
        if not self.spec.scheduler.monitored and self.spec.scheduler.interval == "epoch":
            self.advance_schedule(epoch + 1)

    def advance_schedule(self, done: int) -> None:
        """Step a schedule that is not told a value, after so many steps (or epochs) in all."""
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
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
        }


def _on_the_host(values: Mapping[str, Tensor | float], dtype: torch.dtype) -> dict[str, float]:
    """Scalars as floats, in one transfer: the only time in a step that the host waits for the device."""
    loss = values["loss"]
    assert isinstance(loss, Tensor)
    flat = [torch.as_tensor(v).detach().to(loss.device, dtype).reshape(()) for v in values.values()]
    return dict(zip(values, torch.stack(flat).tolist(), strict=True))


def _noise_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
