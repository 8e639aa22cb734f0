"""Plugins of other packages: found by name, loaded alone, and blamed for what they do wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from metricli.errors import SpecError
from metricli.specs import registry
from metricli.specs.kinds import LossSpec
from metricli.specs.load import check_spec, load_spec
from metricli.specs.predict import PredictSpec
from metricli.specs.validate import ValidateSpec
from tests.plugins.builtin import installed
from tests.specs.conftest import yaml_of
from tests.specs.fakes import MARGIN

LOSSES = installed("losses")
ONE = "1 problem in train.yaml\n  "


def test_a_third_party_plugin_resolves(load, install):
    install("my-margin", "losses", {"margin": "Margin"}, MARGIN)
    loaded = load(yaml_of(loss="{name: margin, width: 0.7}"))
    assert (loaded.spec.loss.name, loaded.spec.loss.width) == ("margin", 0.7)
    assert type(loaded.spec.loss).__module__ == "my_margin"
    assert load(yaml_of(loss="margin")).spec.loss.width == 0.5
    assert registry.names("losses") == installed("losses", "margin").split(", ")
    assert check_spec(loaded, None) == []


def test_its_mistakes_read_like_ours(refusal, install):
    install("my-margin", "losses", {"margin": "Margin"}, MARGIN)
    assert refusal(yaml_of(loss="{name: margin, widht: 0.7, width: 0}")) == (
        "2 problems in train.yaml\n"
        "  line 4  loss.width  must be greater than 0, got 0\n"
        "  line 4  loss.widht  unknown key, did you mean 'width'?"
    )
    assert refusal(yaml_of(loss="margn")) == (
        ONE + "line 4  loss.name  no loss named 'margn', did you mean 'margin'? "
        f"installed: {installed('losses', 'margin')}"
    )


def test_the_fake_package_is_gone_after_its_test(refusal):
    assert refusal(yaml_of(loss="margin")) == (
        ONE + f"line 4  loss.name  no loss named 'margin'; installed: {LOSSES}"
    )


def test_two_packages_with_one_name(refusal, load, install):
    install("my-margin", "losses", {"margin": "Margin"}, MARGIN)
    install("your-margin", "losses", {"margin": "Margin"}, MARGIN)
    assert refusal(yaml_of(loss="margin")) == (
        ONE + "line 4  loss.name  two packages have a loss named 'margin': my-margin 1.5 and "
        "your-margin 1.5; uninstall one"
    )
    assert load(yaml_of()).spec.loss.name == "triplet"
    found = [info for info in registry.describe("losses", "loss", LossSpec) if info.name == "margin"]
    assert sorted(info.package for info in found) == ["my-margin", "your-margin"]
    assert {info.status for info in found} == {
        "two packages have a loss named 'margin': my-margin 1.5 and your-margin 1.5; uninstall one"
    }


def test_a_second_package_cannot_take_a_built_in_name(refusal, install):
    install("my-triplet", "losses", {"triplet": "Margin"}, MARGIN)
    assert "two packages have a loss named 'triplet': metricli " in refusal(yaml_of())


BROKEN = {
    "import": (
        "import no_such_module",
        "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "syntax": ("class", "cannot be loaded: SyntaxError: invalid syntax (bad_margin.py, line 10)"),
    "exit": ("raise SystemExit(3)", "cannot be loaded: SystemExit: 3"),
    "no such class": (
        "",
        "cannot be loaded: AttributeError: module 'bad_margin' has no attribute 'Margin'",
    ),
    "name unknown to the module": (
        MARGIN + "    kernel: Kernel\n",
        "cannot be loaded: PydanticUndefinedAnnotation: name 'Kernel' is not defined",
    ),
    "other name": (
        MARGIN.replace('"margin"', '"margins"'),
        "calls itself 'margins' in its model",
    ),
    "no literal": (
        MARGIN.replace('Literal["margin"]', "str"),
        "calls itself nothing in its model",
    ),
    "no subclass": ("class Margin: pass", "is not a subclass of LossSpec: bad_margin:Margin"),
    "other kind": (
        MARGIN.replace("LossSpec", "MinerSpec"),
        "is not a subclass of LossSpec: bad_margin:Margin",
    ),
    "no class": ("def Margin(): pass", "is not a subclass of LossSpec: bad_margin:Margin"),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_blamed_and_harms_only_who_names_it(load, refusal, install, source, reason):
    install("bad-margin", "losses", {"margin": "Margin"}, source)
    blame = f"the loss 'margin' of package bad-margin 1.5 {reason}"
    assert refusal(yaml_of(loss="margin")).startswith(f"{ONE}line 4  loss.name  {blame}")
    assert load(yaml_of(loss="arcface")).spec.loss.name == "arcface"
    described = {info.name: info for info in registry.describe("losses", "loss", LossSpec)}
    assert described["margin"].status.startswith(blame)
    assert (described["margin"].package, described["margin"].version) == ("bad-margin", "1.5")
    assert described["margin"].model is None
    assert described["triplet"].status == "ok"


def test_resolving_one_name_imports_no_other_plugin(load, install):
    install("my-margin", "losses", {"margin": "Margin"}, MARGIN)
    install("my-bomb", "losses", {"bomb": "Bomb"}, "raise SystemExit(3)")
    load(yaml_of(loss="triplet"))
    assert "my_margin" not in sys.modules
    load(yaml_of(loss="margin"))
    assert "my_margin" in sys.modules
    assert "my_bomb" not in sys.modules


CHECKS = {
    "raises": (
        "raise KeyError('gone')",
        "the check of this loss (bad_margin:Margin) failed: KeyError: 'gone'",
    ),
    "raises late": (
        "yield Problem('', 'a'); raise KeyError('gone')",
        "the check of this loss (bad_margin:Margin) failed: KeyError: 'gone'",
    ),
    "returns nothing": (
        "pass",
        "the check of this loss (bad_margin:Margin) failed: TypeError: 'NoneType' object is not iterable",
    ),
}


@pytest.mark.parametrize(("body", "message"), CHECKS.values(), ids=CHECKS.keys())
def test_a_check_that_fails_is_reported_and_blamed(refusal, install, body, message):
    install(
        "bad-margin",
        "losses",
        {"margin": "Margin"},
        f"{MARGIN}\n    def check(self, spec, table):\n        {body}\n",
    )
    assert refusal(yaml_of(loss="margin", validation="{monitor: zzz, metrics: {cmc: []}}")) == (
        "2 problems in train.yaml\n"
        f"  line 4  loss                {message}\n"
        "  line 5  validation.monitor  'zzz' is not computed; computed: precision@5, map@5, map@r, loss"
    )


def test_a_check_may_know_spec_and_table(refusal, warnings_of, install):
    from tests.specs.conftest import FACTS

    check = (
        "\n    def check(self, spec, table):\n"
        "        where = 'no table' if table is None else f'{table.train_labels} labels'\n"
        "        text = f'{spec.training.epochs} epochs, {where}'\n"
        "        return [Problem('width', text, severity='warning' if table is None else 'error')]\n"
    )
    install("my-margin", "losses", {"margin": "Margin"}, MARGIN + check)
    assert [(p.path, p.message) for p in warnings_of(yaml_of(loss="margin"))] == [
        ("loss.width", "20 epochs, no table")
    ]
    assert refusal(yaml_of(loss="margin"), facts=FACTS) == ONE + "line 4  loss.width  20 epochs, 12 labels"


def test_validators_of_a_plugin_speak_for_themselves(refusal, install):
    validator = (
        "\n    @field_validator('width')\n    @classmethod\n    def _narrow(cls, value):\n"
        "        if value == 3: raise ValueError('3 is {too} wide; 2 at most')\n"
        "        if value == 4: raise KeyError('four')\n"
        "        return value\n"
    )
    install("my-margin", "losses", {"margin": "Margin"}, MARGIN + validator)
    assert refusal(yaml_of(loss="{name: margin, width: 3}")) == (
        ONE + "line 4  loss.width  3 is {too} wide; 2 at most"
    )
    assert refusal(yaml_of(loss="{name: margin, width: 4}")) == (
        ONE + "line 4  loss  validating this loss (my_margin:Margin) failed: KeyError: 'four'"
    )


def test_only_a_training_spec_is_complete_enough_for_the_checks_of_plugins(write, install):
    source = (
        MARGIN.replace("LossSpec", "TransformSpec") + "    def check(self, spec, table): raise KeyError\n"
    )
    install("my-margin", "transforms", {"margin": "Margin"}, source)
    loaded = load_spec(write(yaml_of(transforms="{eval: margin}")), ValidateSpec)
    assert check_spec(loaded, None) == []


@pytest.mark.parametrize("model", [ValidateSpec, PredictSpec])
def test_blocks_of_training_stay_raw_without_their_packages(write, model):
    text = yaml_of(
        sampler="{name: gone, x: 1}",
        loss="gone",
        optimizer="{name: gone}",
        scheduler="gone",
        loggers="[gone]",
        training="{any: thing}",
        transforms="{train: gone}",
    )
    loaded = load_spec(write(text), model)
    assert check_spec(loaded, None) == []
    assert loaded.spec.sampler == {"name": "gone", "x": 1}
    assert (loaded.spec.loss, loaded.spec.loggers, loaded.spec.transforms.train) == ("gone", ["gone"], "gone")
    assert loaded.spec.extractor.model == "resnet18"
    dumped = loaded.spec.model_dump(mode="json")
    assert load_spec(dumped, model).spec == loaded.spec


def test_what_validate_and_predict_use_is_resolved(write):
    text = yaml_of(
        extractor="gone", transforms="{eval: gone}", validation="{monitor: 3}", prediction="{x: 1}"
    )
    with pytest.raises(SpecError) as caught:
        load_spec(write(text), ValidateSpec)
    assert [p.path for p in caught.value.problems] == [
        "extractor.name",
        "transforms.eval.name",
        "validation.monitor",
    ]
    with pytest.raises(SpecError) as caught:
        load_spec(write(text), PredictSpec)
    assert [p.path for p in caught.value.problems] == [
        "extractor.name",
        "transforms.eval.name",
        "prediction.x",
    ]


LIGHT = """
import importlib, pkgutil, sys
import metricli, metricli.specs, metricli.plugins
for home in (metricli.specs, metricli.plugins):
    for found in pkgutil.iter_modules(home.__path__, home.__name__ + "."):
        importlib.import_module(found.name)
from metricli.specs.load import check_spec, load_spec
from metricli.specs.registry import describe
from metricli.specs.plugin import KINDS
loaded = load_spec("train.yaml", metricli.TrainSpec)
check_spec(loaded, None)
metricli.TrainSpec.model_json_schema()
assert loaded.spec.loss.miner.name == "hard_triplets"
found = [info for kind, base in KINDS.items() for info in describe(kind, base.singular, base)]
assert {info.status for info in found} == {"ok"}
print(sorted({"torch", "torchvision", "timm", "accelerate", "pandas", "numpy"} & set(sys.modules)))
"""


def test_specs_and_plugins_import_no_torch(write):
    text = yaml_of(
        loggers="[tensorboard]", optimizer="adamw", scheduler="cosine", transforms="{train: augment}"
    )
    write(text)
    done = subprocess.run([sys.executable, "-W", "error", "-c", LIGHT], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)
