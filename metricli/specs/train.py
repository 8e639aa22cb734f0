"""The spec of `metricli train`: the whole story of a run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from metricli.specs.base import SpecModel, error_at, spec_error
from metricli.specs.data import ComputeSpec, DataSpec, Workers
from metricli.specs.kinds import (
    ExtractorSpec,
    LoggerSpec,
    LossSpec,
    OptimizerSpec,
    SamplerSpec,
    SchedulerSpec,
)
from metricli.specs.plugin import named
from metricli.specs.predict import PredictionSpec
from metricli.specs.validate import TransformsSpec, ValidationSpec


class TrainingSpec(SpecModel):
    """The training loop."""

    epochs: int = Field(20, ge=1, description="passes over the training labels")
    batch_size: int | None = Field(
        None, ge=1, description="images in a step over all processes; only with sampler: null"
    )
    precision: Literal["fp32", "fp16", "bf16", "fp64"] = Field(
        "fp32", description="arithmetic of the forward pass; distances and logits are float32 at least"
    )
    grad_clip_norm: float | None = Field(
        None, gt=0, description="clip the gradient to this norm; null: do not"
    )
    freeze_epochs: int = Field(0, ge=0, description="first epochs in which the backbone does not change")
    patience: int | None = Field(
        None, ge=1, description="stop after so many validations without a better monitor; null: never"
    )
    min_delta: float = Field(0.0, ge=0, description="a smaller gain of the monitor does not count as better")
    log_every_steps: int = Field(10, ge=1, description="steps between two lines of metrics.jsonl")
    num_workers: Workers = None


class TrainSpec(SpecModel):
    """One spec, one run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run directory")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    compute: ComputeSpec = Field(default_factory=ComputeSpec, description="where to compute")
    data: DataSpec = Field(description="the table of images")
    extractor: ExtractorSpec = Field(description="the model that turns images into embeddings")
    transforms: TransformsSpec = Field(default_factory=TransformsSpec, description="image transforms")
    sampler: SamplerSpec | None = Field(
        None, description="forms the batches; null: plain shuffling, with training.batch_size"
    )
    loss: LossSpec = Field(description="the loss, with its miner if it mines")
    optimizer: OptimizerSpec = Field(
        default_factory=named(OptimizerSpec, "adamw"), description="the optimizer"
    )
    scheduler: SchedulerSpec = Field(
        default_factory=named(SchedulerSpec, "cosine"), description="the learning-rate schedule"
    )
    training: TrainingSpec = Field(default_factory=TrainingSpec, description="the training loop")
    validation: ValidationSpec = Field(
        default_factory=ValidationSpec, description="how to judge the embeddings"
    )
    prediction: PredictionSpec = Field(default_factory=PredictionSpec, description="how to write features")
    loggers: list[LoggerSpec] = Field([], description="where metrics go beside metrics.jsonl")

    @model_validator(mode="after")
    def _one_batch_size(self) -> Self:
        if self.sampler is None and self.training.batch_size is None:
            raise spec_error(
                "neither sampler nor training.batch_size is given, and one of them forms the batches; "
                "add sampler: {name: balanced, n_labels: 8, n_instances: 4}"
            )
        if self.sampler is not None and self.training.batch_size is not None:
            raise error_at(
                ("training", "batch_size"), "is for sampler: null, and the sampler sets the batch; remove one"
            )
        return self
