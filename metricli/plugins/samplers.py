"""The doors to samplers that balance labels and categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, WrapValidator
from pydantic_core.core_schema import ValidatorFunctionWrapHandler

from metricli.errors import Problem
from metricli.specs.base import show, spec_error
from metricli.specs.kinds import BatchSampler, LargestBatch, SamplerSpec

if TYPE_CHECKING:
    import numpy as np

    from metricli.data.facts import TableFacts

_INSTANCES = 4
"""Most images of a label that `auto` takes: more would cost labels, and it is labels that give negatives."""
_IMAGES = 512
"""Most images of a batch that `auto` takes: beyond, a run of usual length has few steps left to learn in."""


def _count_or_auto(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        raise spec_error(f"must be a whole number of 1 or more, or auto, got {show(value)}") from None


_Count = Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], WrapValidator(_count_or_auto)]


class _Balanced(SamplerSpec):
    """Batches of `n_labels` labels with `n_instances` images each."""

    n_labels: _Count = Field(
        description="labels in a batch; auto: as many as fit into memory, up to 512 images (on a CPU 64)"
    )
    n_instances: _Count = Field(
        description="images of each label in a batch; auto: as many as the median label has, from 2 to 4"
    )
    batches: int | None = Field(None, ge=1, description="lengthen an epoch to at least so many batches")

    @property
    def instances_per_label(self) -> int:
        """Images of one label in every batch; 2, which is the least, while they stand at auto."""
        return 2 if self.n_instances == "auto" else self.n_instances

    @property
    def images_per_batch(self) -> int | None:
        """Images of every batch; None while a number stands at auto."""
        labels = self.labels_per_batch()
        return None if labels is None or self.n_instances == "auto" else labels * self.n_instances

    def labels_per_batch(self) -> int | None:
        """Labels in a batch, over all categories; None while they stand at auto."""
        return None if self.n_labels == "auto" else self.n_labels

    def resolved(
        self, *, labels: np.ndarray, categories: np.ndarray | None, largest_batch: LargestBatch
    ) -> Self:
        """The same with numbers in place of auto."""
        import numpy as np

        _, first, sizes = np.unique(labels, return_index=True, return_counts=True)
        n_instances, n_labels = self.n_instances, self.n_labels
        if n_instances == "auto":
            n_instances = int(np.clip(np.median(sizes), 2, _INSTANCES))
        if n_labels == "auto":
            step = n_instances * self._groups()
            there = self._labels_for_each_group(None if categories is None else categories[first], len(first))
            most = max(1, min(there, _IMAGES // step))
            n_labels = largest_batch(n_instances=n_instances, step=step, most=most * step) // step
        return self.model_copy(update={"n_labels": n_labels, "n_instances": n_instances})

    def _groups(self) -> int:
        """How many times a batch holds `n_labels` labels."""
        return 1

    def _labels_for_each_group(self, categories: np.ndarray | None, num_labels: int) -> int:
        """The most that `n_labels` can sensibly be, by the `categories` (L,) of the labels."""
        del categories
        return num_labels

    def _numbers(self) -> dict[str, Any]:
        """What the samplers are built with.

        Raises:
            ValueError: a number still stands at auto.
        """
        for key in self.open_settings:
            raise ValueError(f"{key} is auto; give a number, or call resolved() before build()")
        keys = ("n_categories", "n_labels", "n_instances", "batches")
        return {key: getattr(self, key) for key in keys if hasattr(self, key)}

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A batch cannot hold more labels than there are, nor a single one where negatives are needed."""
        problems = super().check(spec, table)
        asked = self.labels_per_batch()
        if asked is None:
            return problems
        if asked < 2 and any(loss.needs_positives for _, loss in spec.losses):
            what = "a batch of 1 label holds no negatives; 2 at least, 8 is usual"
            problems.append(Problem("n_labels", what))
        if table is not None and asked > table.train_labels:
            there = table.train_labels
            labels = "labels; lower it" if there > 1 else "label; training needs two"
            what = f"a batch of {asked} labels, and the table has {there} train {labels}"
            problems.append(Problem("n_labels", what))
        return problems + self._repeats(table)

    def _repeats(self, table: TableFacts | None) -> list[Problem]:
        """Images that a batch must hold twice."""
        if table is None or self.n_instances == "auto":
            return []
        problems, images = [], self.images_per_batch
        if short := table.labels_below(self.n_instances):
            named = ", ".join(map(repr, table.smallest_labels[: min(3, short)])) + ", ..." * (short > 3)
            what = (
                f"{short} of {table.train_labels} train labels cannot give {self.n_instances} images "
                f"({named}): theirs are repeated in a batch, where copies are easy positives; lower it, or "
                "leave them out"
            )
            problems.append(Problem("n_instances", what, severity="warning"))
        if images is not None and images > table.train_rows:
            what = (
                f"a batch of {images} images, and the table has {table.train_rows} train rows, so every "
                "batch repeats some; lower n_labels or n_instances"
            )
            problems.append(Problem("n_labels", what, severity="warning"))
        return problems


class Balanced(_Balanced):
    """Every batch holds `n_labels` labels with `n_instances` images each (P x K); every label is seen."""

    name: Literal["balanced"] = "balanced"

    def batches_per_epoch(self, table: TableFacts) -> int | None:
        """Enough to show every label, or `batches` if that is more; None while `n_labels` stands at auto."""
        if self.n_labels == "auto":
            return None
        return max(-(-table.train_labels // self.n_labels), self.batches or 0)

    def build(self, *, labels: np.ndarray, categories: np.ndarray | None, seed: int) -> BatchSampler:
        """A `BalancedSampler`."""
        from metricli.components.samplers import BalancedSampler

        del categories
        return BalancedSampler(labels=labels, seed=seed, **self._numbers())


class _CategoryBalanced(_Balanced):
    n_labels: _Count = Field(
        description="labels of each category in a batch; auto: as many as fit into memory, up to 512 images "
        "(on a CPU 64) and to the labels of the median category"
    )
    n_categories: int = Field(ge=1, description="categories in a batch")
    needs_categories: ClassVar[bool] = True

    def labels_per_batch(self) -> int | None:
        """Labels in a batch, over all categories; None while they stand at auto."""
        return None if self.n_labels == "auto" else self.n_labels * self.n_categories

    def _groups(self) -> int:
        return self.n_categories

    def _labels_for_each_group(self, categories: np.ndarray | None, num_labels: int) -> int:
        import numpy as np

        there = num_labels // self.n_categories
        if categories is None:
            return there
        return min(there, int(np.median(np.unique(categories, return_counts=True)[1])))

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A batch cannot hold more categories than there are."""
        problems = super().check(spec, table)
        if table is not None and 0 < table.train_categories < self.n_categories:
            asked, there = self.n_categories, table.train_categories
            what = f"a batch of {asked} categories, and the table has {there}; lower it"
            problems.append(Problem("n_categories", what))
        return problems


class CategoryBalanced(_CategoryBalanced):
    """Every batch holds `n_categories` categories with `n_labels` labels each: harder negatives."""

    name: Literal["category_balanced"] = "category_balanced"

    def build(self, *, labels: np.ndarray, categories: np.ndarray | None, seed: int) -> BatchSampler:
        """A `CategoryBalancedSampler`."""
        from metricli.components.samplers import CategoryBalancedSampler

        return CategoryBalancedSampler(labels=labels, categories=categories, seed=seed, **self._numbers())


class DistinctCategoryBalanced(_CategoryBalanced):
    """As category_balanced, but no label comes again in an epoch before all have been seen."""

    name: Literal["distinct_category_balanced"] = "distinct_category_balanced"

    def build(self, *, labels: np.ndarray, categories: np.ndarray | None, seed: int) -> BatchSampler:
        """A `DistinctCategoryBalancedSampler`."""
        from metricli.components.samplers import DistinctCategoryBalancedSampler

        return DistinctCategoryBalancedSampler(
            labels=labels, categories=categories, seed=seed, **self._numbers()
        )
