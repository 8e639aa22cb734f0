"""`key.sub=value` words: what each does to the data, and the words of a refusal."""

from __future__ import annotations

import copy

import pytest
import yaml

from metricli.specs.document import Document, apply_override
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec
from tests.specs.conftest import BLOCKS, yaml_of

DATA = {
    "name": "products",
    "seed": 1,
    "sampler": None,
    "loss": {"name": "triplet", "margin": 0.2, "miner": "hard_triplets"},
    "scheduler": "cosine",
    "loggers": ["tensorboard", {"name": "wandb", "project": "p"}],
}


def overridden(*words: str) -> dict:
    document = Document("t", copy.deepcopy(DATA))
    for word in words:
        apply_override(document, word)
    assert document.problems == []
    return document.data


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("seed=7", {"seed": 7}),
        ("name=other", {"name": "other"}),
        ("loss.margin=0.5", {"loss": {"name": "triplet", "margin": 0.5, "miner": "hard_triplets"}}),
        ("loss.name=arcface", {"loss": {"name": "arcface"}}),
        ("loss.name=triplet", {}),
        ("loss={name: triplet, margin: 1e-1}", {"loss": {"name": "triplet", "margin": 0.1}}),
        ("loss=arcface", {"loss": "arcface"}),
        (
            "loss.miner.distance=cosine",
            {
                "loss": {
                    "name": "triplet",
                    "margin": 0.2,
                    "miner": {"name": "hard_triplets", "distance": "cosine"},
                }
            },
        ),
        ("scheduler.warmup_epochs=1", {"scheduler": {"name": "cosine", "warmup_epochs": 1}}),
        ("scheduler.name=step", {"scheduler": {"name": "step"}}),
        ("sampler.name=balanced", {"sampler": {"name": "balanced"}}),
        ("training.epochs=3", {"training": {"epochs": 3}}),
        ("a.b.c=1", {"a": {"b": {"c": 1}}}),
        ("loggers.0=csv", {"loggers": ["csv", {"name": "wandb", "project": "p"}]}),
        ("loggers.0.dir=x", {"loggers": [{"name": "tensorboard", "dir": "x"}, DATA["loggers"][1]]}),
        ("loggers.1.project=q", {"loggers": ["tensorboard", {"name": "wandb", "project": "q"}]}),
        ("loggers.1.name=mlflow", {"loggers": ["tensorboard", {"name": "mlflow"}]}),
        ("loggers=[]", {"loggers": []}),
    ],
)
def test_place(word, change):
    assert overridden(word) == {**DATA, **change}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("1e-4", 1e-4),
        ("010", 10),
        ("on", "on"),
        ("true", True),
        ('"5"', "5"),
        ("'true'", "true"),
        ("'a=b'", "a=b"),
        ("a=b", "a=b"),
        (" 3 ", 3),
        ("two words", "two words"),
        ("[1, 5]", [1, 5]),
        ("{cmc: [1], map_r: false}", {"cmc": [1], "map_r": False}),
        ("/data/a,b.csv", "/data/a,b.csv"),
        ("C:\\x.csv", "C:\\x.csv"),
        ("x # y", "x"),
    ],
)
def test_value(text, value):
    found = overridden(f"seed={text}")["seed"]
    assert (type(found), found) == (type(value), value)


def test_spaces_around_the_key():
    assert overridden(" loss . margin = 0.5") == overridden("loss.margin=0.5")


def test_words_apply_in_order():
    assert overridden("loss.name=arcface", "loss.scale=30", "loss.scale=32")["loss"] == {
        "name": "arcface",
        "scale": 32,
    }


def test_into_an_empty_spec():
    document = Document("t", None)
    apply_override(document, "data.table=x.csv")
    assert document.data == {"data": {"table": "x.csv"}}


REFUSED = {
    "no sign": ("loss", "loss", "expected key=value or key.sub=value, got 'loss'"),
    "no key": ("=3", "", "expected key=value or key.sub=value, got '=3'"),
    "no value": ("seed=", "seed", "expected a value, got nothing; write seed=null for null"),
    "a blank value": (
        "loss . margin= ",
        "loss.margin",
        "expected a value, got nothing; write loss.margin=null for null",
    ),
    "empty step": (
        "loss..margin=3",
        "loss..margin",
        "expected key=value or key.sub=value, got 'loss..margin=3'",
    ),
    "through a number": ("seed.x=3", "seed.x", "'seed' is 1, which has no keys"),
    "beyond a list": (
        "loggers.2=csv",
        "loggers.2",
        "'loggers' is a list of 2, which has no item '2'; they count from 0",
    ),
    "word in a list": (
        "loggers.csv=1",
        "loggers.csv",
        "'loggers' is a list of 2, which has no item 'csv'; they count from 0",
    ),
    "superscript in a list": (
        "loggers.\u00b2=1",
        "loggers.\u00b2",
        "'loggers' is a list of 2, which has no item '\u00b2'; they count from 0",
    ),
    "no YAML": (
        "loss={a: 1",
        "loss",
        "not valid YAML: while parsing a flow mapping, expected ',' or '}', but got '<stream end>'",
    ),
    "tag": ("seed=!!python/none 1", "seed", "the tag '!!python/none' is not allowed in a spec; remove it"),
    "key twice": ("loss={a: 1, a: 2}", "loss", "duplicate key, first given in line 1; remove one"),
}


@pytest.mark.parametrize(("word", "path", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(word, path, message):
    document = Document("t", copy.deepcopy(DATA))
    apply_override(document, word)
    assert [(p.path, p.message) for p in document.problems] == [(path, f"{message} (from the command line)")]
    assert document.data == DATA


def test_every_wrong_word_is_reported_beside_the_file_s_own_problems(refusal):
    words = ("loss.margn=0.3", "trainig.epochs=3", "training.epochs=many", "seed", "data.table.x=3")
    assert refusal(yaml_of(compute="{gpus: 0}"), *words) == (
        "6 problems in train.yaml\n"
        "  line 5  compute.gpus     must be at least 1, got 0\n"
        "          seed             expected key=value or key.sub=value, got 'seed' (from the command line)\n"
        "          data.table       expected text, got {'name': 't.csv', 'x': 3} (from the command line)\n"
        "          loss.margn       unknown key, did you mean 'margin'? (from the command line)\n"
        "          training.epochs  expected a whole number, got 'many' (from the command line)\n"
        "          trainig          unknown key, did you mean 'training'? (from the command line)"
    )


def test_a_replaced_block_keeps_none_of_its_settings(load):
    loaded = load(yaml_of(loss="{name: triplet, margin: 0.7}"), "loss={name: triplet}")
    assert loaded.spec.loss.margin == 0.2
    assert loaded.written["loss"] == {"name": "triplet"}


@pytest.mark.parametrize(
    ("word", "block", "name", "setting"),
    [
        ("optimizer.lr=1e-4", lambda spec: spec.optimizer, "adamw", {"lr": 1e-4}),
        ("scheduler.min_factor=0.1", lambda spec: spec.scheduler, "cosine", {"min_factor": 0.1}),
        ("transforms.train.hue=0.1", lambda spec: spec.transforms.train, "augment", {"hue": 0.1}),
        (
            "transforms.eval.size=[9, 9]",
            lambda spec: spec.transforms.eval,
            "resize_normalize",
            {"size": [9, 9]},
        ),
        ("loss.miner.distance=cosine", lambda spec: spec.loss.miner, "hard_triplets", {"distance": "cosine"}),
    ],
)
def test_a_setting_of_an_absent_block_is_one_of_the_default_plugin(load, word, block, name, setting):
    made = block(load(yaml_of(), word).spec)
    assert made.name == name
    assert {key: getattr(made, key) for key in setting} == setting


def test_a_mapping_without_a_name_in_the_file_too(load, refusal):
    assert load(yaml_of(optimizer="{lr: 1e-4}"), "optimizer.name=sgd").spec.optimizer.name == "sgd"
    spec = load(yaml_of(optimizer="{lr: 1e-4}")).spec
    assert (spec.optimizer.name, spec.optimizer.lr) == ("adamw", 1e-4)
    message = "line 5  optimizer.momentum  unknown key; known: lr, head_lr, "
    assert message in refusal(yaml_of(optimizer="{momentum: 0.9}"))


def test_a_mapping_without_a_name_passes_the_schema_where_it_is_read():
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(TrainSpec.model_json_schema())
    data = {key: yaml.safe_load(block) for key, block in BLOCKS.items()}
    loss = {"name": "triplet", "miner": {"distance": "cosine"}}
    transforms = {"train": {"size": 64}, "eval": {"size": 64}}
    validator.validate({**data, "optimizer": {"lr": 1e-4}, "loss": loss, "transforms": transforms})
    assert not validator.is_valid({**data, "optimizer": {"momentum": 0.9}})
    assert not validator.is_valid({**data, "loss": {"margin": 0.1}})


def test_a_mistake_in_the_file_that_a_word_replaces_is_no_problem(load):
    assert load(yaml_of(training="{epochs: many}"), "training.epochs=3").spec.training.epochs == 3


def test_a_mapping_or_spec_given_in_python_is_not_changed(load):
    spec = load(yaml_of()).spec
    data = spec.model_dump(mode="json")
    before = copy.deepcopy(data)
    assert load_spec(data, TrainSpec, ["loss.margin=0.5"]).spec.loss.margin == 0.5
    assert data == before
    assert load_spec(spec, TrainSpec, ["loss.margin=0.5"]).spec.loss.margin == 0.5
    assert spec.loss.margin == 0.2


def test_a_mapping_may_hold_models(load):
    spec = load(yaml_of()).spec
    data = {name: getattr(spec, name) for name in ("data", "extractor", "sampler", "loss")}
    loaded = load_spec(data, TrainSpec, ["loss.miner=all_triplets"])
    assert loaded.spec.loss.miner.name == "all_triplets"
    assert yaml.safe_load(yaml.safe_dump(loaded.written)) == loaded.written


@pytest.mark.parametrize("words", [["loss.margin=1", "loss.name=b"], ["loss.name=b", "loss.margin=1"]])
def test_a_new_name_keeps_the_siblings_that_words_gave_in_either_order(words):
    document = Document("spec", {"loss": {"name": "a", "margin": 2, "scale": 3}})
    for word in words:
        apply_override(document, word)
    assert document.data == {"loss": {"name": "b", "margin": 1}}


def test_a_new_name_drops_the_siblings_of_a_mapping_given_before():
    document = Document("spec", {})
    for word in ["loss={name: a, margin: 2}", "loss.name=b"]:
        apply_override(document, word)
    assert document.data == {"loss": {"name": "b"}}
