"""The names in docs/coming-from.md exist there and here, and the migrated config is what it says."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import metricli
from metricli.cli.app import app
from metricli.specs import registry
from metricli.specs.document import parse
from metricli.specs.load import load_spec
from metricli.specs.plugin import KINDS
from metricli.specs.train import TrainSpec
from tests.docs.blocks import blocks_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`(?:oml|pytorch_metric_learning)\..*?) \| (`.*?) \| .*\|$", TEXT, re.M)
THEIRS = sorted({name for theirs, _ in ROWS for name in re.findall(r"`([\w.]+)`", theirs)})
OURS = sorted({name for _, ours in ROWS for name in re.findall(r"`([^`]+)`", ours)})


def source_of(module: str) -> ast.Module:
    """The source of one of their modules; to import OML takes a quarter of a minute."""
    package, *parts = module.split(".")
    found = find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    place = Path(found.origin).parent.joinpath(*parts)
    return ast.parse((place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text())


def names_in(tree: ast.Module) -> set[str]:
    """What a module defines or imports at its top."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.add(node.name)
        elif isinstance(node, (ast.ImportFrom, ast.Import)):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def words_in(tree: ast.AST) -> set[str]:
    """Every text in a module's code."""
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_there_are_names_to_look_up() -> None:
    assert len([name for name in THEIRS if name.startswith("oml.")]) == 28
    assert len([name for name in THEIRS if name.startswith("pytorch_metric_learning.")]) == 32
    assert len(ROWS) == len(re.findall(r"^\| `(?:oml|pytorch_metric_learning)\.", TEXT, re.M))


@pytest.mark.parametrize("package", ["oml", "pytorch_metric_learning"])
def test_their_names_are_theirs(package: str) -> None:
    found = [name.rpartition(".") for name in THEIRS if name.startswith(f"{package}.")]
    assert [name for name in found if name[2] not in names_in(source_of(name[0]))] == []


def is_ours(name: str) -> bool:
    kinds = {base.singular: kind for kind, base in KINDS.items()}
    first, _, rest = name.partition(": ")
    if rest and first in kinds:
        return rest in registry.names(kinds[first])
    if name.startswith("metricli "):
        commands = {info.name or info.callback.__name__.replace("_", "-") for info in app.registered_commands}  # type: ignore[union-attr]
        return name.removeprefix("metricli ") in commands
    if name.startswith("metricli."):
        return hasattr(metricli, name.removeprefix("metricli."))
    if name == "memory":
        return "memory" in metricli.Triplet.model_fields
    if name == "extractor.dim":
        return "dim" in metricli.Timm.model_fields
    model: Any = TrainSpec
    for key in name.split("."):
        if key not in getattr(model, "model_fields", {}):
            return False
        model = model.model_fields[key].annotation
    return True


def test_our_names_are_ours() -> None:
    assert len(OURS) > 40
    assert [name for name in OURS if not is_ours(name)] == []
    assert not is_ours("loss: tripplet")
    assert not is_ours("validation.metrics.cm")
    assert not is_ours("metricli trian")


def configs() -> tuple[Any, TrainSpec]:
    theirs, ours = (block for block in blocks_of(PAGE) if block.language == "yaml")
    return yaml.safe_load(theirs.text), load_spec(parse(ours.text, "ours").data, TrainSpec).spec


def test_the_config_of_oml_is_one() -> None:
    theirs, _ = configs()
    keys = words_in(source_of("oml.lightning.pipelines.train")) | words_in(
        source_of("oml.lightning.pipelines.parser")
    )
    assert set(theirs) <= keys
    places = ("models", "losses", "miners", "optimizers", "samplers", "transforms")
    known = set[str]().union(*(words_in(source_of(f"oml.registry.{place}")) for place in places))
    miner = theirs["criterion"]["args"]["miner"]
    blocks = [theirs[key] for key in ("sampler", "criterion", "extractor", "optimizer")]
    blocks += [miner, theirs["transforms_train"], theirs["transforms_val"]]
    assert {block["name"] for block in blocks} <= known
    assert theirs["extractor"]["args"]["weights"] in words_in(source_of("oml.models.vit_dino.extractor"))


def test_the_migrated_config_says_the_same() -> None:
    theirs, spec = configs()
    sampler: Any = spec.sampler
    loss: Any = spec.loss
    assert spec.seed == theirs["seed"]
    assert spec.compute.gpus == theirs["devices"]
    assert {"n_labels": sampler.n_labels, "n_instances": sampler.n_instances} == theirs["sampler"]["args"]
    assert (loss.margin, loss.miner.name) == (0.2, "hard_triplets")
    assert loss.margin == theirs["criterion"]["args"]["margin"]
    assert spec.optimizer.lr == theirs["optimizer"]["args"]["lr"]
    assert spec.training.epochs == theirs["max_epochs"]
    assert spec.training.freeze_epochs == theirs["freeze_n_epochs"]
    assert spec.validation.every_n_epochs == theirs["valid_period"]
    assert spec.validation.batch_size == theirs["bs_val"]
    assert spec.validation.monitor == "cmc@1"
