"""The numbers of one batch, the signs of a collapse, how long they must last, and what is advised."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from metricli.runs.watch import MAX_ROWS, Streak, Watch, remedies_of, sign_of
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec
from tests.runs.test_watch import NUMBERS


@pytest.fixture
def watch(spec: dict[str, Any]) -> Watch:
    return Watch(load_spec(spec, TrainSpec).spec, nn.Identity(), ["a", "b", "c"])


def test_a_large_batch_is_looked_at_in_part(watch: Watch) -> None:
    rows = torch.randn(4 * MAX_ROWS, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(len(rows)) // 4
    whole = watch.look(1, rows, labels, {"loss": 1.0})
    assert whole == watch.look(2, rows[:MAX_ROWS], labels[:MAX_ROWS], {"loss": 1.0})
    assert set(whole) == {*NUMBERS, "positive_distance", "negative_distance"}


def test_embeddings_that_are_not_finite_are_passed_over(watch: Watch) -> None:
    rows = torch.full((4, 8), math.nan)
    assert watch.look(1, rows, torch.tensor([0, 0, 1, 1]), {"loss": 1.0}) == {}


def test_one_noisy_batch_is_no_collapse() -> None:
    bad = sign_of(_values(embedding_spread=0.001), margin=None, room=5, widest=0.5)
    assert bad is not None
    streak = Streak()
    assert [streak.add(bad, step) for step in (10, 20, 30, 40)] == [""] * 4
    assert streak.add(None, 50) == ""
    assert [streak.add(bad, step) for step in (60, 70, 80, 90)] == [""] * 4
    assert streak.add(bad, 100) == "from step 60 to step 100"


def test_looks_at_every_step_must_span_twenty() -> None:
    bad, streak = sign_of(_values(embedding_spread=0.001), margin=None, room=5, widest=0.5), Streak()
    assert [step for step in range(1, 25) if streak.add(bad, step)] == [21, 22, 23, 24]


def test_embeddings_on_their_way_out_of_a_bad_start_are_given_time() -> None:
    streak = Streak()
    for step in range(0, 300, 10):
        wide = 0.0001 * 1.12 ** (step / 10)
        sign = sign_of(_values(embedding_spread=wide), margin=None, room=5, widest=wide)
        assert sign is not None
        assert streak.add(sign, step) == ""


@pytest.mark.parametrize(
    ("values", "margin", "room", "expected"),
    [
        ({}, 0.2, 5, None),
        ({"embedding_spread": 0.04}, None, 5, "nearly equal"),
        ({"embedding_spread": 0.06}, None, 5, None),
        ({"embedding_spread": 0.0}, None, 0, None),
        ({"effective_rank": 1.2}, None, 5, "one line"),
        ({"effective_rank": 1.2}, None, 2, None),
        ({"positive_distance": 0.05, "negative_distance": 0.05, "loss": 0.2}, 0.2, 5, "half the margin"),
        ({"positive_distance": 0.05, "negative_distance": 0.05, "loss": 0.2}, None, 5, None),
        ({"positive_distance": 0.05, "negative_distance": 0.15, "loss": 0.1}, 0.2, 5, None),
        (
            {"positive_distance": 0.01, "negative_distance": 0.05, "loss": 0.4, "memory_loss": 0.2},
            0.2,
            5,
            "half",
        ),
    ],
)
def test_signs(values: dict[str, float], margin: float | None, room: int, expected: str | None) -> None:
    found = sign_of(_values(**values), margin=margin, room=room, widest=0.5)
    assert (found is None) == (expected is None)
    assert expected is None or (found is not None and expected in found.what)


def _values(**changed: float) -> dict[str, float]:
    sound = {"embedding_spread": 0.5, "embedding_norm": 1.0, "effective_rank": 6.0, "loss": 0.1}
    return sound | {"positive_distance": 0.5, "negative_distance": 0.8} | changed


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("scheduler=constant",), ["a lower optimizer.lr than 0.001", "scheduler.warmup_epochs: 1"]),
        (("scheduler=one_cycle",), ["a lower optimizer.lr than 0.001"]),
        (("scheduler={name: cosine, warmup_epochs: 1}",), ["a lower optimizer.lr than 0.001"]),
        (
            ("scheduler=one_cycle", "loss.miner=hard_triplets", "extractor.normalize=false"),
            [
                "an easier miner such as all_triplets",
                "the soft margin (margin: null)",
                "a lower optimizer.lr than 0.001",
            ],
        ),
        (
            (
                "scheduler=one_cycle",
                "loss={name: triplet, miner: hard_triplets, margin: null}",
                "extractor.normalize=false",
            ),
            ["an easier miner such as all_triplets", "a lower optimizer.lr than 0.001"],
        ),
        (("scheduler=one_cycle", "loss=arcface"), ["a lower optimizer.lr than 0.001"]),
    ],
)
def test_remedies_are_those_that_apply(
    spec: dict[str, Any], overrides: tuple[str, ...], expected: list[str]
) -> None:
    assert remedies_of(load_spec(spec, TrainSpec, overrides).spec) == expected
