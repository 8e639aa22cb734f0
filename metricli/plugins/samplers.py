"""The doors to samplers that balance labels and categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.specs.kinds import BatchSampler, SamplerSpec

if TYPE_CHECKING:
    import numpy as np

    from metricli.data.facts import TableFacts


class _Balanced(SamplerSpec):
    """Batches of `n_labels` labels with `n_instances` images each."""

    n_labels: int = Field(ge=1, description="labels in a batch")
    n_instances: int = Field(ge=1, description="images of each label in a batch")
    batches: int | None = Field(None, ge=1, description="lengthen an epoch to at least so many batches")

    @property
    def instances_per_label(self) -> int:
        """Images of one label in every batch."""
        return self.n_instances

    def labels_per_batch(self) -> int:
        """Labels in a batch, over all categories."""
        return self.n_labels

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A batch cannot hold more labels than there are, nor a single one where negatives are needed."""
        problems = super().check(spec, table)
        asked = self.labels_per_batch()
        if asked < 2 and spec.loss.needs_positives:
            what = "a batch of 1 label holds no negatives; 2 at least, 8 is usual"
            problems.append(Problem("n_labels", what))
        if table is not None and asked > table.train_labels:
            what = f"a batch of {asked} labels, and the table has {table.train_labels} train labels; lower it"
            problems.append(Problem("n_labels", what))
        return problems


class Balanced(_Balanced):
    """Every batch holds `n_labels` labels with `n_instances` images each (P x K); every label is seen."""

    name: Literal["balanced"] = "balanced"

    def build(self, *, labels: np.ndarray, categories: np.ndarray | None, seed: int) -> BatchSampler:
        """A `BalancedSampler`."""
        from metricli.components.samplers import BalancedSampler

        del categories
        return BalancedSampler(
            labels=labels,
            n_labels=self.n_labels,
            n_instances=self.n_instances,
            batches=self.batches,
            seed=seed,
        )


class _CategoryBalanced(_Balanced):
    n_labels: int = Field(ge=1, description="labels of each category in a batch")
    n_categories: int = Field(ge=1, description="categories in a batch")
    needs_categories: ClassVar[bool] = True

    def labels_per_batch(self) -> int:
        """Labels in a batch, over all categories."""
        return self.n_labels * self.n_categories

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

        return CategoryBalancedSampler(
            labels=labels,
            categories=categories,
            n_categories=self.n_categories,
            n_labels=self.n_labels,
            n_instances=self.n_instances,
            batches=self.batches,
            seed=seed,
        )


class DistinctCategoryBalanced(_CategoryBalanced):
    """As category_balanced, but no label comes again in an epoch before all have been seen."""

    name: Literal["distinct_category_balanced"] = "distinct_category_balanced"

    def build(self, *, labels: np.ndarray, categories: np.ndarray | None, seed: int) -> BatchSampler:
        """A `DistinctCategoryBalancedSampler`."""
        from metricli.components.samplers import DistinctCategoryBalancedSampler

        return DistinctCategoryBalancedSampler(
            labels=labels,
            categories=categories,
            n_categories=self.n_categories,
            n_labels=self.n_labels,
            n_instances=self.n_instances,
            batches=self.batches,
            seed=seed,
        )
