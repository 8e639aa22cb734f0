"""Dealing the members of groups out evenly: epochs that need no memory of the epochs before.

A *pass* shows each item once in random order. A *round* of a group deals its members out in a random order,
a hand each time the group turns up; none comes back before all were dealt, but to complete the last hand.
Rounds can go on across epochs without a state: their order is a hash of (seed, number of the round, member).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Groups", "Ints", "completed", "in_turn"]

Ints = NDArray[np.int64]


class Groups:
    """Rows grouped by an integer or text key, dealt out in rounds."""

    def __init__(self, keys: NDArray[Any], seed: int, salt: int) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed!r}")
        self.members: Ints = np.argsort(keys, kind="stable")
        ordered = keys[self.members]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self.starts: Ints = np.flatnonzero(new)
        self.sizes: Ints = np.diff(np.append(self.starts, len(keys)))
        self.num_groups = len(self.starts)
        self.group_of: Ints = np.empty(len(keys), dtype=np.int64)
        self.group_of[self.members] = np.cumsum(new) - 1
        self._salt = np.random.default_rng([seed, salt]).integers(2**64, size=1, dtype=np.uint64)

    def deal(self, groups: Ints, width: int, epoch: int, turns: Ints, spare: int = 0) -> Ints:
        """Hands (S, width + spare) of members, one for each entry of `groups` (S,).

        `turns` (G,) is how many hands of a group go on where the epoch before left off: its hand number h
        of epoch e is hand e * turns + h of all time; hands beyond that come from rounds of the epoch's
        own. A round has ceil(size / width) hands; the spare members follow a hand in the round's order. A
        group shorter than the hand goes round and round.
        """
        by_group = np.argsort(groups, kind="stable")
        group = groups[by_group]
        new_group = np.concatenate([[True], group[1:] != group[:-1]])
        place = np.arange(len(group))
        hand = place - np.maximum.accumulate(np.where(new_group, place, 0))
        extra = hand >= turns[group]
        hand = np.where(extra, hand - turns[group], hand + epoch * turns[group])
        size = self.sizes[group]
        round_, hand = np.divmod(hand, -(-size // width))
        new = new_group.copy()
        new[1:] |= (round_[1:] != round_[:-1]) | (extra[1:] != extra[:-1])
        stream = np.where(extra, epoch + 1, 0)
        orders, starts = self._orders(group[new], round_[new], stream[new])
        offsets = (hand * width)[:, None] + np.arange(width + spare)
        dealt = np.empty((len(groups), width + spare), dtype=np.int64)
        dealt[by_group] = orders[starts[np.cumsum(new) - 1][:, None] + offsets % size[:, None]]
        return dealt

    def _orders(self, group: Ints, round_: Ints, stream: Ints) -> tuple[Ints, Ints]:
        """The members of each round in its order, one round after the other, and where each round starts."""
        sizes = self.sizes[group]
        starts = np.cumsum(sizes) - sizes
        row = np.arange(int(sizes.sum())) + np.repeat(self.starts[group] - starts, sizes)
        salts = _mixed(_mixed(self._salt + round_.astype(np.uint64)) + stream.astype(np.uint64))
        keys = _mixed(np.repeat(salts, sizes) + self.members[row].astype(np.uint64))
        round_bits, row_bits = len(group).bit_length(), len(self.members).bit_length()
        # Distinct keys, [round | hash | row]: every sorting algorithm, on every CPU, gives the same order.
        keys = (keys >> np.uint64(round_bits)) & ~np.uint64((1 << row_bits) - 1)
        keys |= np.repeat(np.arange(len(group), dtype=np.uint64) << np.uint64(64 - round_bits), sizes)
        keys |= row.astype(np.uint64)
        keys.sort()
        return self.members[(keys & np.uint64((1 << row_bits) - 1)).astype(np.int64)], starts


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Well-mixed 64 bits of each entry (splitmix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def in_turn(rng: np.random.Generator, num_items: int, width: int, num_batches: int) -> Ints:
    """Batches (num_batches, width) of different items that take turns, pass after pass without a gap.

    Where a batch spans two passes, the last items of the one must differ from the first of the other: until
    a pass ends with a batch, the ends of passes are cut from one order, and only what lies between is free.
    """
    ends = np.arange(-(-num_batches * width // num_items) + 1) * num_items % width
    place = np.arange(num_items)
    tail = place >= num_items - ends[1:, None]
    head = place < -ends[:-1, None] % width
    free = np.argsort(rng.random(tail.shape) + tail - head, axis=1, kind="stable")
    cycle = np.cumsum(ends[:-1] == 0) - 1
    order = rng.permuted(np.tile(place, (cycle[-1] + 1, 1)), axis=1)[cycle]
    slots = np.take_along_axis(order, free, axis=1).ravel()
    return slots[: num_batches * width].reshape(num_batches, width)


def completed(rng: np.random.Generator, candidates: Ints, wanted: int, num_items: int) -> Ints:
    """The first `wanted` different items of each row of candidates (B, M), -1 for none; then any others."""
    slots = candidates[:, :wanted].copy()
    short = np.flatnonzero((slots < 0).any(axis=1))
    if len(short):
        walk = rng.permutation(num_items)
        start = rng.integers(num_items, size=len(short))
        others = walk[(start[:, None] + np.arange(wanted)) % num_items]
        rows = np.concatenate([candidates[short], others], axis=1)
        by_item = np.argsort(rows, axis=1, kind="stable")
        ordered = np.take_along_axis(rows, by_item, axis=1)
        first = np.empty_like(rows, dtype=np.bool_)
        np.put_along_axis(first, by_item, (np.diff(ordered, axis=1, prepend=-1) != 0), axis=1)
        kept = first & (np.cumsum(first, axis=1) <= wanted)
        slots[short] = rows[kept].reshape(len(short), wanted)
    return slots
