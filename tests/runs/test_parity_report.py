"""The self-check of several processes: it passes where it should, and names what stands in the way."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metricli.components import transforms
from metricli.components.extractors import Extractor
from metricli.components.losses.triplet import TripletLoss
from metricli.reporter import SilentReporter
from metricli.reports import ParityReport
from metricli.runs.parity import Trials, compared, try_first_step
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec
from tests.runs.conftest import spec_over
from tests.worlds import Worlds

pytestmark = pytest.mark.xdist_group("worlds")
VIT = "extractor={name: timm, model: test_vit, model_args: {img_size: 32}, dim: 8}"
DROPPING = "extractor={name: timm, model: test_vit, model_args: {img_size: 32, drop_path_rate: 0.3}, dim: 8}"


def trial(table: Path, overrides: tuple[str, ...], spoil: str = "") -> Trials:
    """The trials of this process, with a mistake in the code of one of its parts."""
    own = random.Random()
    originals: Any = (transforms.Augment.__call__, Extractor._features, TripletLoss.forward)
    if spoil == "transform":
        transforms.Augment.__call__ = lambda self, image: originals[0](self, image) + own.random()  # type: ignore
    if spoil == "extractor":
        Extractor._features = lambda self, images: (  # type: ignore[method-assign]
            (found := originals[1](self, images)) - found.mean(0)
        )
    if spoil == "loss":
        TripletLoss.forward = lambda self, *rows: originals[2](self, *rows) * own.random()  # type: ignore
    try:
        loaded = load_spec(spec_over(table), TrainSpec, overrides)
        return try_first_step(loaded, SilentReporter())
    finally:
        transforms.Augment.__call__, Extractor._features, TripletLoss.forward = originals  # type: ignore


@pytest.fixture
def check(worlds: Worlds, table: Path) -> Any:
    def run(*overrides: str, spoil: str = "") -> ParityReport:
        many = worlds.run(2, trial, table, overrides, spoil)[0]
        return compared(trial(table, overrides, spoil), many)

    return run


def test_a_sound_spec_passes(check: Any) -> None:
    report = check()
    assert (report.same, report.causes, report.processes, report.images) == (True, [], 2, 6)
    assert max(report.differences.values()) <= 1e-9
    assert check("loss=arcface", VIT, "training.micro_batch=2").same


def test_dropout_is_no_mistake(check: Any) -> None:
    report = check(DROPPING)
    assert (report.same, report.same_without_noise) == (False, True)
    assert report.causes[0].startswith("dropout: ")
    assert "drop_path" in report.causes[0]


@pytest.mark.parametrize(
    ("overrides", "spoil", "word"),
    [
        (("training.sync_batchnorm=false",), "", "batch norm sees a part of the batch: backbone"),
        (("training.micro_batch=2",), "", "batch norm sees a part of the batch: backbone"),
        ((VIT,), "transform", "6 of 6 images differ: the train transform"),
        ((VIT,), "extractor", "depends on which other images are in its process"),
        ((VIT,), "loss", "the loss draws from something else"),
    ],
)
def test_the_cause_is_named(check: Any, overrides: tuple[str, ...], spoil: str, word: str) -> None:
    report = check(*overrides, spoil=spoil)
    assert not report.same
    assert not report.same_without_noise
    assert [cause for cause in report.causes if word in cause], report.causes


def test_gradients_alone_may_differ(table: Path) -> None:
    one = trial(table, (VIT,))
    assert all(isinstance(found.embeddings, np.ndarray) and found.processes == 1 for found in one)
    name = next(iter(one[0].gradients))
    changed = tuple(
        replace(found, gradients=found.gradients | {name: found.gradients[name] + 1}) for found in one
    )
    report = compared(one, changed)  # type: ignore[arg-type]
    assert (report.same, next(iter(report.worst))) == (False, name)
    assert report.causes[0].startswith("the gradients of the extractor differ though the loss does not")
