"""What the field knows of settings that are allowed and yet doubtful: each is a warning with its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from metricli.errors import Problem
from tests.specs.conftest import FACTS, yaml_of

WarningsOf = Callable[..., list[Problem]]


def said(problems: list[Problem]) -> list[tuple[str, str]]:
    assert all(problem.severity == "warning" for problem in problems)
    return [(problem.path, problem.message) for problem in problems]


def balanced(n_labels: int | str, n_instances: int | str) -> str:
    return f"{{name: balanced, n_labels: {n_labels}, n_instances: {n_instances}}}"


HARDEST_OF_ONE = (
    "loss.miner",
    "takes the hardest positive, and sampler.n_instances 2 leaves a single one, so a mislabelled image is in "
    "every triplet of its label; 4 is usual",
)


def test_hard_mining_wants_more_than_one_positive(warnings_of: WarningsOf) -> None:
    assert said(warnings_of(yaml_of(sampler=balanced(8, 2)))) == [HARDEST_OF_ONE]
    assert said(warnings_of(yaml_of(sampler=balanced(8, 3)))) == []
    assert said(warnings_of(yaml_of(sampler=balanced(8, "auto")))) == []
    easier = "{name: triplet, miner: all_triplets}"
    assert said(warnings_of(yaml_of(sampler=balanced(8, 2), loss=easier))) == []


def test_the_tip_stands_at_its_place_in_a_list_of_losses(warnings_of: WarningsOf) -> None:
    text = yaml_of(sampler=balanced(8, 2), loss="[{loss: arcface}, {loss: triplet}]")
    (problem,) = warnings_of(text)
    assert problem.path == "loss.1.loss.miner"


@pytest.mark.parametrize(
    ("sizes", "labels", "n_instances", "expected"),
    [
        ({2: 1, 5: 11}, ["a", "b", "c"], 4, "1 of 12 train labels cannot give 4 images ('a')"),
        ({2: 2, 4: 1, 5: 9}, ["a", "b", "c"], 4, "2 of 12 train labels cannot give 4 images ('a', 'b')"),
        ({3: 9, 5: 3}, ["a", "b", "c"], 4, "9 of 12 train labels cannot give 4 images ('a', 'b', 'c', ...)"),
        ({3: 9, 5: 3}, ["a", "b", "c"], 3, None),
        ({3: 9, 5: 3}, ["a", "b", "c"], "auto", None),
    ],
)
def test_labels_that_no_batch_can_fill(
    warnings_of: WarningsOf,
    sizes: dict[int, int],
    labels: list[str],
    n_instances: int | str,
    expected: str | None,
) -> None:
    facts = dataclasses.replace(FACTS, labels_of_size=sizes, smallest_labels=labels)
    text = yaml_of(sampler=balanced(8, n_instances))
    why = ": theirs are repeated in a batch, where copies are easy positives; lower it, or leave them out"
    found = said(warnings_of(text, facts=facts))
    assert found == ([] if expected is None else [("sampler.n_instances", expected + why)])
    assert said(warnings_of(text, facts=None)) == []


def test_a_batch_larger_than_the_table(warnings_of: WarningsOf) -> None:
    expected = (
        "sampler.n_labels",
        "a batch of 72 images, and the table has 60 train rows, so every batch repeats some; lower n_labels "
        "or n_instances",
    )
    assert said(warnings_of(yaml_of(sampler=balanced(12, 6)), facts=FACTS)) == [expected]
    assert said(warnings_of(yaml_of(sampler=balanced(12, 5)), facts=FACTS)) == []
    assert said(warnings_of(yaml_of(sampler=balanced("auto", 6)), facts=FACTS)) == []
    assert said(warnings_of(yaml_of(sampler=balanced(12, 6)))) == []


PRETRAINED = "{name: timm, model: resnet18, pretrained: true}"
TOO_HIGH = (
    "optimizer.lr",
    "0.02 is far too high for trained weights: a step moves each of them by about as much, and most are "
    "smaller; 1e-5 to 1e-3 is usual",
)


@pytest.mark.parametrize("name", ["adam", "adamw", "adamax", "nadam", "radam"])
def test_a_rate_that_overwrites_trained_weights(warnings_of: WarningsOf, name: str) -> None:
    high = f"{{name: {name}, lr: 0.02}}"
    assert said(warnings_of(yaml_of(extractor=PRETRAINED, optimizer=high))) == [TOO_HIGH]
    weights = "{name: timm, model: resnet18, weights: w.pth}"
    assert said(warnings_of(yaml_of(extractor=weights, optimizer=high))) == [TOO_HIGH]
    assert said(warnings_of(yaml_of(optimizer=high))) == []
    assert said(warnings_of(yaml_of(extractor=PRETRAINED, optimizer=f"{{name: {name}, lr: 0.01}}"))) == []


def test_other_optimizers_have_rates_of_other_sizes(warnings_of: WarningsOf) -> None:
    assert said(warnings_of(yaml_of(extractor=PRETRAINED, optimizer="{name: sgd, lr: 0.1}"))) == []


def test_an_average_that_the_run_is_too_short_for(warnings_of: WarningsOf) -> None:
    def found(ema: str, epochs: int, **facts: object) -> list[tuple[str, str]]:
        text = yaml_of(training=f"{{epochs: {epochs}, ema: {ema}}}")
        return said(warnings_of(text, **{"facts": FACTS, **facts}))

    what = (
        "after the 40 steps of this run 68% of the average are still the weights of the first step; "
        "set training.ema.warmup: true, or lower it"
    )
    assert found("{decay: 0.99}", 20) == [("training.ema.decay", what)]  # 0.99^39
    assert found("{decay: 0.99, warmup: true}", 20) == []
    assert found("{decay: 0.9}", 20) == []
    assert found("{decay: 0.99}", 200) == []
    assert found("{decay: 0.99}", 20, facts=None) == []
    assert found("null", 20) == []
