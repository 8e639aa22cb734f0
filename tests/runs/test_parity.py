"""Several processes have the gradients of one: every loss, miner, memory bank and way to take a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metricli.components.dataset import Batch
from metricli.reporter import SilentReporter
from metricli.runs.building import build_learner
from metricli.runs.context import open_context
from metricli.runs.processes import joined
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec
from tests.plugins.builtin import BUILT_IN, settings_of
from tests.plugins.test_memory import WITH_MEMORY
from tests.runs.conftest import spec_over
from tests.worlds import Worlds

pytestmark = pytest.mark.xdist_group("worlds")

LABELS = (0, 0, 1, 1, 2, 2, 0, 1, 3, 3, 2)
"""Eleven: uneven over two, three and four processes."""
MORE = {"memory", "bank", "bnneck", "clipped", "sum"}
"""In the name of a case whose second step has something new to show."""
Gradients = dict[str, np.ndarray]
Case = dict[str, Any]
RESNET = {"name": "timm", "model": "test_resnet", "dim": 8}
VIT = {"name": "timm", "model": "test_vit", "model_args": {"img_size": 32, "patch_size": 16}, "dim": 8}
"""Without batch norm, which tells the others something at each layer and lets float32 noise grow."""


def losses() -> dict[str, Case]:
    """Blocks of a spec by name: every loss, every miner, every loss with a memory bank."""
    names = [name for kind, name in BUILT_IN if kind == "losses"]
    miners = [name for kind, name in BUILT_IN if kind == "miners"]
    bank = {"memory": {"size": 30, "start_after": 1}}
    found: dict[str, Case] = {name: {"loss": settings_of("losses", name)} for name in names}
    for name in miners:
        found[f"triplet, {name}"] = {"loss": {"name": "triplet", "miner": settings_of("miners", name)}}
    for name in sorted(WITH_MEMORY):
        found[f"{name}, memory"] = {"loss": {**settings_of("losses", name), **bank}}
    pair = [{"weight": 1.0, "loss": "triplet"}, {"weight": 0.5, "loss": "arcface"}]
    return {**found, "a sum": {"loss": pair}}


def ways() -> dict[str, Case]:
    """Blocks of `training` and `extractor` in which a batch is taken otherwise."""
    arcface = {"loss": {"name": "arcface"}, "extractor": RESNET}
    memory = {"loss": {"name": "triplet", "memory": {"size": 30}}}
    return {
        "caching": {**arcface, "extractor": VIT, "training": {"micro_batch": 2}},
        "caching and a bank": {"training": {"micro_batch": 1}, **memory},
        "one micro-batch": {"training": {"micro_batch": 99}, **arcface},
        "bnneck": {**arcface, "extractor": RESNET | {"bnneck": True}},
        "checkpointing": {"training": {"gradient_checkpointing": True}, **arcface},
        "frozen norm": {"training": {"freeze_batch_norm": True, "micro_batch": 2}, **arcface},
        "clipped": {"training": {"grad_clip_norm": 0.01, "ema": {"decay": 0.5}}, **arcface},
    }


def gradients(cases: dict[str, Case], table: Any, precision: str) -> dict[str, Gradients]:
    """Those of a step or two by case and parameter, and what a step says, in this process of a world."""
    with joined("cpu") as world:
        found: dict[str, Gradients] = {}
        for name, case in cases.items():
            spec: dict[str, Any] = (
                spec_over(table) | {"extractor": VIT} | {k: v for k, v in case.items() if k != "training"}
            )
            spec["training"] = spec["training"] | case.get("training", {}) | {"precision": precision}
            spec["optimizer"] = {"name": "sgd", "lr": 0.1}
            loaded = load_spec(spec, TrainSpec).spec
            context = open_context(loaded.compute, SilentReporter(), loaded.training.precision, world)
            learner = build_learner(
                loaded, context, num_labels=4, label_to_category=[0, 0, 1, 1], steps_per_epoch=9
            )
            learner.start_epoch(0)
            found[name] = {}
            for step in range(2 if MORE.intersection(name.split()) else 1):
                said = learner.step(slice_of(step, world.rank, world.size), step)
                for part, module in (("extractor", learner.extractor), ("loss", learner.loss)):
                    for key, parameter in module.named_parameters():
                        if parameter.grad is not None:
                            found[name][f"step {step}: {part}.{key}"] = parameter.grad.numpy().copy()
                    for key, buffer in module.named_buffers():
                        found[name][f"step {step}: {part}.{key}"] = buffer.numpy().copy()
                found[name] |= {f"step {step}: {key}": np.array(value) for key, value in said.items()}
        return found


def slice_of(step: int, rank: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(len(LABELS), 3, 32, 32, generator=generator, dtype=torch.float64)
    own = slice(len(LABELS) * rank // size, len(LABELS) * (rank + 1) // size)
    return Batch(images[own], torch.tensor(LABELS)[own], torch.arange(len(LABELS))[own])


def assert_equal(one: dict[str, Gradients], many: dict[str, Gradients], tolerance: float) -> None:
    assert one.keys() == many.keys()
    for name, expected in one.items():
        assert expected.keys() == many[name].keys(), name
        trained = [g for key, g in expected.items() if "extractor.backbone" in key]
        assert max(float(np.abs(g).max()) for g in trained) > 1e-4, f"{name}: there is something to compare"
        for key, value in expected.items():
            scale = max(1.0, float(np.abs(value).max()))
            off = float(np.abs(value - many[name][key]).max())
            assert off <= tolerance * scale, f"{name}, {key}: off by {off}"


@pytest.fixture(scope="module")
def alone(table: Any) -> dict[str, Gradients]:
    return gradients(losses() | ways(), table, "fp64")


@pytest.mark.parametrize("size", [2, 3, pytest.param(4, marks=pytest.mark.long)])
def test_every_loss_has_the_gradients_of_one_process(
    worlds: Worlds, alone: dict[str, Gradients], table: Any, size: int
) -> None:
    for found in worlds.run(size, gradients, losses() | ways(), table, "fp64"):
        assert_equal(alone, found, 1e-9)


def test_float32_is_as_close_as_it_can_be(worlds: Worlds, table: Any) -> None:
    cases = {name: case for name, case in losses().items() if "," not in name}
    one = gradients(cases, table, "fp32")
    for found in worlds.run(2, gradients, cases, table, "fp32"):
        assert_equal(one, found, 1e-5)


def test_without_it_batch_norm_sees_the_slice_alone(worlds: Worlds, table: Any) -> None:
    cases = {"own": {**ways()["bnneck"], "training": {"sync_batchnorm": False}}}
    one = gradients(cases, table, "fp64")["own"]
    many = worlds.run(2, gradients, cases, table, "fp64")[0]["own"]
    norms = [key for key in one if key.endswith("running_mean") and key.startswith("step 0")]
    assert norms
    assert any(np.abs(one[key] - many[key]).max() > 1e-4 for key in norms)


def starts(table: Any) -> dict[str, np.ndarray]:
    """The first weights, where each process draws others."""
    with joined("cpu") as world, pytest.MonkeyPatch.context() as patch:
        seed = torch.manual_seed
        patch.setattr(torch, "manual_seed", lambda number: seed(number + world.rank))
        spec = spec_over(table) | {"loss": {"name": "arcface"}}
        loaded = load_spec(spec, TrainSpec).spec
        context = open_context(loaded.compute, SilentReporter(), "fp32", world)
        learner = build_learner(loaded, context, num_labels=4, label_to_category=None, steps_per_epoch=9)
        state = learner.extractor.state_dict() | learner.loss.state_dict()
        return {name: value.numpy().copy() for name, value in state.items()}


def test_all_start_from_the_weights_of_the_first(worlds: Worlds, table: Any) -> None:
    one, two = worlds.run(2, starts, table)
    expected = starts(table)
    for name, weights in expected.items():
        assert np.array_equal(one[name], weights), name
        assert np.array_equal(two[name], weights), name
