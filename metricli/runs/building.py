"""The learner of a spec: built, placed on the device, and made the same in every process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from metricli.components.batch_norm import synchronise_batch_norm
from metricli.components.param_groups import parameter_groups
from metricli.components.stages import rest_batch_norm
from metricli.core.gather import broadcast_from_main
from metricli.errors import Problem, SpecError
from metricli.runs.context import Context
from metricli.runs.learner import Learner
from metricli.runs.parts import built_extractor, built_loss
from metricli.specs.train import TrainSpec


def build_learner(
    spec: TrainSpec,
    context: Context,
    *,
    num_labels: int,
    label_to_category: list[int] | None,
    steps_per_epoch: int,
    paths: Sequence[str] | NDArray[Any] = (),
) -> Learner:
    """Build and place everything that learns; the initial weights follow the seed alone.

    Raises:
        SpecError: freezing the backbone would leave nothing to train, or the backbone cannot do what
            `training` or `optimizer.layer_decay` ask of it.
    """
    torch.manual_seed(spec.seed)
    extractor = built_extractor(spec.extractor, dtype=context.dtype)
    loss = built_loss(
        spec,
        dim=extractor.dim,  # type: ignore[arg-type]
        num_labels=num_labels,
        label_to_category=label_to_category,
    )
    loss = loss.to(context.dtype)
    extractor.to(context.device)
    _prepare(extractor, spec, context)
    loss.to(context.device)
    if context.world.size > 1:
        _share(extractor, loss, spec, context)
    options = spec.optimizer
    try:
        groups = parameter_groups(
            extractor,
            loss,
            lr=options.lr,
            head_lr=options.head_lr,
            loss_lr=options.loss_lr,
            layer_decay=options.layer_decay,
            weight_decay=options.weight_decay,
            decay_norms_and_biases=options.decay_norms_and_biases,
        )
    except ValueError as error:
        raise SpecError("the spec", [Problem("optimizer.layer_decay", f"{error}; set it to null")]) from None
    if spec.training.freeze_epochs and all(group["name"].startswith("backbone") for group in groups):
        what = (
            "freezing the backbone leaves nothing to train: no projection, BNNeck or parameters in the loss"
        )
        raise SpecError("the spec", [Problem("training.freeze_epochs", what)])
    if options.loss_lr is not None and not list(loss.parameters()):
        context.reporter.warn("optimizer.loss_lr: the loss has no parameters of its own; set it to null")
    optimizer = options.build(groups)
    scheduler = spec.scheduler.build(
        optimizer, total_steps=spec.training.epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch
    )
    return Learner(context, extractor, loss, optimizer, scheduler, spec, paths)


def _prepare(extractor: nn.Module, spec: TrainSpec, context: Context) -> None:
    """Memory order, checkpointing of activations, and what is doubtful about a backbone."""
    backbone: Any = getattr(extractor, "backbone", extractor)
    if spec.training.channels_last:
        extractor.to(memory_format=torch.channels_last)
    if spec.training.gradient_checkpointing:
        try:
            backbone.set_grad_checkpointing(True)
        except (AttributeError, TypeError, AssertionError):  # timm asserts that a model can do it
            what = f"the backbone {type(backbone).__name__} has no gradient checkpointing; set it to false"
            raise SpecError("the spec", [Problem("training.gradient_checkpointing", what)]) from None
    if spec.training.freeze_batch_norm and not rest_batch_norm(backbone):
        context.reporter.warn("training.freeze_batch_norm: the backbone has no batch normalisation")


def _share(extractor: nn.Module, loss: nn.Module, spec: TrainSpec, context: Context) -> None:
    """One start and one batch norm for all processes."""
    for module in (extractor, loss):
        broadcast_from_main([*module.parameters(), *module.buffers()])
    if spec.training.sync_batchnorm:
        for kind in synchronise_batch_norm(extractor):
            what = f"{kind} takes its statistics from each process's images alone"
            context.reporter.warn(f"training.sync_batchnorm: {what}: the results depend on their number")
