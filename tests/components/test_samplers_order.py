from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

from metricli.components.samplers import BalancedSampler, CategoryBalancedSampler
from tests.components.test_samplers import CATEGORY_SAMPLERS, equal_table


@pytest.mark.parametrize("n_instances", [1, 2, 4])
def test_images_take_turns_over_epochs(n_instances: int) -> None:
    labels = np.arange(5 * 8) % 5
    sampler = BalancedSampler(labels=labels, n_labels=5, n_instances=n_instances, seed=3)
    a_round = 8 // n_instances
    for first in range(0, 4 * a_round, a_round):
        shown = np.concatenate(
            [sampler.epoch_batches(epoch).ravel() for epoch in range(first, first + a_round)]
        )
        assert sorted(shown.tolist()) == list(range(40))


def test_images_take_turns_also_where_a_label_comes_now_once_now_twice() -> None:
    labels = np.arange(18 * 8) % 18
    sampler = CategoryBalancedSampler(
        labels=labels, categories=labels >= 10, n_categories=2, n_labels=2, n_instances=2, seed=0
    )
    epochs = [sampler.epoch_batches(epoch) for epoch in range(40)]
    assert set(np.bincount(labels[epochs[0][:, ::2].ravel()], minlength=18)[10:].tolist()) == {1, 2}
    for first in range(0, 40, 4):
        assert len(np.unique(epochs[first : first + 4])) == len(labels), "four hands show all eight images"


def test_all_pairs_of_images_meet_and_all_images_are_reached() -> None:
    labels = np.repeat([0, 1], [7, 3])
    sampler = BalancedSampler(labels=labels, n_labels=2, n_instances=4, seed=0)
    pairs, images = set(), Counter[int]()
    for epoch in range(200):
        for rows in sampler.epoch_batches(epoch).reshape(-1, 4).tolist():
            images.update(rows)
            pairs |= {(a, b) for a in rows for b in rows if a < b}
    assert len(pairs) == 21 + 3
    assert min(images[i] for i in range(7)) > 0.7 * 200 * 4 / 7
    assert min(images[i] for i in (7, 8, 9)) > 0.85 * 200 * 4 / 3


def test_labels_meet_all_others() -> None:
    labels, categories = equal_table(4, 4, 1)
    together: dict[str, set[tuple[int, int]]] = {}
    for kind in CATEGORY_SAMPLERS:
        sampler = kind(
            labels=labels, categories=categories, n_categories=2, n_labels=2, n_instances=1, seed=0
        )
        found = together.setdefault(kind.__name__, set())
        for epoch in range(150):
            found |= {
                (a, b)
                for batch in sampler.epoch_batches(epoch).tolist()
                for a in batch
                for b in batch
                if a < b
            }
    assert all(len(found) == 120 for found in together.values())


def every_kind(seed: int = 0, **changes: Any) -> list[BalancedSampler]:
    labels, categories = equal_table(5, 7, 6)
    by_category: dict[str, Any] = {
        "labels": labels,
        "categories": categories,
        "n_categories": 2,
        "n_labels": 3,
        "n_instances": 4,
    }
    plain: dict[str, Any] = {"labels": labels, "n_labels": 8, "n_instances": 4}
    return [
        BalancedSampler(**{**plain, "seed": seed, **changes}),
        *(kind(**{**by_category, "seed": seed, **changes}) for kind in CATEGORY_SAMPLERS),
    ]


def digest() -> str:
    arrays = [sampler.epoch_batches(epoch) for sampler in every_kind(batches=20) for epoch in (0, 7)]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def test_order_is_a_function_of_seed_and_epoch() -> None:
    for sampler, twin, other in zip(every_kind(), every_kind(), every_kind(seed=1), strict=True):
        twin.set_epoch(1)
        list(twin)
        twin.set_epoch(0)
        first = list(sampler)
        assert first == list(sampler) == list(twin)
        assert first != list(other)
        sampler.set_epoch(1)
        assert first != list(sampler)
        assert len({sampler.epoch_batches(epoch).tobytes() for epoch in range(30)}) == 30


def test_another_process_gives_the_same_order() -> None:
    code = "from tests.components.test_samplers_order import digest; print(digest())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == digest()


def test_samplers_do_not_import_torch() -> None:
    code = "import sys, metricli.components.samplers; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )


def test_long_epochs_of_few_large_labels_stay_small() -> None:
    labels = np.arange(90_000) % 9
    sampler = BalancedSampler(labels=labels, n_labels=8, n_instances=4, seed=0, batches=2000)
    batches = sampler.epoch_batches(5)
    assert batches.shape == (2000, 32)
    assert len(np.unique(batches)) > 0.45 * 64_000
