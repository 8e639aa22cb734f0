"""A run that was cut and went on is, to the bit, one that was not: over pairs of all that a run may have."""

from __future__ import annotations

import copy
import csv
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metricli import TrainReport, train
from metricli.errors import CollapseError, Interrupted, MetricliError
from metricli.runs.checkpoints import read_last, save_last
from metricli.runs.history import Progress
from metricli.runs.learner import Learner
from metricli.runs.learner_state import load_state
from tests.conftest import FIGURES
from tests.runs.conftest import JUDGED, LABELS, Listener, spec_over, write_table
from tests.runs.resuming import FACTORS, FEW, assert_same_run, cases, overrides_of

CASES = cases()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of which two train images and one validation image cannot be read."""
    folder = tmp_path_factory.mktemp("damaged")
    table = write_table(folder / "figures.csv", LABELS, JUDGED)
    with table.open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    for path in paths:
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(FIGURES.parent / path, folder / path)
    for at in (1, 6, -2):
        (folder / paths[at]).write_bytes(b"torn")
    return table


def cut(spec: dict[str, Any], overrides: list[str], after: int, **place: Any) -> None:
    """Stop a run by a signal after so many steps."""
    with pytest.raises(Interrupted) as caught:
        train(copy.deepcopy(spec), overrides, reporter=Listener(stop_after=after), **place)
    assert caught.value.exit_code == 143


def shown(number: int) -> Any:
    marks = [] if number < FEW else [pytest.mark.long]
    words = [level for factor, level in CASES[number].items() if level != next(iter(FACTORS[factor]))]
    return pytest.param(number, id=f"{number}-{'-'.join(words)}".replace(" ", "_"), marks=marks)


@pytest.mark.parametrize("number", [shown(number) for number in range(len(CASES))])
def test_a_run_cut_twice_is_one_that_was_not(number: int, table: Path, damaged: Path, tmp_path: Path) -> None:
    case, overrides = CASES[number], overrides_of(number, CASES[number])
    spec = spec_over(table)
    if case["images"] == "broken":
        spec["data"] = {"table": str(damaged)}
    one = train(copy.deepcopy(spec), overrides, run_dir=tmp_path / "one")
    an_epoch = one.steps // one.epochs
    middle = 1 + number % (an_epoch * (one.epochs - 1) - 1)
    cut(spec, overrides, middle, run_dir=tmp_path / "two")
    end = an_epoch * (middle // an_epoch + 1)  # the last step of the epoch, before its validation
    cut(spec, overrides, end - middle, resume=tmp_path / "two")
    two = train(copy.deepcopy(spec), overrides, resume=tmp_path / "two")
    assert_same_run(one, two)
    again = train(copy.deepcopy(spec), overrides, resume=tmp_path / "two")
    assert_same_run(one, again)


WORKERS = {"0 to 4": (0, 4), "4 to 0": (4, 0), "2 to 4": (2, 4)}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("before_and_after", WORKERS.values(), ids=list(WORKERS))
def test_the_workers_may_change(
    table: Path, damaged: Path, tmp_path: Path, before_and_after: tuple[int, int]
) -> None:
    """Of the first case with images that cannot be read, noise, averaged weights and thawing."""
    number = next(at for at, case in enumerate(CASES) if case["images"] == "broken" and case["ema"] != "none")
    spec, overrides = spec_over(table), overrides_of(number, CASES[number])
    spec["data"] = {"table": str(damaged)}
    workers = [[*overrides, f"training.num_workers={count}"] for count in before_and_after]
    one = train(copy.deepcopy(spec), overrides, run_dir=tmp_path / "one")
    cut(spec, workers[0], 3, run_dir=tmp_path / "two")
    two = train(copy.deepcopy(spec), workers[1], resume=tmp_path / "two")
    assert_same_run(one, two)


COLLAPSING = (
    "optimizer={name: sgd, lr: 1e-9}",
    "scheduler=constant",
    "extractor.normalize=false",
    "validation.distance=euclidean",
    "validation.bootstrap={samples: 0}",
    "training.epochs=2",
    "sampler.batches=15",
    "training.freeze_epochs=1",
)


@pytest.mark.parametrize("ends", ["warn", "stop"])
def test_what_the_watch_has_seen_is_not_forgotten(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """A run that is cut every few steps finds its collapse at the step at which it would have."""
    from metricli.runs import watch

    sign = watch.Sign("all of a batch were alike", 1.0)
    monkeypatch.setattr(watch, "sign_of", lambda *_, **__: sign)
    spec, overrides = spec_over(table), [*COLLAPSING, f"training.on_collapse={ends}"]

    def run(place: Path, after: int | None, **options: Any) -> TrainReport | MetricliError:
        try:
            return train(
                copy.deepcopy(spec), overrides, run_dir=place, reporter=Listener(stop_after=after), **options
            )
        except (Interrupted, CollapseError) as error:
            return error

    one = run(tmp_path / "one", None)
    two = run(tmp_path / "two", 8)
    while isinstance(two, Interrupted):
        two = run(tmp_path / "two", 8, resume="auto")
    lines = [(place / "metrics.jsonl").read_text() for place in (tmp_path / "one", tmp_path / "two")]
    assert lines[0] == lines[1]
    if ends == "warn":
        assert isinstance(one, TrainReport)
        assert isinstance(two, TrainReport)
        assert sum("from step 1 to step 21 all of a batch were alike" in said for said in one.warnings) == 1
        assert_same_run(one, two)
    else:
        assert isinstance(one, CollapseError)
        assert str(one).replace("/one", "/two") == str(two)
        assert "from step 1 to step 21" in str(two)


def test_the_scale_of_fp16_is_kept(tmp_path: Path) -> None:
    """On a CPU torch has such a scaler, and no run may use it; its state goes the way of a run's."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    learner = object.__new__(Learner)
    module = torch.nn.Linear(2, 2)
    learner.extractor = learner.loss = module
    learner.optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    learner.scheduler = torch.optim.lr_scheduler.ConstantLR(learner.optimizer)
    learner.ema, learner.spec = None, None  # type: ignore[assignment]
    learner.context = SimpleNamespace(accelerator=SimpleNamespace(scaler=scaler))  # type: ignore[assignment]
    for _ in range(3):
        scaler.scale(module(torch.ones(1, 2)).sum()).backward()
        scaler.step(learner.optimizer)
        scaler.update()
    kept = scaler.state_dict()
    assert (kept["scale"], kept["_growth_tracker"]) == (2048.0, 1)
    words = {"progress": asdict(Progress()), "spec": {}, "labels": [], "rows": ""}
    save_last(tmp_path / "last.ckpt", learner.state(), words)
    fresh = torch.amp.GradScaler("cpu")
    learner.context.accelerator.scaler = fresh
    load_state(learner, read_last(tmp_path / "last.ckpt")[0])
    assert fresh.state_dict() == kept
