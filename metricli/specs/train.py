"""The spec of `metricli train`: the whole story of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    TypeAdapter,
    ValidationInfo,
    WrapValidator,
    model_validator,
)

from metricli.specs.base import SpecModel, error_at, show, spec_error
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

if TYPE_CHECKING:
    from metricli.data.facts import TableFacts


class EmaSpec(SpecModel):
    """A running average of the weights, which is judged and shipped in their place."""

    decay: float = Field(
        0.9999,
        ge=0,
        lt=1,
        description="share of the average that a step keeps; about 1 / (1 - decay) steps count",
    )
    warmup: bool = Field(
        False, description="let decay rise from 0 as 1 - (1 + step)^(-2/3), for runs too short for it"
    )


class TrainingSpec(SpecModel):
    """The training loop."""

    epochs: int = Field(20, ge=1, description="passes over the training labels")
    batch_size: int | None = Field(
        None, ge=1, description="images in a step over all processes; only with sampler: null"
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="images that go through the extractor at once, to fit a large batch into memory; the "
        "gradient and the negatives are those of the whole batch (gradient caching, for a second forward "
        "pass), but batch norm takes its statistics from each micro-batch unless freeze_batch_norm; null: "
        "the whole batch",
    )
    precision: Literal["fp32", "fp16", "bf16", "fp64"] = Field(
        "fp32", description="arithmetic of the forward pass; distances and logits are float32 at least"
    )
    grad_clip_norm: float | None = Field(
        None, gt=0, description="clip the gradient to this norm; null: do not"
    )
    freeze_epochs: int = Field(0, ge=0, description="first epochs in which the backbone does not change")
    thaw_epochs: int = Field(
        0,
        ge=0,
        description="epochs after freeze_epochs over which the stages of the backbone begin to train, "
        "evenly, the last stage first; 0: all at once",
    )
    freeze_batch_norm: bool = Field(
        False, description="keep the statistics of the backbone's batch norm; its weights train all the same"
    )
    sync_batchnorm: bool = Field(
        True, description="of several processes: batch norm takes its statistics from the batch of them all"
    )
    ema: EmaSpec | None = Field(
        None, description="judge and ship a running average of the weights (EMA); null: the weights"
    )
    compile: bool = Field(False, description="compile the extractor's training pass with torch.compile")
    channels_last: bool = Field(
        False, description="keep images and weights in channels-last order, faster for CNNs on a GPU"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="recompute activations in the backward pass: less memory, a third more time; timm models",
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many validations without a better monitor; null: never"
    )
    min_delta: float = Field(0.0, ge=0, description="a smaller gain of the monitor does not count as better")
    log_every_steps: int = Field(10, ge=1, description="steps between two lines of metrics.jsonl")
    save_every_steps: int | None = Field(
        None,
        ge=1,
        description="save last.ckpt whenever so many steps are taken; null: see save_every_minutes",
    )
    save_every_minutes: float | None = Field(
        10.0,
        gt=0,
        description="save last.ckpt when its newest is older; null: at the ends of epochs, and every "
        "save_every_steps",
    )
    keep: int = Field(
        0,
        ge=0,
        description="saves that stay in checkpoints/step-...: the newest so many of those made every "
        "save_every_steps, or at the ends of epochs; 0: last.ckpt alone",
    )
    on_collapse: Literal["warn", "stop"] = Field(
        "warn", description="once all embeddings have become alike: warn and go on, or end with exit code 4"
    )
    num_workers: Workers = None


class WeightedLossSpec(SpecModel):
    """One of several losses that are summed."""

    weight: float = Field(1.0, gt=0, description="what the value of this loss is multiplied by")
    loss: LossSpec = Field(description="the loss, with its miner if it mines")

    @model_validator(mode="before")
    @classmethod
    def _is_no_bare_loss(cls, data: Any) -> Any:
        if isinstance(data, str):
            raise spec_error(f"expected a mapping with 'loss', got {show(data)}; write {{loss: {data}}}")
        if isinstance(data, Mapping) and "name" in data and "loss" not in data:
            raise spec_error(
                "a loss of a list stands below 'loss', beside its weight; "
                f"write {{weight: 1.0, loss: {{name: {data['name']}, ...}}}}"
            )
        return data


def _one_or_several(value: Any, _union: Any, info: ValidationInfo) -> Any:
    """A list by its items, anything else as one loss: a union would report the errors of both."""
    if isinstance(value, Mapping) and "loss" in value and "name" not in value:
        raise spec_error("a loss has a 'name'; several stand in a list: [{weight: 1.0, loss: {name: ...}}]")
    if not isinstance(value, list):
        return TypeAdapter(LossSpec).validate_python(value, context=info.context)
    if not value:
        raise spec_error("a list of losses needs one at least, such as [{weight: 1.0, loss: triplet}]")
    return TypeAdapter(list[WeightedLossSpec]).validate_python(value, context=info.context)


Losses = Annotated[
    LossSpec | Annotated[list[WeightedLossSpec], Field(min_length=1)], WrapValidator(_one_or_several)
]


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
    loss: Losses = Field(
        description="the loss, with its miner if it mines; or a list of {weight, loss}, which are summed"
    )
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

    @property
    def losses(self) -> list[tuple[float, LossSpec]]:
        """Every loss with its weight; a single one has weight 1."""
        if isinstance(self.loss, list):
            return [(item.weight, item.loss) for item in self.loss]
        return [(1.0, self.loss)]

    def steps(self, table: TableFacts) -> int | None:
        """The steps of the run, where the sampler says how many batches an epoch has."""
        if self.sampler is not None:
            batches = self.sampler.batches_per_epoch(table)
        else:
            assert self.training.batch_size is not None, "a spec without a sampler has it"
            batches = -(-table.train_rows // self.training.batch_size)
        return None if batches is None else batches * self.training.epochs

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
