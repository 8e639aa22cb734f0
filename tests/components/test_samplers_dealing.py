"""What the samplers are dealt from: orders that are stable, complete and all equally likely."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import factorial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, integer_dtypes, unsigned_integer_dtypes

from metricli.components.samplers import BalancedSampler
from metricli.core.dealing import in_turn, stable_order

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 64, 65, 130]


@given(arrays(integer_dtypes(endianness="=") | unsigned_integer_dtypes(endianness="="), st.integers(1, 60)))
def test_order_of_integers_is_that_of_a_stable_argsort(keys: Any) -> None:
    assert stable_order(keys).tolist() == np.argsort(keys, kind="stable").tolist()


@pytest.mark.parametrize("span", [3, 2**16, 2**17, 2**33, 2**62])
def test_order_of_many_keys(span: int) -> None:
    keys = np.random.default_rng(0).integers(-span, span, size=20_000)
    assert np.array_equal(stable_order(keys), np.argsort(keys, kind="stable"))
    assert np.array_equal(stable_order(np.sort(keys)), np.arange(20_000))


def test_order_of_text() -> None:
    keys = np.array(["b", "a", "b", "", "aa", "a"], dtype=object)
    assert stable_order(keys).tolist() == [3, 1, 5, 4, 0, 2]


def far_from_uniform(counts: list[int], kinds: int) -> float:
    """The chi-square statistic in standard deviations above its mean."""
    expected = sum(counts) / kinds
    value = sum((count - expected) ** 2 for count in counts) / expected + (kinds - len(counts)) * expected
    return float((value - (kinds - 1)) / np.sqrt(2 * (kinds - 1)))


@pytest.mark.parametrize("size", [3, 4, 5])
def test_every_order_of_the_images_of_a_label_is_equally_likely(size: int) -> None:
    labels = np.arange(3000 * size) // size
    sampler = BalancedSampler(labels=labels, n_labels=3000, n_instances=size, seed=7)
    epochs = []
    for epoch in range(10):
        hands = sampler.epoch_batches(epoch).reshape(-1, size)
        by_label = hands[np.argsort(labels[hands[:, 0]])] % size
        epochs.append([tuple(hand) for hand in by_label.tolist()])
    orders = Counter(order for epoch in epochs for order in epoch)
    assert far_from_uniform(list(orders.values()), factorial(size)) < 4
    between_labels = Counter(both for epoch in epochs for both in pairwise(epoch))
    between_epochs = Counter(both for one, two in pairwise(epochs) for both in zip(one, two, strict=True))
    if size < 5:
        for pairs in (between_labels, between_epochs):
            assert far_from_uniform(list(pairs.values()), factorial(size) ** 2) < 4


def test_every_order_of_a_pass_is_equally_likely() -> None:
    passes = in_turn(np.random.default_rng(0), 4, 4, 24_000)
    assert far_from_uniform(list(Counter(map(tuple, passes.tolist())).values()), 24) < 4


@pytest.mark.parametrize("n_instances", [1, 2, 4, 5])
def test_labels_of_every_size_show_all_their_images_in_a_round(n_instances: int) -> None:
    rows = np.random.default_rng(0).permutation(sum(SIZES))
    labels = np.repeat(np.arange(len(SIZES)), SIZES)[rows]
    sampler = BalancedSampler(labels=labels, n_labels=len(SIZES), n_instances=n_instances, seed=2)
    epochs = [sampler.epoch_batches(epoch).reshape(-1, n_instances) for epoch in range(2 * max(SIZES))]
    for label, size in enumerate(SIZES):
        hands = [hand for epoch in epochs for hand in epoch.tolist() if labels[hand[0]] == label]
        a_round = -(-size // n_instances)
        for first in range(0, len(hands) - a_round + 1, a_round):
            shown = [row for hand in hands[first : first + a_round] for row in hand][:size]
            assert set(labels[shown].tolist()) == {label}
            assert len(set(shown)) == min(size, a_round * n_instances)
