"""The `validation` block, and the spec of `metricli validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from metricli.specs.base import SpecModel, error_at, spec_error
from metricli.specs.data import ComputeSpec, DataSpec, Workers
from metricli.specs.kinds import ExtractorSpec, PostprocessorSpec, TransformSpec
from metricli.specs.plugin import named
from metricli.specs.suggest import did_you_mean

if TYPE_CHECKING:
    from metricli.data.facts import TableFacts

LOWER_IS_BETTER = ("fnmr", "eer", "loss")
LOSS = "loss"


def lower_is_better(metric: str) -> bool:
    """The direction of a metric, by its name."""
    return metric.split("@")[0] in LOWER_IS_BETTER


def _ks(values: list[int]) -> list[int]:
    for k in values:
        if k < 1:
            raise spec_error(f"every k must be at least 1, got {k}")
    if len(set(values)) < len(values):
        raise spec_error(f"a k is given twice: {values}")
    return values


Ks = Annotated[list[int], AfterValidator(_ks)]


class MetricsSpec(SpecModel):
    """Which metrics to take, and at which k."""

    cmc: Ks = Field([1, 5, 10], description="any relevant item within the first k")
    precision: Ks = Field([5], description="relevant items within the first k / k")
    precision_capped: Ks = Field([], description="relevant items within the first k / min(k, relevant items)")
    map: Ks = Field([5], description="average precision within the first k, over min(k, relevant items)")
    map_hits: Ks = Field([], description="average precision within the first k, over the hits found")
    map_r: bool = Field(
        True, description="average precision within the first R, R the number of relevant items"
    )

    def names(self) -> list[str]:
        """The names that the metrics print as, such as `cmc@1` and `map@r`."""
        listed = ("cmc", "precision", "precision_capped", "map", "map_hits")
        found = [f"{metric}@{k}" for metric in listed for k in getattr(self, metric)]
        return found + (["map@r"] if self.map_r else [])


class ValidationSpec(SpecModel):
    """How to judge the embeddings."""

    every_n_epochs: int = Field(
        1, ge=1, description="validate after every so many epochs, and after the last"
    )
    batch_size: int = Field(128, ge=1, description="images in a forward pass, per process")
    num_workers: Workers = None
    metrics: MetricsSpec = Field(default_factory=MetricsSpec, description="metrics and their k")
    distance: Literal["cosine", "euclidean"] = Field("cosine", description="distance between embeddings")
    postprocessors: list[PostprocessorSpec] = Field([], description="applied to the search results, in order")
    monitor: str = Field(
        "map@r", description="the metric that chooses best.ckpt and stops early; `loss` is the train loss"
    )

    @model_validator(mode="after")
    def _some_metric(self) -> Self:
        if not self.metrics.names():
            raise error_at(("metrics",), "no metric is asked for; give at least one, such as cmc: [1]")
        return self

    def unjudged(self, table: TableFacts | None) -> bool:
        """Whether `monitor` will never have a value, for want of validation rows."""
        return table is not None and table.validation_rows == 0 and self.monitor != LOSS

    @property
    def monitor_problem(self) -> str | None:
        """What is wrong with `monitor`, or None."""
        known = [*self.metrics.names(), LOSS]
        if self.monitor in known:
            return None
        near = did_you_mean(self.monitor, known) or ";"
        return f"{self.monitor!r} is not computed{near} computed: {', '.join(known)}"


class TransformsSpec(SpecModel):
    """Transforms of training and of evaluation."""

    train: TransformSpec = Field(
        default_factory=named(TransformSpec, "augment"), description="random transform of training images"
    )
    eval: TransformSpec = Field(
        default_factory=named(TransformSpec, "resize_normalize"), description="fixed transform of evaluation"
    )


class EvalTransformsSpec(SpecModel):
    """Only the transform of evaluation is resolved; the other stays as written."""

    train: Any = Field(None, description="not used here")
    eval: TransformSpec = Field(
        default_factory=named(TransformSpec, "resize_normalize"), description="fixed transform of evaluation"
    )


class InferenceSpec(SpecModel):
    """What a checkpoint is asked for; the blocks that only training uses stay as written, unresolved."""

    name: str = Field("run", description="name of the run")
    seed: int = Field(0, ge=0, description="seed of everything random")
    compute: ComputeSpec = Field(default_factory=ComputeSpec, description="where to compute")
    data: DataSpec | None = Field(None, description="the table of images")
    extractor: ExtractorSpec | None = Field(None, description="the model")
    transforms: EvalTransformsSpec = Field(default_factory=EvalTransformsSpec, description="image transforms")
    sampler: Any = Field(None, description="not used here")
    loss: Any = Field(None, description="not used here")
    optimizer: Any = Field(None, description="not used here")
    scheduler: Any = Field(None, description="not used here")
    training: Any = Field(None, description="not used here")
    loggers: Any = Field(None, description="not used here")


class ValidateSpec(InferenceSpec):
    """The spec of `metricli validate`."""

    validation: ValidationSpec = Field(
        default_factory=ValidationSpec, description="how to judge the embeddings"
    )
    prediction: Any = Field(None, description="not used here")
