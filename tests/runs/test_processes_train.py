"""A run of several processes is the run of one: its numbers, its files, its order of images, its resume."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from metricli import train
from metricli.components.dataset import ImageDataset
from metricli.errors import DataError, Interrupted, MetricliError
from metricli.runs.checkpoints import read_best
from metricli.runs.learner import Learner
from tests.runs.conftest import spec_over, tensors
from tests.worlds import Worlds

pytestmark = pytest.mark.xdist_group("worlds")

DOUBLE = ("training.precision=fp64", "training.epochs=3")
VARIANTS = {
    "plain": (),
    "a bank, EMA": ("loss.memory={size: 10}", "training.ema={decay: 0.5}", "training.grad_clip_norm=0.5"),
    "arcface": ("loss=arcface", "sampler=null", "training.batch_size=7", "extractor.bnneck=true"),
}


class Listening:
    """A reporter that keeps every word."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def say(self, message: str) -> None:
        self.words.append(message)

    def warn(self, message: str) -> None:
        self.words.append(f"warning: {message}")

    def begin(self, *_args: Any) -> None: ...
    def advance(self, *_args: Any) -> None: ...
    def end(self) -> None: ...
    def epoch(self, _row: Any) -> None: ...


def run(
    spec: dict[str, Any],
    place: Path,
    overrides: tuple[str, ...],
    stop_after: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What a run gives in one process: its rows in order, its words, its report or its error."""
    rows: list[tuple[int, int, int]] = []
    read, step, heard = ImageDataset.__getitem__, Learner.step, Listening()

    def noted(dataset: ImageDataset, key: Any) -> Any:
        if isinstance(key, tuple):
            rows.append((key.row, key.epoch, key.position))
        return read(dataset, key)

    def interrupted(learner: Learner, batch: Any, number: int) -> Any:
        if number == stop_after and learner.context.world.rank == learner.context.world.size - 1:
            signal.raise_signal(signal.SIGTERM)
        return step(learner, batch, number)

    ImageDataset.__getitem__, Learner.step = noted, interrupted  # type: ignore[method-assign]
    try:
        where = {} if "resume" in options else {"run_dir": place}
        report = train(spec, overrides, reporter=heard, **where, **options)
        error = None
    except MetricliError as failure:
        report, error = None, failure
    finally:
        ImageDataset.__getitem__, Learner.step = read, step  # type: ignore[method-assign]
    return {"rows": rows, "words": heard.words, "report": report, "error": error}


def jsonl(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def assert_same_lines(one: list[dict[str, Any]], many: list[dict[str, Any]], tolerance: float = 1e-6) -> None:
    assert len(one) == len(many)
    for expected, found in zip(one, many, strict=True):
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            if isinstance(value, float):
                assert found[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key
            else:
                assert found[key] == value, key


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_epochs_are_the_same(worlds: Worlds, table: Path, tmp_path: Path, variant: str) -> None:
    overrides = (*DOUBLE, *VARIANTS[variant])
    one = run(spec_over(table), tmp_path / "one", overrides)
    assert one["error"] is None
    expected = jsonl(tmp_path / "one")
    for size in (2, 3):
        place = tmp_path / f"of{size}"
        told = worlds.run(size, run, spec_over(table), place, overrides)
        assert_same_lines(expected, jsonl(place))
        seen = [row for found in told for row in found["rows"]]
        assert Counter(seen) == Counter(one["rows"]), "each image once, with the same augmentation"
        assert not any(found["words"] for found in told[1:]), "one process speaks"
        assert all(found["report"].metrics == told[0]["report"].metrics for found in told)
        best, again = (tensors(at / "checkpoints" / "best.ckpt") for at in (tmp_path / "one", place))
        for name, weight in best.items():
            assert (weight - again[name]).abs().max() < 1e-6, name
    orders = {epoch: [row for row, at, _ in one["rows"] if at == epoch] for epoch in range(3)}
    assert len({tuple(order) for order in orders.values()}) == 3, "epochs differ from each other"


@pytest.mark.parametrize(("before", "after"), [(2, 2), (3, 1), (1, 2)])
def test_a_stopped_run_goes_on(worlds: Worlds, table: Path, tmp_path: Path, before: int, after: int) -> None:
    """A signal to the last process alone stops them all at one step, and any number goes on."""
    overrides = (*DOUBLE, *VARIANTS["a bank, EMA"])
    one, place = tmp_path / "one", tmp_path / "stopped"
    run(spec_over(table), one, overrides)
    stopped = (
        [run(spec_over(table), place, overrides, 2)]
        if before == 1
        else worlds.run(before, run, spec_over(table), place, overrides, 2)
    )
    for found in stopped:
        assert isinstance(found["error"], Interrupted)
        assert found["error"].exit_code == 143
        assert "stopped by a signal after step 3, saved in" in str(found["error"])
    assert len(jsonl(place)) < len(jsonl(one))
    if after == 1:
        run(spec_over(table), place, overrides, resume=str(place))
    else:
        worlds.run(after, resumed, spec_over(table), place, overrides)
    assert_same_lines(jsonl(one), jsonl(place))


def resumed(spec: dict[str, Any], place: Path, overrides: tuple[str, ...]) -> Any:
    found = run(spec, place, overrides, resume=str(place))
    assert found["error"] is None, found["error"]
    return None


def broken(table: Path, folder: Path) -> dict[str, Any]:
    """The spec over a copy of the table, of whose train images one cannot be read."""
    lines = table.read_text().splitlines()
    at = lines[0].split(",").index("path")
    first = next(i for i, line in enumerate(lines) if ",train" in line)
    cells = lines[first].split(",")
    cells[at] = str(folder / "broken.png")
    (folder / "broken.png").write_bytes(b"no image")
    lines[first] = ",".join(cells)
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    spec = spec_over(folder / "table.csv")
    spec["data"]["allow_outside_root"] = True
    return spec


def test_an_image_that_one_cannot_read_stops_all(worlds: Worlds, table: Path, tmp_path: Path) -> None:
    told = worlds.run(2, run, broken(table, tmp_path), tmp_path / "run", DOUBLE)
    for found in told:
        assert isinstance(found["error"], DataError)
        assert "broken.png" in str(found["error"])


def test_an_image_that_one_cannot_read_is_replaced(worlds: Worlds, table: Path, tmp_path: Path) -> None:
    overrides = (*DOUBLE, "data.on_bad_image=skip")
    one = run(broken(table, tmp_path), tmp_path / "one", overrides)
    told = worlds.run(2, run, broken(table, tmp_path), tmp_path / "two", overrides)
    assert_same_lines(jsonl(tmp_path / "one"), jsonl(tmp_path / "two"))
    assert told[0]["report"].skipped == one["report"].skipped != []
    assert [word for word in told[0]["words"] if "broken.png" in word]


def test_more_processes_than_images_are_refused(worlds: Worlds, table: Path, tmp_path: Path) -> None:
    overrides = ("sampler=null", "training.batch_size=2", "loss=arcface")
    for found in worlds.run(3, run, spec_over(table), tmp_path / "run", overrides):
        assert found["error"].exit_code == 2
        assert "a batch of 2 images cannot be dealt to 3 processes" in str(found["error"])
    assert not (tmp_path / "run").exists()


def test_one_process_writes(worlds: Worlds, table: Path, tmp_path: Path) -> None:
    """A directory that holds a run is refused by all; the first one's files stay whole."""
    place = tmp_path / "run"
    worlds.run(2, run, spec_over(table), place, ("training.epochs=1",))
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert read_best(place / "checkpoints" / "best.ckpt").epoch == 1
    for found in worlds.run(2, run, spec_over(table), place, ("training.epochs=1",)):
        assert found["error"].exit_code == 2
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
