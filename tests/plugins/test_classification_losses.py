"""Doors to heads and proxies: each leads to its component with every setting, and what `check` says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from metricli.components import losses
from metricli.errors import SpecError
from metricli.plugins.losses.heads import least_scale
from metricli.specs.load import check_spec, load_spec
from metricli.specs.train import TrainSpec
from tests.specs.conftest import FACTS

SMOOTHED = {"label_smoothing": 0.1, "category_smoothing": 0.2, "mlp": [9, 7]}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "adacos": ("AdaCosLoss", SMOOTHED),
    "arcface": ("ArcFaceLoss", {**SMOOTHED, "scale": 20.0, "margin": 0.3}),
    "cosface": ("CosFaceLoss", {**SMOOTHED, "scale": 20.0, "margin": 0.3}),
    "normalized_softmax": ("NormalizedSoftmaxLoss", {**SMOOTHED, "temperature": 0.07}),
    "proxy_anchor": ("ProxyAnchorLoss", {"mlp": [9, 7], "alpha": 16.0, "margin": 0.2}),
    "proxy_nca": ("ProxyNCALoss", {**SMOOTHED, "temperature": 0.2}),
    "soft_triple": (
        "SoftTripleLoss",
        {"mlp": [9, 7], "centers_per_label": 4, "la": 10.0, "gamma": 0.2, "margin": 0.02, "tau": 0.3},
    ),
    "sub_center_arcface": (
        "SubCenterArcFaceLoss",
        {**SMOOTHED, "centers_per_label": 4, "scale": 20.0, "margin": 0.3},
    ),
}


BLOCKS: dict[str, Any] = {
    "data": {"table": "df.csv"},
    "extractor": {"name": "timm", "model": "resnet18"},
    "training": {"batch_size": 32},
}


def spec_of(loss: dict[str, Any]) -> Any:
    return load_spec({**BLOCKS, "loss": loss}, TrainSpec)


def problems(loss: dict[str, Any], **facts: Any) -> list[str]:
    known = dataclasses.replace(FACTS, **facts) if facts else None
    try:
        found = check_spec(spec_of(loss), known)
    except SpecError as error:
        found = list(error.problems)
    return [f"{problem.severity} {problem.path}: {problem.message}" for problem in found]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_door_hands_every_setting_over(name: str) -> None:
    component, settings = SETTINGS[name]
    door = spec_of({"name": name, **settings}).spec.loss
    assert set(type(door).model_fields) == {"name", *settings}
    built = door.build(dim=6, num_labels=4, label_to_category=[0, 0, 1, 1])
    assert type(built) is getattr(losses, component)
    assert (built.dim, built.num_labels, [layer.out_features for layer in built.mlp]) == (6, 4, [9, 7])
    for key in settings.keys() - {"mlp"}:
        assert getattr(built, key) == settings[key], key
    if "category_smoothing" in settings:
        assert built.label_to_category.tolist() == [0, 0, 1, 1]
        assert door.needs_categories
    plain = spec_of({"name": name}).spec.loss
    assert not plain.needs_categories
    assert not plain.build(dim=6, num_labels=4, label_to_category=None).mlp


@pytest.mark.parametrize("name", SETTINGS)
def test_defaults_and_usual_settings_are_no_problem(name: str) -> None:
    assert problems({"name": name}) == []
    assert problems({"name": name}, train_labels=5000) == []


@pytest.mark.parametrize("name", SETTINGS)
def test_judged_by_another_distance(name: str) -> None:
    extractor = {**BLOCKS["extractor"], "normalize": False}
    data = {**BLOCKS, "loss": name, "extractor": extractor, "validation": {"distance": "euclidean"}}
    (found,) = check_spec(load_spec(data, TrainSpec), None)
    assert (found.path, found.severity) == ("loss", "warning")
    assert found.message.startswith("the loss learns cosine distances and validation.distance is euclidean")


COSINE = "is not below 1; the margin is a difference of cosines,"
SPREAD = "even evenly spread centres cannot give each label a probability of 0.9;"
FLAT = "that the softmax stays flat;"

MESSAGES = {
    "degrees": (
        {"name": "sub_center_arcface", "margin": 28.6},
        {},
        "error loss.margin: 28.6 is more than a quarter turn (1.57); the margin is in radians, 0.5 is usual, "
        "and 28.6° are 0.499",
    ),
    "no cosine": (
        {"name": "cosface", "margin": 1},
        {},
        f"error loss.margin: 1 {COSINE} 0.35 is usual",
    ),
    "no cosine either": (
        {"name": "proxy_anchor", "margin": 5},
        {},
        f"error loss.margin: 5 {COSINE} 0.1 is usual",
    ),
    "nor here": (
        {"name": "soft_triple", "margin": 1.0},
        {},
        f"error loss.margin: 1 {COSINE} 0.01 is usual",
    ),
    "smoothed away": (
        {"name": "cosface", "label_smoothing": 0.6, "category_smoothing": 0.4},
        {},
        "error loss.category_smoothing: the two smoothings must leave a share to the label: 0.6 + 0.4 >= 1",
    ),
    "flat": (
        {"name": "cosface", "scale": 3},
        {"train_labels": 5000},
        f"warning loss.scale: 3 is so low {FLAT} 16 to 64 is usual",
    ),
    "too low for the labels": (
        {"name": "cosface", "scale": 10},
        {"train_labels": 5000},
        f"warning loss.scale: 10 is low for 5000 labels: below 10.8 {SPREAD} 16 to 64 is usual",
    ),
    "too low for the labels, of soft_triple": (
        {"name": "soft_triple", "la": 10},
        {"train_labels": 5000},
        f"warning loss.la: 10 is low for 5000 labels: below 10.8 {SPREAD} 20 is usual",
    ),
    "a scale for a temperature": (
        {"name": "normalized_softmax", "temperature": 20},
        {},
        f"warning loss.temperature: 20 is so high {FLAT} 0.05 is usual",
    ),
    "too high for the labels": (
        {"name": "normalized_softmax", "temperature": 0.1},
        {"train_labels": 5000},
        f"warning loss.temperature: 0.1 is high for 5000 labels: above 0.093 {SPREAD} 0.05 is usual",
    ),
    "too high for the proxies": (
        {"name": "proxy_nca", "temperature": 0.2},
        {"train_labels": 5000},
        f"warning loss.temperature: 0.2 is high for 5000 labels: above 0.186 {SPREAD} 0.11 is usual",
    ),
    "alpha of nothing": (
        {"name": "proxy_anchor", "alpha": 1},
        {},
        "warning loss.alpha: 1 is so low that hard and easy examples count alike; 32 is usual",
    ),
    "two labels": (
        {"name": "adacos"},
        {"train_labels": 2},
        "error loss: its scale, sqrt(2) * log(labels - 1), needs 3 labels or more, and the table has 2; "
        "normalized_softmax works with any number",
    ),
    "a line for a layer": (
        {"name": "arcface", "mlp": [64, 1]},
        {},
        "error loss.mlp.1: must be at least 2, got 1",
    ),
    "one centre": (
        {"name": "sub_center_arcface", "centers_per_label": 1},
        {},
        "error loss.centers_per_label: must be at least 2, got 1",
    ),
    "categories": (
        {"name": "adacos", "category_smoothing": 0.1},
        {"train_categories": 0},
        "error loss: the loss 'adacos' needs categories, and the table has none; add a 'category' column",
    ),
}


@pytest.mark.parametrize(("loss", "facts", "message"), MESSAGES.values(), ids=MESSAGES.keys())
def test_message(loss: dict[str, Any], facts: dict[str, Any], message: str) -> None:
    assert problems(loss, **facts) == [message]


@pytest.mark.parametrize("labels", [2, 12, 5000, 85_000])
def test_the_least_scale_gives_the_probability_at_evenly_spread_centres(labels: int) -> None:
    """Centres of a regular simplex have cosines of -1 / (C - 1)."""
    torch = pytest.importorskip("torch")
    cosines = torch.full((labels,), -1 / (labels - 1), dtype=torch.float64)
    cosines[0] = 1
    probability = (least_scale(labels) * cosines).softmax(0)[0]
    assert float(probability) == pytest.approx(0.9, rel=1e-9)
    assert least_scale(1) == 0
