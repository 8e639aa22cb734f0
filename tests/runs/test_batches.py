from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricli.components.dataset import Place
from metricli.runs.batches import EpochBatches, ShuffledBatches

sizes = st.integers(1, 60).flatmap(lambda rows: st.tuples(st.just(rows), st.integers(1, rows)))


@given(size=sizes, seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000))
def test_shuffling_shows_every_row_in_batches_of_one_size(
    size: tuple[int, int], seed: int, epoch: int
) -> None:
    rows, batch_size = size
    sampler = ShuffledBatches(rows, batch_size=batch_size, seed=seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) == int(np.ceil(rows / batch_size))
    assert all(len(batch) == batch_size for batch in batches)
    assert all(len(set(batch)) == batch_size for batch in batches), "no image twice in one batch"
    counts = Counter(row for batch in batches for row in batch)
    assert set(counts) == set(range(rows))
    assert max(counts.values()) <= 2
    assert list(sampler) == batches


def test_shuffling_follows_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        sampler = ShuffledBatches(50, batch_size=50, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(next(iter(sampler)))

    orders = {order(seed, epoch) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert order(3, 4) == order(3, 4)
    assert order(0, 0) != tuple(range(50))


def test_a_batch_above_the_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 5 images, and there are 4"):
        ShuffledBatches(4, batch_size=5, seed=0)


class Fixed:
    """Batches of given lengths over rising rows."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.epoch = lengths, -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[list[int]]:
        first = 100 * self.epoch
        for length in self.lengths:
            yield list(range(first, first + length))
            first += length


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    world=st.integers(1, 5),
    epoch=st.integers(0, 9),
    skip=st.integers(0, 6),
)
def test_the_slices_of_all_ranks_make_the_global_batch(
    lengths: list[int], world: int, epoch: int, skip: int
) -> None:
    ranks = []
    for rank in range(world):
        batches = EpochBatches(Fixed(lengths), rank=rank, world=world)
        batches.set_epoch(epoch, skip=skip)
        assert len(batches) == len(lengths)
        ranks.append(list(batches))
    expected, position = [], 0
    for length in lengths:
        expected.append([Place(100 * epoch + position + i, epoch, position + i) for i in range(length)])
        position += length
    for number, batch in enumerate(expected[skip:]):
        slices = [rank[number] for rank in ranks]
        assert [place for part in slices for place in part] == batch
        shares = [len(part) for part in slices]
        assert max(shares) - min(shares) <= 1, "no rank waits for another, and none is empty for B >= N"
    assert all(len(rank) == max(0, len(lengths) - skip) for rank in ranks)


def test_the_places_do_not_depend_on_what_was_skipped() -> None:
    batches = EpochBatches(ShuffledBatches(20, batch_size=6, seed=1))
    batches.set_epoch(3)
    whole = list(batches)
    assert [place.position for batch in whole for place in batch] == list(range(24))
    batches.set_epoch(3, skip=2)
    assert list(batches) == whole[2:]
    batches.set_epoch(4)
    assert len(list(batches)) == 4
    assert all(place.epoch == 4 for batch in batches for place in batch)
