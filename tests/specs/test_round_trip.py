"""A spec survives being dumped and loaded; the JSON schema agrees with the loader."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from metricli.errors import SpecError
from metricli.specs.load import check_spec, load_spec, plugins_of
from metricli.specs.predict import PredictSpec
from metricli.specs.train import TrainSpec
from metricli.specs.validate import ValidateSpec
from tests.conftest import ROOT
from tests.plugins.builtin import BUILT_IN, settings_of
from tests.specs.conftest import yaml_of

EXAMPLES = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
MODELS = (TrainSpec, ValidateSpec, PredictSpec)
SCHEMAS = {model: model.model_json_schema() for model in MODELS}
TRAIN = Draft202012Validator(SCHEMAS[TrainSpec])

PLACES = {
    "extractors": lambda given: {"extractor": given},
    "transforms": lambda given: {"transforms": {"train": given, "eval": given}},
    "samplers": lambda given: {"sampler": given},
    "losses": lambda given: {"loss": given},
    "miners": lambda given: {"loss": {"name": "triplet", "miner": given}},
    "optimizers": lambda given: {"optimizer": given},
    "schedulers": lambda given: {"scheduler": given},
    "postprocessors": lambda given: {"validation": {"postprocessors": [given]}},
    "loggers": lambda given: {"loggers": [given, given]},
}
BASE = yaml.safe_load(yaml_of())


def spec_with(kind: str, name: str) -> dict[str, Any]:
    return copy.deepcopy({**BASE, **PLACES[kind](settings_of(kind, name))})


def assert_round_trip(spec: Any) -> None:
    dumped = spec.model_dump(mode="json")
    assert load_spec(dumped, type(spec)).spec == spec
    text = yaml.safe_dump(dumped)
    assert load_spec(yaml.safe_load(text), type(spec)).spec == spec
    assert json.loads(json.dumps(dumped)) == dumped


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_survives_and_has_no_problem(path):
    loaded = load_spec(path, TrainSpec)
    assert_round_trip(loaded.spec)
    assert [problem.message for problem in check_spec(loaded, None)] == []
    assert loaded.spec.data.table == str((path.parent / loaded.written["data"]["table"]).resolve())
    for model in (ValidateSpec, PredictSpec):
        assert_round_trip(load_spec(path, model).spec)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_dumped_to_a_file_is_the_same_spec(path, tmp_path):
    spec = load_spec(path, TrainSpec).spec
    resolved = tmp_path / "spec.resolved.yaml"
    resolved.write_text(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))
    assert load_spec(resolved, TrainSpec).spec == spec


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_plugin_survives_inside_a_spec(kind, name):
    spec = load_spec(spec_with(kind, name), TrainSpec).spec
    assert_round_trip(spec)
    given = settings_of(kind, name)
    found = [
        plugin.model_dump() for _, plugin in plugins_of(spec) if (plugin.kind, plugin.name) == (kind, name)
    ]
    assert found
    assert all({key: dumped[key] for key in given} == given for dumped in found)


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=lambda schema: schema["title"])
def test_schema_is_valid(schema):
    Draft202012Validator.check_schema(schema)


def described(schema: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    if isinstance(schema, list):
        for i, item in enumerate(schema):
            yield from described(item, f"{path}/{i}")
    if isinstance(schema, dict):
        for key, field in schema.get("properties", {}).items():
            if key != "name":
                yield f"{path}/{key}", "description" in field
        for key, item in schema.items():
            yield from described(item, f"{path}/{key}")


def test_every_field_of_the_schema_is_described():
    found = dict(described(SCHEMAS[TrainSpec]))
    assert len(found) > 100
    assert [path for path, has in found.items() if not has] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_schema_accepts_an_example_and_refuses_each_key_misspelt(path):
    written = load_spec(path, TrainSpec).written
    for model in MODELS:
        assert list(Draft202012Validator(SCHEMAS[model]).iter_errors(written)) == []
    misspelt = list(misspellings(written))
    assert len(misspelt) > 10
    for where, data in misspelt:
        assert not TRAIN.is_valid(data), where
        with pytest.raises(SpecError):
            load_spec(data, TrainSpec)


def misspellings(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The data once for each key, that key misspelt; free-form `model_args` apart."""
    for key, value in data.items():
        yield key, {(name + "x" if name == key else name): item for name, item in data.items()}
        if isinstance(value, dict) and key != "model_args":
            for where, changed in misspellings(value):
                yield f"{key}.{where}", {**data, key: changed}


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_schema_knows_every_plugin(kind, name):
    data = spec_with(kind, name)
    assert TRAIN.is_valid(data)
    assert TRAIN.is_valid(load_spec(data, TrainSpec).spec.model_dump(mode="json"))
    assert not TRAIN.is_valid({**BASE, **PLACES[kind]({**settings_of(kind, name), "nmae": 1})})


@pytest.mark.parametrize(
    "block",
    [
        {"loss": {"margin": 0.2}},
        {"loss": "tripplet"},
        {"loss": {"name": "tripplet"}},
        {"loss": {"name": "arcface", "miner": "hard_triplets"}},
        {"loss": None},
        {"sampler": "balanced"},
        {"scheduler": "step"},
        {"extractor": "timm"},
        {"validation": {"postprocessors": ["rerank"]}},
        {"training": {"epochs": "on"}},
        {"training": {"epochs": True}},
        {"training": {"epochs": 0}},
        {"optimizer": {"name": "adamw", "betas": [0.9]}},
    ],
    ids=str,
)
def test_schema_and_loader_refuse_the_same(block):
    data = {**BASE, **block}
    assert not TRAIN.is_valid(data)
    with pytest.raises(SpecError):
        load_spec(data, TrainSpec)


def test_paths_start_from_the_folder_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "specs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    path = Path("specs/a.yaml")
    path.write_text(
        yaml_of(
            data="{table: ../t.csv, root: /images}",
            extractor="{name: timm, model: resnet18, weights: ~/w.pth}",
        )
    )
    spec = load_spec(path, TrainSpec).spec
    assert (spec.data.table, spec.data.root) == (str(tmp_path / "t.csv"), "/images")
    assert spec.extractor.weights == "/home/me/w.pth"
    words = ["extractor.weights=hf_hub:me/w", "data.table=~nobody_here/t.csv", "data.root=null"]
    changed = load_spec(path, TrainSpec, words).spec
    assert (changed.extractor.weights, changed.data.root) == ("hf_hub:me/w", None)
    assert changed.data.table == str(tmp_path / "specs" / "~nobody_here" / "t.csv")
