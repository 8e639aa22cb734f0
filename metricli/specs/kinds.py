"""The kinds of plugin, and what each one's `build` must return. Torch is named for types only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field

from metricli.errors import Problem
from metricli.specs.plugin import PluginSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from metricli.core.rankings import Rankings
    from metricli.data.facts import TableFacts

__all__ = [
    "ExtractorSpec",
    "LargestBatch",
    "Logger",
    "LoggerSpec",
    "LossSpec",
    "MinerSpec",
    "OptimizerSpec",
    "PostprocessorSpec",
    "SamplerSpec",
    "Scheduler",
    "SchedulerSpec",
    "TransformSpec",
]


class ExtractorSpec(PluginSpec, kind="extractors", singular="extractor"):
    """A model that turns images (B, 3, H, W) into embeddings (B, D)."""

    normalize: bool = Field(True, description="L2-normalise the embeddings")

    def build(self, *, load_weights: bool) -> nn.Module:
        """A module with an int attribute `dim`; with `load_weights` False it touches no file and no network.

        A submodule named `backbone`, if there is one, is what `training.freeze_epochs` freezes.
        """
        raise NotImplementedError


class TransformSpec(PluginSpec, kind="transforms", singular="transform"):
    """A transform of one image."""

    def build(self) -> Callable[[Tensor], Tensor]:
        """A callable from a uint8 image (3, H, W) to a float image (3, size, size)."""
        raise NotImplementedError


class BatchSampler(Protocol):
    """Yields the positions of one global batch after another; a pure function of (seed, epoch)."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sequence[int]]: ...


class LargestBatch(Protocol):
    """Finds how many images a training step may take; asked by a sampler that leaves it to the memory."""

    def __call__(self, *, n_instances: int, step: int, most: int) -> int:
        """The largest multiple of `step` images that fits, `most` at most; `n_instances` are of one label."""
        ...


class SamplerSpec(PluginSpec, kind="samplers", singular="sampler"):
    """Forms the batches of training."""

    needs_categories: ClassVar[bool] = False

    @property
    def open_settings(self) -> list[str]:
        """The settings that stand at "auto", which `resolved` replaces by numbers before `build`."""
        return [key for key in type(self).model_fields if getattr(self, key) == "auto"]

    def resolved(
        self, *, labels: np.ndarray, categories: np.ndarray | None, largest_batch: LargestBatch
    ) -> Self:
        """The same with a number in place of each "auto", from what `build` gets and from the memory.

        It is called at the start of a new run, if there are `open_settings`; a resumed run keeps its numbers.
        """
        del labels, categories, largest_batch
        return self

    @property
    def instances_per_label(self) -> int:
        """Images of one label that every batch holds; 1 means that positives are left to chance."""
        return 1

    @property
    def images_per_batch(self) -> int | None:
        """Images of a batch; None if the sampler does not say."""
        return None

    def batches_per_epoch(self, table: TableFacts) -> int | None:
        """Batches of an epoch over this table; None if the sampler does not say."""
        del table
        return None

    def build(self, *, labels: np.ndarray, categories: np.ndarray | None, seed: int) -> BatchSampler:
        """A batch sampler over the rows whose integer `labels` (N,) and `categories` (N,) are given."""
        raise NotImplementedError

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A sampler that needs categories is refused on a table without them."""
        problems = super().check(spec, table)
        if self.needs_categories and table is not None:
            problems += _needs_categories(f"the sampler {self.name!r}", table)  # type: ignore[attr-defined]
        return problems


class LossSpec(PluginSpec, kind="losses", singular="loss"):
    """A loss over embeddings and labels; it may own parameters (a classification head)."""

    needs_positives: ClassVar[bool] = False
    needs_categories: ClassVar[bool] = False

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """A module `(embeddings (B, dim), labels (B,)) -> scalar`; may expose `.stats: dict[str, Tensor]`."""
        raise NotImplementedError

    def remedies(self, spec: Any) -> list[str]:
        """What may help once the embeddings have collapsed, as far as it applies: words behind "try"."""
        del spec
        return []

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A loss that compares images of one label needs batches that hold several of them."""
        problems = super().check(spec, table)
        name = f"the loss {self.name!r}"  # type: ignore[attr-defined]
        if self.needs_positives and spec.sampler is None:
            problems.append(
                Problem(
                    "",
                    f"{name} compares images of one label, and plain shuffling rarely puts two in a batch; "
                    "add sampler: {name: balanced, n_labels: 8, n_instances: 4}",
                )
            )
        elif self.needs_positives and spec.sampler.instances_per_label < 2:
            problems.append(
                Problem("", f"{name} compares images of one label, so sampler.n_instances must be at least 2")
            )
        if self.needs_categories and table is not None:
            problems += _needs_categories(name, table)
        return problems


class MinerSpec(PluginSpec, kind="miners", singular="miner"):
    """Picks pairs or triplets from a batch."""

    chooses_means: ClassVar[bool] = False
    """Whether its triplets are of means of images, which a loss over pairs of images cannot take."""

    def build(self) -> nn.Module:
        """A module `(embeddings, labels, reference=None, reference_labels=None) -> Mined`."""
        raise NotImplementedError


class OptimizerSpec(PluginSpec, kind="optimizers", singular="optimizer"):
    """An optimizer over parameter groups that already carry their learning rate and weight decay."""

    lr: float = Field(1e-3, gt=0, description="learning rate of the backbone")
    head_lr: float | None = Field(
        None, gt=0, description="learning rate of projection, BNNeck and the loss's parameters; null: lr"
    )
    loss_lr: float | None = Field(
        None, gt=0, description="learning rate of the loss's own parameters; null: head_lr"
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="factor of lr from each layer of the backbone to the one before it, such as 0.75; timm "
        "models; null: one rate",
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    decay_norms_and_biases: bool = Field(
        False, description="apply weight decay to normalisation weights and biases as well"
    )

    def build(self, params: Iterable[dict[str, Any]]) -> Optimizer:
        """An optimizer; each of `params` is a group with `params`, `lr` and `weight_decay`."""
        raise NotImplementedError


class Scheduler(Protocol):
    """What the training loop asks of a schedule; every torch scheduler has it."""

    def step(self, *args: Any) -> None:
        """Advance by one interval."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state back."""


class SchedulerSpec(PluginSpec, kind="schedulers", singular="scheduler"):
    """A learning-rate schedule, stepped every `frequency` steps or epochs."""

    interval: Literal["step", "epoch"] = Field("step", description="step the schedule each step or epoch")
    frequency: int = Field(1, ge=1, description="step the schedule every so many intervals")
    monitored: ClassVar[bool] = False
    """Whether `step` takes the monitored metric of the latest validation."""

    def build(self, optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int) -> Scheduler:
        """A schedule over `optimizer`; `total_steps` are optimizer steps of the whole run."""
        raise NotImplementedError

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A schedule that waits for a metric needs validation rows to take it from."""
        problems = super().check(spec, table)
        if self.monitored and spec.validation.unjudged(table):
            what = (
                f"the rate never falls: the table has no validation rows to take {spec.validation.monitor} "
                "from; add some, or set validation.monitor: loss"
            )
            problems.append(Problem("", what, severity="warning"))
        return problems


class PostprocessorSpec(PluginSpec, kind="postprocessors", singular="postprocessor"):
    """Changes the rankings before the metrics are taken.

    `check` is called for `validate` too, whose spec has a `validation` block as that of `train`, while most
    others are raw data; its table is the one that is judged.
    """

    def build(self) -> Callable[[Rankings], Rankings]:
        """A callable from `core.rankings.Rankings` to Rankings; what stands in its `notes` after is said.

        It is built once, before any image is read, and called at every validation: a call must depend on no
        earlier one, and `notes` be of the last. A ValueError of the call is the user's mistake, and is said.
        """
        raise NotImplementedError


class Logger(Protocol):
    """Receives what a run measures, in the main process, from one thread.

    One that has `start(spec, *, step)` gets it first: the resolved spec, and the steps that a resumed run has
    behind it (0: a new run). One that has `notes`, a list of text, has them said after that.
    """

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Log scalars, named `split/...`, at a global step."""

    def log_figure(self, name: str, figure: Any, *, step: int) -> None:
        """Log an image (H, W, 3) of uint8."""

    def close(self) -> None:
        """The run is over."""


class LoggerSpec(PluginSpec, kind="loggers", singular="logger"):
    """Sends what a run measures somewhere, beside the metrics.jsonl that every run has."""

    def build(self, *, run_dir: Path) -> Logger:
        """A logger that writes below `run_dir` or to its own service; it may fail, and the run goes on."""
        raise NotImplementedError


def _needs_categories(who: str, table: TableFacts) -> list[Problem]:
    if table.train_categories == 0:
        return [Problem("", f"{who} needs categories, and the table has none; add a 'category' column")]
    if table.labels_in_two_categories:
        labels = ", ".join(map(repr, table.labels_in_two_categories[:3]))
        return [Problem("", f"{who} needs one category for each label, and some have two: {labels}")]
    if table.uncategorised_labels:
        count = table.uncategorised_labels
        return [Problem("", f"{who} needs a category for each label, and {count} train labels lack one")]
    return []
