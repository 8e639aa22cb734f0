"""A table of forty small figures, runs over it that take a fraction of a second, and what they left."""

from __future__ import annotations

import copy
import csv
import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from metricli import TrainReport, train
from metricli.components.tensorfile import read_tensor_file
from metricli.reporter import SilentReporter
from tests.conftest import FIGURES, TINY

LABELS = ["arc_plain", "hexagon_hollow", "plus_dotted", "ring_striped", "star4_plain", "tee_plain"]
JUDGED = ["plus_plain", "ring_plain", "tee_hollow", "zed_dotted"]


class Listener(SilentReporter):
    """Keeps what was said, and can stop the run after a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.steps: list[dict[str, float]] = []
        self.epochs: list[dict[str, Any]] = []
        self.stop_after = stop_after

    def say(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)

    def advance(self, amount: int, values: Mapping[str, float] | None = None) -> None:
        if values is None:
            return
        self.steps.append(dict(values))
        if len(self.steps) == self.stop_after:
            signal.raise_signal(signal.SIGTERM)

    def epoch(self, row: Mapping[str, float | int | str]) -> None:
        self.epochs.append(dict(row))


def write_table(path: Path, labels: list[str], judged: list[str], per_label: int = 4) -> Path:
    """A table of the first few figures of some train and some validation labels."""
    with FIGURES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = []
    for label in labels + judged:
        own = [row for row in rows if row["label"] == label and not row["x_1"] and not row["sequence"]]
        kept += own[:per_label]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(kept)
    return path


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six train labels and four validation labels of four images each."""
    return write_table(tmp_path_factory.mktemp("table") / "figures.csv", LABELS, JUDGED)


def spec_over(table: Path) -> dict[str, Any]:
    """Two epochs of two steps of six images."""
    found = copy.deepcopy(TINY)
    found["data"] = {"table": str(table), "root": str(FIGURES.parent)}
    found["sampler"] = {"name": "balanced", "n_labels": 3, "n_instances": 2}
    found["extractor"]["dim"] = 8
    return found


@pytest.fixture
def spec(table: Path) -> dict[str, Any]:
    """The spec of most runs here."""
    return spec_over(table)


@pytest.fixture(scope="session")
def whole(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainReport]:
    """The report of an uninterrupted run with overrides, made once; nobody changes its directory."""
    done: dict[tuple[str, ...], TrainReport] = {}

    def run(*overrides: str) -> TrainReport:
        if overrides not in done:
            place = tmp_path_factory.mktemp("whole") / "run"
            done[overrides] = train(spec_over(table), overrides, run_dir=place)
        return done[overrides]

    return run


@pytest.fixture
def fit(spec: dict[str, Any], tmp_path: Path) -> Callable[..., TrainReport]:
    """Train on the spec with overrides, each time in a directory of its own unless one is given."""
    count = 0

    def run(*overrides: str, **options: Any) -> TrainReport:
        nonlocal count
        count += 1
        if "run_dir" not in options and "resume" not in options:
            options["run_dir"] = tmp_path / f"run{count}"
        return train(copy.deepcopy(spec), overrides, **options)

    return run


def tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    return read_tensor_file(path)[0]


def meta(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint."""
    return read_tensor_file(path)[1]


def lines(report: TrainReport, **where: Any) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that have these values."""
    text = (report.run_dir / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]


def assert_same_weights(one: Path, two: Path) -> None:
    """To the bit."""
    left, right = tensors(one), tensors(two)
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert tensor.numpy().tobytes() == right[name].numpy().tobytes(), name
