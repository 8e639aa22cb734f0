"""What the doors to ranking losses say of their settings, whole sentences."""

from __future__ import annotations

from typing import Any

import pytest

from metricli.testing import check_plugin
from tests.specs.conftest import FACTS, load, refusal, warnings_of, write, yaml_of  # noqa: F401  (fixtures)

RAW = "{name: timm, model: resnet18, normalize: false}"
EUCLIDEAN = "{distance: euclidean}"


def of_loss(**settings: str) -> str:
    pairs = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return yaml_of(loss=f"{{{pairs}}}")


DOUBTFUL = {
    "smooth_ap, flat": (
        of_loss(name="smooth_ap", temperature="0.5"),
        ("loss.temperature", "0.5 is so high that all soft ranks are alike; 0.01 is usual"),
    ),
    "smooth_ap, steep": (
        of_loss(name="smooth_ap", temperature="1e-4"),
        ("loss.temperature", "0.0001 is so low that most gradients vanish; 0.01 is usual"),
    ),
    "recall_at_k, flat": (
        of_loss(name="recall_at_k", rank_temperature="1"),
        ("loss.rank_temperature", "1 is so high that all soft ranks are alike; 0.01 is usual"),
    ),
    "recall_at_k, step": (
        of_loss(name="recall_at_k", k_temperature="0.01"),
        ("loss.k_temperature", "0.01 is so low that only ranks next to k have a gradient; 1 is usual"),
    ),
    "recall_at_k, deep": (
        of_loss(name="recall_at_k", k="[1, 31]"),
        (
            "loss.k",
            "the 31 other images of a batch are all among the nearest 31, which leaves little to learn "
            "there; lower it or enlarge the batch",
        ),
    ),
    "recall_at_k, deep for categories": (
        yaml_of(
            loss="recall_at_k",
            sampler="{name: category_balanced, n_labels: 2, n_categories: 2, n_instances: 2}",
        ),
        (
            "loss.k",
            "the 7 other images of a batch are all among the nearest 16, which leaves little to learn "
            "there; lower it or enlarge the batch",
        ),
    ),
    "surrogate_precision, steep": (
        of_loss(name="surrogate_precision", rank_temperature="1e-4"),
        ("loss.rank_temperature", "0.0001 is so low that most gradients vanish; 0.01 is usual"),
    ),
    "surrogate_precision, step": (
        of_loss(name="surrogate_precision", k_temperature="0.05"),
        ("loss.k_temperature", "0.05 is so low that only ranks next to k have a gradient; 1 is usual"),
    ),
    "surrogate_precision, deep": (
        of_loss(name="surrogate_precision", k="40"),
        (
            "loss.k",
            "the 31 other images of a batch are all among the nearest 40, which leaves little to learn "
            "there; lower it or enlarge the batch",
        ),
    ),
    "surrogate_precision, judged by another": (
        yaml_of(extractor=RAW, loss="{name: surrogate_precision, distance: cosine}", validation=EUCLIDEAN),
        (
            "loss.distance",
            "the loss learns cosine distances and validation.distance is euclidean, which rank embeddings "
            "that are not normalised differently; set validation.distance: cosine",
        ),
    ),
    "fast_ap, narrow": (
        of_loss(name="fast_ap", bins="200"),
        (
            "loss.bins",
            "200 bins are so narrow that few images of a batch share one, and only those that do are "
            "compared; 10 to 25 are usual",
        ),
    ),
}


@pytest.mark.parametrize(("text", "expected"), DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_a_doubtful_setting_is_a_warning(warnings_of: Any, text: str, expected: tuple[str, str]) -> None:  # noqa: F811
    found = warnings_of(text, facts=FACTS)
    assert [(p.path, p.message, p.severity) for p in found] == [(*expected, "warning")]


@pytest.mark.parametrize("name", ["smooth_ap", "recall_at_k", "fast_ap"])
def test_judged_by_another_distance(warnings_of: Any, name: str) -> None:  # noqa: F811
    found = warnings_of(yaml_of(extractor=RAW, loss=name, validation=EUCLIDEAN), facts=FACTS)
    assert [(p.path, p.message) for p in found] == [
        (
            "loss",
            "the loss learns cosine distances and validation.distance is euclidean, which rank embeddings "
            "that are not normalised differently; set validation.distance: cosine",
        )
    ]


FINE = [
    *(of_loss(name=name) for name in ("smooth_ap", "recall_at_k", "surrogate_precision", "fast_ap")),
    of_loss(name="recall_at_k", k="[30]"),
    yaml_of(extractor=RAW, loss="{name: surrogate_precision, rank_temperature: 5}", validation=EUCLIDEAN),
]


@pytest.mark.parametrize("text", FINE)
def test_usual_settings_pass_without_a_word(warnings_of: Any, text: str) -> None:  # noqa: F811
    assert warnings_of(text, facts=FACTS) == []


REFUSED = {
    "a depth twice": (
        of_loss(name="recall_at_k", k="[4, 1, 4]"),
        "line 4  loss.k  names 4 twice; name each depth once",
    ),
    "no depth": (
        of_loss(name="recall_at_k", k="[]"),
        "line 4  loss.k  expected a list of at least 1 items, got []",
    ),
    "a depth of 0": (of_loss(name="recall_at_k", k="[0]"), "line 4  loss.k.0  must be at least 1, got 0"),
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_a_mistake_is_refused(refusal: Any, text: str, expected: str) -> None:  # noqa: F811
    assert refusal(text) == "1 problem in train.yaml\n  " + expected


@pytest.mark.parametrize("name", ["smooth_ap", "recall_at_k", "surrogate_precision", "fast_ap"])
def test_positives_must_be_in_the_batch(refusal: Any, name: str) -> None:  # noqa: F811
    found = refusal(yaml_of(loss=name, sampler="{name: balanced, n_labels: 8, n_instances: 1}"))
    assert (
        f"the loss '{name}' compares images of one label, so sampler.n_instances must be at least 2" in found
    )


def test_settings_reach_the_loss() -> None:
    built = {
        "smooth_ap": ({"temperature": 0.02}, "temperature=0.02"),
        "recall_at_k": (
            {"k": [1, 3], "k_temperature": 0.5, "rank_temperature": 0.02},
            "k=(1, 3), k_temperature=0.5, rank_temperature=0.02",
        ),
        "surrogate_precision": (
            {"k": 3, "k_temperature": 0.5, "rank_temperature": 0.02, "distance": "cosine"},
            "k=3, k_temperature=0.5, rank_temperature=0.02, distance='cosine'",
        ),
        "fast_ap": ({"bins": 12}, "bins=12"),
    }
    for name, (settings, shown) in built.items():
        plugin: Any = check_plugin("losses", name, settings)
        assert plugin.build(dim=8, num_labels=4, label_to_category=None).extra_repr() == shown
