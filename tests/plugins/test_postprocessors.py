"""Each postprocessor's door leads to its component with every setting, and refuses lists that lose work."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metricli.components import postprocessors
from metricli.core.exclusion import NOTHING
from metricli.core.rankings import Rankings
from metricli.errors import SpecError
from metricli.plugins import postprocessors as doors
from metricli.specs.load import check_spec, load_spec
from metricli.specs.train import TrainSpec

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "adaptive_threshold": ("AdaptiveThreshold", {"n_std": 2.5, "top_n": 7}),
    "constant_threshold": ("ConstantThreshold", {"max_distance": 0.4, "top_n": 8}),
    "database_augmentation": ("DatabaseAugmentation", {"k": 3, "alpha": 0.5}),
    "k_reciprocal": ("KReciprocal", {"k1": 9, "k2": 4, "lambda_value": 0.2, "top_n": 33}),
    "pca_whitening": ("PCAWhitening", {"dim": 3, "eps": 0.01}),
    "query_expansion": ("QueryExpansion", {"k": 3, "alpha": 0.5}),
}


def spec_of(*listed: Any) -> Any:
    data = {
        "data": {"table": "df.csv"},
        "extractor": {"name": "timm", "model": "resnet18"},
        "sampler": {"name": "balanced", "n_labels": 8, "n_instances": 4},
        "loss": "triplet",
        "validation": {"postprocessors": list(listed)},
    }
    return load_spec(data, TrainSpec)


def problems(*listed: Any) -> list[str]:
    try:
        found = check_spec(spec_of(*listed), None)
    except SpecError as error:
        found = list(error.problems)
    return [f"{problem.path}: {problem.message}" for problem in found]


def one(settings: dict[str, Any]) -> Any:
    return spec_of(settings).spec.validation.postprocessors[0]


class Apart(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().sum(1)


@pytest.fixture
def program(tmp_path) -> str:
    path = tmp_path / "reranker.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Apart()).save(str(path))
    return str(path)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_reach_the_component(name):
    component, settings = SETTINGS[name]
    door = one({"name": name, **settings})
    built = door.build()
    assert type(built) is getattr(postprocessors, component)
    assert {key: getattr(built, key) for key in settings} == settings
    assert settings.keys() == type(door).model_fields.keys() - {"name", "fit"}
    assert built.notes == []


def test_pairwise_settings_reach_the_component(program):
    settings = {"top_n": 7, "inputs": "images", "batch_size": 9}
    built = one({"name": "pairwise", "program": program, **settings}).build()
    assert {key: getattr(built, key) for key in settings} == settings
    assert built.module(torch.ones(2, 3), torch.zeros(2, 3)).tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    "name", ["database_augmentation", "k_reciprocal", "pca_whitening", "query_expansion"]
)
def test_those_with_defaults_work_by_name(name):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 6, generator=generator)
    found = one(name).build()(Rankings(rows[:5], rows[5:], "cosine", NOTHING, 4))
    assert found.result.indices.shape[0] == 5
    assert bool((found.result.indices >= 0).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "constant_threshold", "max_distance": -0.1}, "max_distance  must be at least 0, got -0.1"),
        ({"name": "constant_threshold"}, "max_distance  required, but missing"),
        ({"name": "adaptive_threshold", "n_std": -1.0}, "n_std  must be at least 0, got -1.0"),
        ({"name": "k_reciprocal", "k1": 0}, "k1  must be at least 1, got 0"),
        ({"name": "k_reciprocal", "lambda_value": 2.0}, "lambda_value  must be at most 1, got 2.0"),
        ({"name": "k_reciprocal", "top_n": 0}, "top_n  must be at least 1, got 0"),
        ({"name": "query_expansion", "k": 0}, "k  must be at least 1, got 0"),
        ({"name": "query_expansion", "alpha": -1.0}, "alpha  must be at least 0, got -1.0"),
        ({"name": "pca_whitening", "dim": 0}, "dim  must be at least 1, got 0"),
        ({"name": "pca_whitening", "fit": "train"}, "fit  must be 'gallery', got 'train'"),
        ({"name": "pairwise"}, "program  required, but missing"),
        (
            {"name": "pairwise", "program": "a.pt", "inputs": "text"},
            "inputs  must be 'embeddings' or 'images'",
        ),
    ],
)
def test_limits(settings, message):
    with pytest.raises(SpecError) as caught:
        spec_of(settings)
    assert f"validation.postprocessors.0.{message}" in str(caught.value)


K_RECIPROCAL = "validation.postprocessors.1: k_reciprocal"
LOST = "searches the gallery anew with other embeddings, which loses what"
CUT = {"name": "constant_threshold", "max_distance": 0.5}
GAP = {"name": "adaptive_threshold", "n_std": 3.0}


def test_lists_that_work(program):
    pairwise = {"name": "pairwise", "program": program}
    assert (
        problems(
            "pca_whitening", "database_augmentation", "query_expansion", "k_reciprocal", pairwise, GAP, CUT
        )
        == []
    )
    assert problems(CUT, pairwise, CUT) == []


@pytest.mark.parametrize("cut", [CUT, GAP])
def test_k_reciprocal_of_a_cut_list(cut):
    name = cut["name"]
    assert problems(cut, "k_reciprocal") == [
        f"{K_RECIPROCAL} re-ranks whole rankings, not what {name!r} has made of it; "
        f"put k_reciprocal before {name}"
    ]


def test_k_reciprocal_loses_an_order():
    assert problems("k_reciprocal", "k_reciprocal") == [
        f"{K_RECIPROCAL} makes its own order from the distances, which loses the order that "
        "'k_reciprocal' has made of it; remove one of the two"
    ]


@pytest.mark.parametrize("name", ["database_augmentation", "pca_whitening", "query_expansion"])
@pytest.mark.parametrize("before", [CUT, GAP, {"name": "k_reciprocal"}])
def test_other_embeddings_lose_an_order(name, before):
    earlier = before["name"]
    assert problems(before, name) == [
        f"validation.postprocessors.1: {name} {LOST} {earlier!r} has made of it; put {name} before {earlier}"
    ]


def test_k2_above_k1():
    assert problems({"name": "k_reciprocal", "k1": 4, "k2": 5}) == [
        "validation.postprocessors.0.k2: must be at most k1, got k2 5 and k1 4"
    ]


def test_a_program_that_is_not_there(tmp_path):
    path = str(tmp_path / "none.pt")
    assert problems({"name": "pairwise", "program": path}) == [
        f"validation.postprocessors.0.program: no such file: {path}"
    ]


def test_a_program_stands_beside_the_spec(tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(
        "data: {table: df.csv}\nextractor: {name: timm, model: resnet18}\nloss: triplet\n"
        "sampler: {name: balanced, n_labels: 8, n_instances: 4}\n"
        "validation: {postprocessors: [{name: pairwise, program: models/a.pt}]}\n"
    )
    spec = load_spec(file, TrainSpec).spec
    assert spec.validation.postprocessors[0].program == str(tmp_path / "models" / "a.pt")


def test_every_built_in_says_what_it_does():
    effects = {door.effect for door in vars(doors).values() if hasattr(door, "effect")}
    assert effects == {"moves", "orders", "cuts"}
