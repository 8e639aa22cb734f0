"""The `validation` block, and the spec of `metricli validate`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from metricli.core.catalogue import metric_names, metric_of
from metricli.specs.base import SpecModel, SpecPath, error_at, spec_error
from metricli.specs.data import ComputeSpec, DataSpec, Workers
from metricli.specs.kinds import ExtractorSpec, PostprocessorSpec, TransformSpec
from metricli.specs.plugin import named
from metricli.specs.suggest import did_you_mean

if TYPE_CHECKING:
    from metricli.data.facts import TableFacts

LOSS = "loss"


def lower_is_better(metric: str) -> bool:
    """The direction of a metric, by its name."""
    known = metric_of(metric)
    return metric == LOSS or (known is not None and known.lower_is_better)


def is_bounded(metric: str) -> bool:
    """Whether a metric lies between 0 and 1, by its name."""
    known = metric_of(metric)
    return known is not None and known.bounded


def _ks(values: list[int]) -> list[int]:
    for k in values:
        if k < 1:
            raise spec_error(f"every k must be at least 1, got {k}")
    if len(set(values)) < len(values):
        raise spec_error(f"a k is given twice: {values}")
    return values


def _shares(values: list[float]) -> list[float]:
    for share in values:
        if not 0 < share < 1:
            raise spec_error(f"must lie between 0 and 1, got {share:g}")
    if len(set(values)) < len(values):
        raise spec_error(f"a value is given twice: {values}")
    return values


Ks = Annotated[list[int], AfterValidator(_ks)]
Shares = Annotated[list[float], AfterValidator(_shares)]


class MetricsSpec(SpecModel):
    """Which metrics to take, and at which k; docs/metrics.md defines them."""

    cmc: Ks = Field([1, 5, 10], description="any relevant item within the first k")
    precision: Ks = Field([5], description="relevant items within the first k / k")
    precision_capped: Ks = Field([], description="relevant items within the first k / min(k, relevant items)")
    recall: Ks = Field([], description="relevant items within the first k / relevant items")
    map: Ks = Field([5], description="average precision within the first k, over min(k, relevant items)")
    map_hits: Ks = Field([], description="average precision within the first k, over the hits found")
    ndcg: Ks = Field([], description="discounted cumulative gain within the first k, over the best possible")
    map_r: bool = Field(
        True, description="average precision within the first R, R the number of relevant items"
    )
    r_precision: bool = Field(False, description="relevant items within the first R / R")
    mrr: bool = Field(False, description="1 / rank of the first relevant item")
    minp: bool = Field(False, description="relevant items / rank of the last of them")
    fnmr: Shares = Field(
        [], description="share of genuine pairs rejected where so large a share of impostor pairs is accepted"
    )
    tar: Shares = Field([], description="share of genuine pairs accepted there")
    eer: bool = Field(
        False, description="error rate at the threshold where both kinds of error are as frequent"
    )
    roc_auc: bool = Field(False, description="chance that a genuine pair is nearer than an impostor pair")
    pcf: Shares = Field(
        [], description="share of principal components that explain such a share of the variance"
    )
    effective_rank: bool = Field(False, description="effective number of dimensions that the embeddings use")
    alignment: bool = Field(
        False, description="mean squared distance of two images of a label, on unit length"
    )
    uniformity: bool = Field(False, description="log mean Gaussian potential of all pairs, on unit length")
    hubness: Ks = Field([], description="skewness of how often an item is among the first k of a query")

    def names(self) -> list[str]:
        """The names that the metrics print as, such as `cmc@1` and `map@r`."""
        return metric_names(self.model_dump())


class SearchSpec(SpecModel):
    """How the gallery is searched."""

    index: str | None = Field(
        None,
        description="null: exact; else a faiss factory string such as HNSW32 or IVF1024,Flat: approximate, "
        "and said so (needs metricli[faiss])",
    )
    nprobe: int | None = Field(None, ge=1, description="cells of an IVF index to look into")
    budget_mb: float = Field(64, gt=0, description="working memory of the exact search, in MB")

    @model_validator(mode="after")
    def _nprobe_of_an_index(self) -> Self:
        if self.nprobe is not None and (self.index is None or "IVF" not in self.index):
            raise error_at(("nprobe",), "is for an IVF index alone; remove it, or set index: IVF1024,Flat")
        return self


class BootstrapSpec(SpecModel):
    """Confidence intervals: labels are drawn again and again, with all their queries."""

    samples: int = Field(1000, ge=0, description="draws; 0: no intervals")
    confidence: float = Field(0.95, gt=0, lt=1, description="share of the draws that an interval holds")

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        least = math.ceil(2 / (1 - self.confidence) - 1e-9)
        if 0 < self.samples < least:
            what = f"an interval of {self.confidence:g} needs {least} draws or more, got {self.samples}"
            raise error_at(("samples",), f"{what}; 0: no intervals")
        return self


class ValidationSpec(SpecModel):
    """How to judge the embeddings."""

    every_n_epochs: int = Field(
        1, ge=1, description="validate after every so many epochs, and after the last"
    )
    batch_size: int = Field(128, ge=1, description="images in a forward pass, per process")
    num_workers: Workers = None
    metrics: MetricsSpec = Field(default_factory=MetricsSpec, description="metrics and their k")
    distance: Literal["cosine", "euclidean"] = Field("cosine", description="distance between embeddings")
    search_within: Literal["category"] | None = Field(
        None, description="`category`: a query searches the gallery items of its own category only"
    )
    unmatched: Literal["skip", "zero", "error"] = Field(
        "skip",
        description="queries without a match: left out of the means, counted as 0 in each, or refused; "
        "counted and listed in any case",
    )
    search: SearchSpec = Field(default_factory=SearchSpec, description="how the gallery is searched")
    postprocessors: list[PostprocessorSpec] = Field([], description="applied to the rankings, in order")
    gallery_features: SpecPath | None = Field(
        None,
        description="judge queries against saved features instead of the gallery's own embeddings, such as "
        "those of the model before",
    )
    gallery_table: SpecPath | None = Field(
        None, description="the table of gallery_features; null: the table that is judged"
    )
    bootstrap: BootstrapSpec = Field(default_factory=BootstrapSpec, description="confidence intervals")
    per_query: Literal["parquet", "csv"] = Field(
        "parquet", description="format of the values of each query that `validate --out` writes"
    )
    monitor: str = Field(
        "map@r", description="the metric that chooses best.ckpt and stops early; `loss` is the train loss"
    )

    @model_validator(mode="after")
    def _some_metric(self) -> Self:
        if not self.metrics.names():
            raise error_at(("metrics",), "no metric is asked for; give at least one, such as cmc: [1]")
        return self

    @model_validator(mode="after")
    def _whole_rankings(self) -> Self:
        whole = [name for name in ("mrr", "minp") if getattr(self.metrics, name)]
        if self.search.index is not None and whole:
            what = (
                f"an approximate index gives no whole ranking, which {' and '.join(whole)} look at; remove "
            )
            raise error_at(
                ("search", "index"), what + ("them" if len(whole) > 1 else "it") + ", or the index"
            )
        return self

    @model_validator(mode="after")
    def _table_of_features(self) -> Self:
        if self.gallery_table is not None and self.gallery_features is None:
            raise error_at(("gallery_table",), "is the table of gallery_features, which is not given")
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
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
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
