"""Batch samplers of n_labels x n_instances: whole epochs of positions, a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metricli.core.dealing import Groups, Ints, completed, in_turn

__all__ = ["BalancedSampler", "CategoryBalancedSampler", "DistinctCategoryBalancedSampler"]


class BalancedSampler:
    """Batches of n_labels labels with n_instances images each; an epoch shows every label.

    An epoch has ceil(labels / n_labels) batches, or `batches` if that is more. Labels take turns: in an
    epoch none comes more than once more than another. The labels of a batch are distinct, its images too
    wherever their label has n_instances of them; a shorter label repeats each image as evenly as it can. The
    images of a label take turns over batches and epochs. Each label's images stand together in the batch.

    Args:
        labels: (N,) the label of each row.
        n_labels: labels a batch.
        n_instances: images a label.
        seed: 0 or more; together with the epoch it decides everything.
        batches: lengthen an epoch to at least so many batches.

    Raises:
        ValueError: labels empty or not a row of integers, more labels a batch than there are, or a number
            below its minimum.
    """

    def __init__(
        self, *, labels: ArrayLike, n_labels: int, n_instances: int, seed: int, batches: int | None = None
    ) -> None:
        self._images = Groups(_checked_labels(labels), seed, salt=0)
        _check_settings(n_labels=n_labels, n_instances=n_instances, batches=1 if batches is None else batches)
        self._begin(n_labels, n_instances, seed, batches)

    def _begin(self, labels_a_batch: int, n_instances: int, seed: int, batches: int | None) -> None:
        if labels_a_batch > self._images.num_groups:
            raise ValueError(
                f"a batch needs {labels_a_batch} different labels, there are {self._images.num_groups}"
            )
        self.n_instances = n_instances
        self.labels_per_batch = labels_a_batch
        self.batch_size = labels_a_batch * n_instances
        self.seed = seed
        self.epoch = 0
        self._pass_batches = self._batches_for_every_label()
        self._num_batches = max(self._pass_batches, batches or 0)

    def _batches_for_every_label(self) -> int:
        return -(-self._images.num_groups // self.labels_per_batch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives.

        Raises:
            ValueError: `epoch` is below 0.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch!r}")
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.epoch_batches(self.epoch):
            yield batch.tolist()

    def epoch_batches(self, epoch: int) -> Ints:
        """All batches of an epoch: (batches, batch_size) positions into the labels."""
        slots = self._label_slots(np.random.default_rng([self.seed, epoch]), epoch)
        hands = self._images.deal(slots.ravel(), self.n_instances, epoch, self._label_turns())
        return hands.reshape(len(slots), self.batch_size)

    def _label_slots(self, rng: np.random.Generator, epoch: int) -> Ints:  # noqa: ARG002
        return in_turn(rng, self._images.num_groups, self.labels_per_batch, self._num_batches)

    def _label_turns(self) -> Ints:
        return np.full(self._images.num_groups, self._num_batches // self._pass_batches)


class _OverCategories(BalancedSampler):
    def __init__(
        self,
        *,
        labels: ArrayLike,
        categories: ArrayLike | None,
        n_categories: int,
        n_labels: int,
        n_instances: int,
        seed: int,
        batches: int | None = None,
    ) -> None:
        self._images = Groups(_checked_labels(labels), seed, salt=0)
        _check_settings(
            n_categories=n_categories,
            n_labels=n_labels,
            n_instances=n_instances,
            batches=1 if batches is None else batches,
        )
        self._labels = Groups(_label_categories(self._images, categories), seed, salt=1)
        if n_categories > self._labels.num_groups:
            raise ValueError(f"n_categories={n_categories} exceeds the {self._labels.num_groups} categories")
        self.n_categories = n_categories
        self.n_labels = n_labels
        self._begin(n_categories * n_labels, n_instances, seed, batches)


class CategoryBalancedSampler(_OverCategories):
    """Batches of n_categories categories, n_labels labels of each, n_instances images of each label.

    An epoch shows every label. Categories take turns, whatever their size, and the labels of a category take
    turns in theirs: none comes back before all were shown, but to complete the n_labels. So an epoch has
    ceil(turns * categories / n_categories) batches, turns = ceil(labels of the largest category / n_labels),
    or `batches` if that is more. Very uneven categories make that long: the labels of small ones come many
    times while the largest is gone through. An epoch of `DistinctCategoryBalancedSampler` is one pass.

    A category short of labels gives all it has; further labels of the batch's other categories complete the
    batch, and where these are used up, labels of any other. Labels are distinct in a batch; images as in
    `BalancedSampler`.

    Args:
        labels: (N,) the label of each row.
        categories: (N,) the category of each row, integers or text, one for all rows of a label.
        n_categories: categories a batch.
        n_labels: labels a category.
        n_instances: images a label.
        seed: 0 or more; together with the epoch it decides everything.
        batches: lengthen an epoch to at least so many batches.

    Raises:
        ValueError: as `BalancedSampler`; categories missing or of another length, a label in two
            categories, or more categories a batch than there are.
    """

    def _batches_for_every_label(self) -> int:
        turns = -(-int(self._labels.sizes.max()) // self.n_labels)
        return -(-turns * self._labels.num_groups // self.n_categories)

    def _label_slots(self, rng: np.random.Generator, epoch: int) -> Ints:
        sizes, wanted = self._labels.sizes, self.labels_per_batch
        categories = in_turn(rng, len(sizes), self.n_categories, self._num_batches)
        spare = wanted - self.n_labels if sizes.min() < self.n_labels else 0
        hands = self._labels.deal(categories.ravel(), self.n_labels, epoch, np.zeros_like(sizes), spare)
        hands[np.arange(hands.shape[1]) >= sizes[categories.ravel(), None]] = -1
        hands = hands.reshape(*categories.shape, -1)
        own = hands[:, :, : self.n_labels].reshape(len(hands), -1)
        others = hands[:, :, self.n_labels :].transpose(0, 2, 1).reshape(len(hands), -1)
        return completed(rng, np.concatenate([own, others], axis=1), wanted, self._images.num_groups)

    def _label_turns(self) -> Ints:
        turns = self._num_batches * self.n_categories // self._labels.num_groups
        of_label = np.empty_like(self._labels.members)
        of_label[self._labels.members] = np.repeat(
            turns // -(-self._labels.sizes // self.n_labels), self._labels.sizes
        )
        return of_label


class DistinctCategoryBalancedSampler(_OverCategories):
    """Batches as in `CategoryBalancedSampler`, but no label comes back before every label has been shown.

    A pass shows every label once, in ceil(labels / (n_categories * n_labels)) batches, an epoch is one pass
    or as many as `batches` needs; only the last places of a pass, where labels run out, repeat some. A pass
    lays the labels out in runs of n_labels, category after category in random order, and gives
    n_categories runs to each batch, so that the runs of a category lie in different batches. What a category
    has beyond full runs shares runs with other such rests, so a batch may show more than n_categories
    categories; a category with more runs than there are batches gives some batches two or more.
    """

    def _label_slots(self, rng: np.random.Generator, epoch: int) -> Ints:  # noqa: ARG002
        num_labels, wanted, pass_batches = self._images.num_groups, self.labels_per_batch, self._pass_batches
        passes = -(-self._num_batches // pass_batches)
        sizes, category = self._labels.sizes, self._labels.of_members()
        shape = (passes, num_labels)
        turn = rng.permuted(np.tile(np.arange(len(sizes)), (passes, 1)), axis=1)
        shuffled = np.argsort(turn[:, category] + rng.random(shape), axis=1)
        category = category[shuffled]
        new = np.diff(category, axis=1, prepend=-1) != 0
        first = np.maximum.accumulate(np.where(new, np.arange(num_labels), 0), axis=1)
        rest = np.arange(num_labels) - first >= sizes[category] // self.n_labels * self.n_labels
        runs_first = np.argsort(rest, axis=1, kind="stable")
        layout = np.full((passes, pass_batches * wanted), -1, dtype=np.int64)
        layout[:, :num_labels] = self._labels.members[np.take_along_axis(shuffled, runs_first, axis=1)]
        runs = layout.reshape(passes, self.n_categories, pass_batches, self.n_labels)
        in_batches = runs.transpose(0, 2, 1, 3).reshape(passes, pass_batches, wanted)
        order = rng.permuted(np.tile(np.arange(pass_batches), (passes, 1)), axis=1)
        batches = np.take_along_axis(in_batches, order[:, :, None], axis=1).reshape(-1, wanted)
        return completed(rng, batches[: self._num_batches], wanted, num_labels)


def _checked_labels(labels: ArrayLike) -> Ints:
    array = np.asarray(labels)
    if array.ndim != 1 or len(array) == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"labels must be a non-empty row of integers, got {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.int64, copy=False)


def _check_settings(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value!r}")


def _label_categories(images: Groups, categories: ArrayLike | None) -> NDArray[Any]:
    """The category of each label."""
    if categories is None:
        raise ValueError("categories are needed, one for each row, got None")
    array = np.asarray(categories)
    if array.shape != (len(images.members),):
        raise ValueError(
            f"categories must be of shape ({len(images.members)},) like labels, got {array.shape}"
        )
    if array.dtype.kind == "f":
        raise ValueError(f"categories must be integers or text, got {array.dtype}")
    of_label: NDArray[Any] = array[images.members[images.starts]]
    own = np.repeat(of_label, images.sizes)
    differs = array[images.members] != own
    if differs.any():
        several = np.unique(images.of_members()[differs])
        place = np.flatnonzero(differs)[np.argmin(images.members[differs])]
        row = images.members[place]
        raise ValueError(
            f"a label must lie in one category, but {len(several)} lie in several: row {row} "
            f"has {array[row]!s}, the first row of its label {own[place]!s}"
        )
    return of_label
