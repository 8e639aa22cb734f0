"""Dealing the members of groups out evenly: epochs that need no memory of the epochs before.

A *pass* shows each item once in random order. A *round* of a group deals its members out in a random order,
a hand each time the group turns up; none comes back before all were dealt, but to complete the last hand.
Rounds can go on across epochs without a state: their order is a hash of (seed, number of the round, member).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Groups", "Ints", "completed", "in_turn", "stable_order"]

Ints = NDArray[np.int64]


class Groups:
    """Rows grouped by an integer or text key, dealt out in rounds."""

    def __init__(self, keys: NDArray[Any], seed: int, salt: int) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed!r}")
        self.members: Ints = stable_order(keys)
        ordered = keys[self.members]
        self.starts: Ints = np.append(0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
        self.sizes: Ints = np.diff(np.append(self.starts, len(keys)))
        self.num_groups = len(self.starts)
        self._salt = np.random.default_rng([seed, salt]).integers(2**64, size=1, dtype=np.uint64)

    def of_members(self) -> Ints:
        """The group of each entry of `members` (N,)."""
        return np.repeat(np.arange(self.num_groups), self.sizes)

    def deal(self, groups: Ints, width: int, epoch: int, turns: Ints, spare: int = 0) -> Ints:
        """Hands (S, width + spare) of members, one for each entry of `groups` (S,).

        `turns` (G,) is how many hands of a group go on where the epoch before left off: its hand number h
        of epoch e is hand e * turns + h of all time; hands beyond that come from rounds of the epoch's
        own. A round has ceil(size / width) hands; the spare members follow a hand in the round's order. A
        group shorter than the hand goes round and round.
        """
        by_group = stable_order(groups)
        group = groups[by_group]
        new_group = np.concatenate([[True], group[1:] != group[:-1]])
        place = np.arange(len(group))
        hand = place - np.maximum.accumulate(np.where(new_group, place, 0))
        extra = hand >= turns[group]
        hand = np.where(extra, hand - turns[group], hand + epoch * turns[group])
        round_, hand = np.divmod(hand, -(-self.sizes[group] // width))
        new = new_group.copy()
        new[1:] |= (round_[1:] != round_[:-1]) | (extra[1:] != extra[:-1])
        salts = self._round_salts(group[new], round_[new], np.where(extra[new], epoch + 1, 0))
        turn = np.cumsum(new) - 1
        dealt = np.empty((len(groups), width + spare), dtype=np.int64)
        bits = np.frexp(self.sizes[group] - 1)[1]  # the bit length of size - 1
        for some in (np.flatnonzero(bits == length) for length in np.unique(bits)):
            ours, first = group[some], new[some]
            orders = _orders(salts[turn[some[first]]], self.sizes[ours[first]])
            offsets = (hand[some] * width)[:, None] + np.arange(width + spare)
            offsets %= self.sizes[ours, None]
            offsets += (np.cumsum(first) - 1)[:, None] * orders.shape[1]
            dealt[by_group[some]] = self.members[self.starts[ours, None] + orders.ravel()[offsets]]
        return dealt

    def _round_salts(self, group: Ints, round_: Ints, stream: Ints) -> NDArray[np.uint64]:
        salts = _mixed(_mixed(self._salt + round_.astype(np.uint64)) + stream.astype(np.uint64))
        return _mixed(salts + group.astype(np.uint64))


def _orders(salts: NDArray[np.uint64], sizes: Ints) -> Ints:
    """Random orders (R, width) of 0..size - 1, one for each salt; what follows them is of no use.

    The width is the largest of the `sizes` (R,).
    """
    places = np.arange(sizes.max(), dtype=np.uint64)
    last = np.uint64((1 << int(sizes.max()).bit_length()) - 1)
    # Distinct keys, [hash | place]: every sorting algorithm, on every CPU, gives the same order.
    keys = _mixed(salts[:, None] + places)
    keys &= ~last
    keys |= places
    keys[places >= sizes[:, None].astype(np.uint64)] = ~np.uint64(0)
    keys.sort(axis=1)
    keys &= last
    return keys.view(np.int64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Well-mixed 64 bits of each entry (splitmix64, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def stable_order(keys: NDArray[Any]) -> Ints:
    """`np.argsort(keys, kind="stable")`, for integers by their 16-bit digits, the lowest first.

    numpy sorts 16-bit integers by counting; a million keys below 2^32 take a quarter of the time.
    """
    if keys.dtype.kind not in "iu" or len(keys) == 0:
        return np.argsort(keys, kind="stable")
    if (keys[1:] >= keys[:-1]).all():
        return np.arange(len(keys))
    rest = keys.astype(np.uint64) - keys.min().astype(np.uint64)
    order = np.argsort(rest.astype(np.uint16), kind="stable")
    for shift in range(16, int(rest.max()).bit_length(), 16):
        digits = (rest >> np.uint64(shift)).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order


def in_turn(rng: np.random.Generator, num_items: int, width: int, num_batches: int) -> Ints:
    """Batches (num_batches, width) of different items that take turns, pass after pass without a gap.

    Where a batch spans two passes, the last items of the one must differ from the first of the other: until
    a pass ends with a batch, the ends of passes are cut from one order, and only what lies between is free.
    """
    ends = np.arange(-(-num_batches * width // num_items) + 1) * num_items % width
    place = np.arange(num_items)
    tail = place >= num_items - ends[1:, None]
    head = place < -ends[:-1, None] % width
    passes = np.arange(len(tail))[:, None]
    keys = rng.integers(2**32, size=tail.shape) + ((passes * 3 + 1 + tail - head) << 32)
    free = stable_order(keys.ravel()).reshape(tail.shape) - passes * num_items
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
