"""What the doors to miners say of their settings."""

from __future__ import annotations

from typing import Any

import pytest

from tests.specs.conftest import yaml_of


def triplet(miner: str) -> str:
    return f"{{name: triplet, miner: {miner}}}"


@pytest.mark.parametrize(
    ("said", "kept"), [("2", [1, 2]), ("[1, 3]", [1, 3]), ("[3, 3]", [3, 3]), ("1", [1, 1])]
)
def test_ranks_are_a_number_or_the_first_and_the_last(load: Any, said: str, kept: list[int]) -> None:
    miner = load(yaml_of(loss=triplet(f"{{name: n_hard, negatives: {said}}}"))).spec.loss.miner
    assert (miner.positives, miner.negatives) == ([1, 1], kept)
    built = miner.build()
    assert (built.positives, built.negatives) == ((1, 1), tuple(kept))


@pytest.mark.parametrize("said", ["0", "[2, 1]", "[0, 2]", "[1]", "much", "true", "1.5"])
def test_ranks_that_are_none(refusal: Any, said: str) -> None:
    lines = refusal(yaml_of(loss=triplet(f"{{name: n_hard, positives: {said}}}"))).splitlines()
    assert len(lines) == 2
    assert (
        "loss.miner.positives  expected a number, 1 or more, or the first and the last rank, got " in lines[1]
    )


def test_more_positives_than_the_sampler_gives(warnings_of: Any, refusal: Any) -> None:
    four = {"sampler": "{name: balanced, n_labels: 2, n_instances: 4}"}
    assert warnings_of(yaml_of(loss=triplet("{name: n_hard, positives: 3, negatives: 9}"), **four)) == []
    held = "sampler.n_instances: 4 gives an anchor 3"
    [warned] = warnings_of(yaml_of(loss=triplet("{name: n_hard, positives: [3, 5]}"), **four))
    assert f"asks for positives up to rank 5, and {held}; all there are will be taken" in str(warned)
    refused = refusal(yaml_of(loss=triplet("{name: n_hard, positives: [4, 5]}"), **four))
    what = f"the positives start at rank 4, and {held}, so there is no triplet; lower it"
    assert f"loss.miner.positives  {what}" in refused


def test_cutoffs_out_of_order(refusal: Any) -> None:
    said = refusal(yaml_of(loss=triplet("{name: distance_weighted, cutoff: 1.5}")))
    assert "cutoff must be below nonzero_loss_cutoff, got 1.5 and 1.4" in said
