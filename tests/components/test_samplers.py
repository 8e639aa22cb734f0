from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricli.components.samplers import (
    BalancedSampler,
    CategoryBalancedSampler,
    DistinctCategoryBalancedSampler,
)

CATEGORY_SAMPLERS = [CategoryBalancedSampler, DistinctCategoryBalancedSampler]


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def batches_of_labels(sampler: BalancedSampler, labels: np.ndarray, n_instances: int) -> list[list[int]]:
    """The labels of each batch, after checking all that every batch promises."""
    shown = []
    batches = list(sampler)
    assert len(batches) == len(sampler)
    sizes = Counter(labels.tolist())
    for batch in batches:
        assert len(batch) == sampler.batch_size
        assert all(type(position) is int for position in batch)
        of_batch = labels[batch].reshape(-1, n_instances)
        assert (of_batch == of_batch[:, :1]).all()
        assert len(set(of_batch[:, 0].tolist())) == len(of_batch)
        for label, rows in zip(of_batch[:, 0].tolist(), np.reshape(batch, (-1, n_instances)), strict=True):
            copies = Counter(rows.tolist())
            assert len(copies) == min(sizes[label], n_instances)
            assert max(copies.values()) == ceil(n_instances, sizes[label])
            assert min(copies.values()) >= n_instances // sizes[label]
        shown.append(of_batch[:, 0].tolist())
    return shown


def assert_in_turn(shown: list[int], count: int) -> None:
    """Each `count` in a row, from the first on, are all different."""
    for first in range(0, len(shown), count):
        a_pass = shown[first : first + count]
        assert len(set(a_pass)) == len(a_pass)


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Rows of labels and of their categories, in mixed order and with gaps in the numbering."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=25))
    names = draw(st.lists(st.integers(-50, 10**9), min_size=len(sizes), max_size=len(sizes), unique=True))
    of_label = draw(st.lists(st.integers(0, 4), min_size=len(sizes), max_size=len(sizes)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    order = rng.permutation(sum(sizes))
    return np.repeat(names, sizes)[order], np.repeat(of_label, sizes)[order]


@settings(max_examples=60, deadline=None)
@given(tables(), st.data())
def test_balanced(table: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
    labels, _ = table
    num_labels = len(np.unique(labels))
    n_labels, n_instances = data.draw(st.integers(1, num_labels)), data.draw(st.integers(1, 5))
    batches = data.draw(st.none() | st.integers(1, 30))
    sampler = BalancedSampler(
        labels=labels,
        n_labels=n_labels,
        n_instances=n_instances,
        seed=data.draw(st.integers(0, 5)),
        batches=batches,
    )
    sampler.set_epoch(data.draw(st.integers(0, 3)))
    assert len(sampler) == max(ceil(num_labels, n_labels), batches or 0)
    shown = batches_of_labels(sampler, labels, n_instances)
    assert_in_turn([label for batch in shown for label in batch], num_labels)


@pytest.mark.parametrize("kind", CATEGORY_SAMPLERS)
@settings(max_examples=150, deadline=None)
@given(table=tables(), data=st.data())
def test_category_samplers(kind: Any, table: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
    labels, categories = table
    category_of = dict(zip(labels.tolist(), categories.tolist(), strict=True))
    sizes = Counter(category_of.values())
    n_categories = data.draw(st.integers(1, len(sizes)))
    n_labels = data.draw(st.integers(1, len(category_of) // n_categories))
    n_instances, batches = data.draw(st.integers(1, 4)), data.draw(st.none() | st.integers(1, 30))
    sampler = kind(
        labels=labels,
        categories=categories,
        n_categories=n_categories,
        n_labels=n_labels,
        n_instances=n_instances,
        seed=data.draw(st.integers(0, 5)),
        batches=batches,
    )
    sampler.set_epoch(data.draw(st.integers(0, 3)))
    natural = ceil(len(category_of), n_categories * n_labels)
    if kind is CategoryBalancedSampler:
        natural = ceil(ceil(max(sizes.values()), n_labels) * len(sizes), n_categories)
    assert len(sampler) == max(natural, batches or 0)
    shown = batches_of_labels(sampler, labels, n_instances)
    for batch in shown:
        of_batch = Counter(category_of[label] for label in batch)
        if kind is CategoryBalancedSampler:
            full = [c for c, count in of_batch.items() if count >= min(n_labels, sizes[c])]
            assert len(full) >= n_categories
            if min(sizes.values()) >= n_labels:
                assert sorted(of_batch.values()) == [n_labels] * n_categories
    if kind is CategoryBalancedSampler and min(sizes.values()) >= n_labels:
        for category, size in sizes.items():
            own = [label for batch in shown for label in batch if category_of[label] == category]
            a_round = ceil(size, n_labels) * n_labels
            for first in range(0, len(own) - a_round + 1, a_round):
                assert len(set(own[first : first + size])) == size
        assert_in_turn([category_of[label] for batch in shown for label in batch[::n_labels]], len(sizes))
    if kind is DistinctCategoryBalancedSampler:
        for first in range(0, len(shown) - natural + 1, natural):
            counts = Counter(label for batch in shown[first : first + natural] for label in batch)
            assert set(counts) == set(category_of)
            assert sum(counts.values()) - len(counts) == natural * n_categories * n_labels - len(category_of)


@pytest.mark.parametrize("kind", [BalancedSampler, *CATEGORY_SAMPLERS])
@settings(max_examples=100, deadline=None)
@given(table=tables(), data=st.data())
def test_every_epoch_shows_every_label(
    kind: Any, table: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    labels, categories = table
    n_categories = 1 if kind is BalancedSampler else data.draw(st.integers(1, len(np.unique(categories))))
    grouping = {} if kind is BalancedSampler else {"categories": categories, "n_categories": n_categories}
    sampler = kind(
        labels=labels,
        n_labels=data.draw(st.integers(1, len(np.unique(labels)) // n_categories)),
        n_instances=data.draw(st.integers(1, 3)),
        seed=data.draw(st.integers(0, 5)),
        batches=data.draw(st.none() | st.integers(1, 15)),
        **grouping,
    )
    for epoch in range(4):
        assert np.array_equal(np.unique(labels[sampler.epoch_batches(epoch)]), np.unique(labels))


def equal_table(num_categories: int, labels_each: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(num_categories * labels_each * images) // images
    return labels, labels // labels_each


def test_distinct_gives_exact_batches_and_no_repeat_where_sizes_divide() -> None:
    labels, categories = equal_table(6, 8, 3)
    sampler = DistinctCategoryBalancedSampler(
        labels=labels, categories=categories, n_categories=3, n_labels=4, n_instances=2, seed=1
    )
    shown = batches_of_labels(sampler, labels, 2)
    assert sorted(label for batch in shown for label in batch) == list(range(48))
    assert all(sorted(Counter(label // 8 for label in batch).values()) == [4, 4, 4] for batch in shown)


def test_a_short_category_gives_all_it_has_and_the_batch_is_completed_from_its_other_category() -> None:
    labels, of_label = np.arange(30) // 3, np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
    sampler = CategoryBalancedSampler(
        labels=labels,
        categories=of_label[labels],
        n_categories=2,
        n_labels=4,
        n_instances=2,
        seed=0,
        batches=20,
    )
    for batch in batches_of_labels(sampler, labels, 2):
        assert Counter(of_label[batch].tolist()) == {0: 2, 1: 6}


def test_small_categories_come_as_often_as_large_ones() -> None:
    of_label = np.repeat([0, 1, 2, 3], [2, 8, 40, 4])
    sampler = CategoryBalancedSampler(
        labels=np.arange(54),
        categories=of_label,
        n_categories=2,
        n_labels=2,
        n_instances=1,
        seed=0,
    )
    assert len(sampler) == 20 * 4 // 2
    counts = Counter(of_label[label] for batch in sampler for label in batch)
    assert counts == {0: 40, 1: 40, 2: 40, 3: 40}
    for epoch in range(3):
        shown = Counter(sampler.epoch_batches(epoch).ravel().tolist())
        assert {of_label[label]: count for label, count in shown.items()} == {0: 20, 1: 5, 2: 1, 3: 10}
        assert set(shown) == set(range(54))


def test_categories_meet_all_others_also_where_batches_span_passes() -> None:
    labels = np.arange(12 * 30)
    sampler = CategoryBalancedSampler(
        labels=labels, categories=labels % 12, n_categories=8, n_labels=1, n_instances=1, seed=0
    )
    batches = sampler.epoch_batches(0) % 12
    assert len(batches) == 45
    assert len({frozenset(batch) for batch in batches.tolist()}) > 30
    assert set(Counter(batches.ravel().tolist()).values()) == {30}


def test_text_categories_and_lists_are_taken() -> None:
    for kind in CATEGORY_SAMPLERS:
        sampler = kind(
            labels=[3, 3, 5, 5, 9, 9],
            categories=np.array(["cat", "cat", "dog", "dog", "dog", "dog"], dtype=object),
            n_categories=2,
            n_labels=1,
            n_instances=2,
            seed=0,
        )
        shown = batches_of_labels(sampler, np.array([3, 3, 5, 5, 9, 9]), 2)
        assert len(shown) == 2
        assert all(3 in batch for batch in shown) or kind is DistinctCategoryBalancedSampler


def test_settings_that_make_no_sense() -> None:
    labels, categories = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 0, 0, 1])
    plain: dict[str, Any] = {"labels": labels, "n_labels": 2, "n_instances": 2, "seed": 0}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"n_labels": 4}, "a batch needs 4 different labels, there are 3"),
        ({"n_labels": 0}, "n_labels must be 1 or more, got 0"),
        ({"n_instances": 0}, "n_instances must be 1 or more, got 0"),
        ({"batches": 0}, "batches must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"labels": []}, "labels must be a non-empty row of integers, got float64 of shape (0,)"),
        (
            {"labels": labels[:, None]},
            "labels must be a non-empty row of integers, got int64 of shape (5, 1)",
        ),
        ({"labels": labels * 0.5}, "labels must be a non-empty row of integers, got float64 of shape (5,)"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError) as caught:
            BalancedSampler(**{**plain, **changes})
        assert str(caught.value) == message
    grouped: dict[str, Any] = {**plain, "categories": categories, "n_categories": 1}
    cases = [
        ({"categories": None}, "categories are needed, one for each row, got None"),
        ({"categories": [0]}, "categories must be of shape (5,) like labels, got (1,)"),
        ({"categories": categories / 2}, "categories must be integers or text, got float64"),
        ({"n_categories": 3, "n_labels": 1}, "n_categories=3 exceeds the 2 categories"),
        ({"n_categories": 2}, "a batch needs 4 different labels, there are 3"),
        ({"n_categories": 0}, "n_categories must be 1 or more, got 0"),
        (
            {"categories": [0, 0, 0, 1, 1]},
            "a label must lie in one category, but 1 lie in several: "
            "row 3 has 1, the first row of its label 0",
        ),
    ]
    for changes, message in cases:
        for kind in CATEGORY_SAMPLERS:
            with pytest.raises(ValueError) as caught:
                kind(**{**grouped, **changes})
            assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"^epoch must be 0 or more, got -1$"):
        BalancedSampler(**plain).set_epoch(-1)
