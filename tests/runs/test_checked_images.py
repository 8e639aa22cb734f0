"""A data set with broken images: found before the first step, known the next time, and no row ever moves."""

from __future__ import annotations

import copy
import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from metricli import dry_run, inspect_dataset, predict, train, validate
from metricli.components.dataset import Batch, ImageDataset
from metricli.data import looking
from metricli.errors import DataError
from metricli.runs.learner import Learner
from tests.conftest import FIGURES, TINY
from tests.runs.conftest import Listener
from tests.worlds import Worlds

SKIP, DEEP = "data.on_bad_image=skip", "data.check=deep"
OLD = 1_600_000_000


class Hearing(Listener):
    """Also keeps what was counted."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[tuple[str, int | None, str]] = []

    def begin(self, name: str, total: int | None, unit: str) -> None:
        self.counted.append((name, total, unit))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METRICLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    """A copy of the figures that is a while old."""
    shutil.copytree(FIGURES.parent / "images", tmp_path / "set" / "images")
    shutil.copy(FIGURES, tmp_path / "set" / "df.csv")
    for path in (tmp_path / "set" / "images").iterdir():
        os.utime(path, (OLD, OLD))
    return tmp_path / "set" / "df.csv"


def lines_of(split: str | None = None) -> list[dict[str, str]]:
    with FIGURES.open(newline="") as file:
        return [line for line in csv.DictReader(file) if split in (None, line["split"])]


def break_all(table: Path, paths: list[str]) -> None:
    for path in paths:
        file = table.parent / path
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        os.utime(file, (OLD, OLD))


def over(table: Path) -> dict[str, Any]:
    return copy.deepcopy(TINY) | {"data": {"table": str(table)}}


def row_of(path: str) -> int:
    return 1 + [line["path"] for line in lines_of()].index(path)


@pytest.fixture
def read() -> Iterator[list[int]]:
    """The rows whose images were read for a batch."""
    rows: list[int] = []
    really = ImageDataset.__getitem__

    def noted(dataset: ImageDataset, key: Any) -> Any:
        rows.append(0)
        return really(dataset, key)

    with mock.patch.object(ImageDataset, "__getitem__", noted):
        yield rows


def batches_of(table: Path, place: Path, *overrides: str) -> tuple[Any, list[Batch]]:
    """The report of a run and what it was trained on."""
    found: list[Batch] = []
    step = Learner.step

    def noted(learner: Learner, batch: Batch, number: int) -> Any:
        found.append(copy.deepcopy(batch))
        return step(learner, batch, number)

    with mock.patch.object(Learner, "step", noted):
        return train(over(table), overrides, run_dir=place), found


def assert_same_rows(folder: Path, size: int, bad: list[str]) -> None:
    """The features of a broken set are those of the sound one, to the bit unless their batch is shorter."""
    expected, found = np.load(folder / f"sound{size}.npy"), np.load(folder / f"torn{size}.npy")
    with (folder / f"torn{size}.index.csv").open(newline="") as file:
        index = list(csv.DictReader(file))
    assert [line["path"] for line in index] == [line["path"] for line in lines_of()]
    is_bad = np.array([line["path"] in bad for line in index])
    assert [line["status"] == "skipped" for line in index] == is_bad.tolist()
    assert len(found) == len(index)
    assert np.isnan(found[is_bad]).all()
    assert np.abs(found - expected)[~is_bad].max() < 1e-6
    is_short = np.isin(np.arange(len(index)) // size, np.flatnonzero(is_bad) // size)
    same = (found == expected).all(axis=1)
    assert same[~is_bad if size == 1 else ~is_short].all()
    assert (~is_short).sum() > 100


@pytest.mark.parametrize(("workers", "sizes"), [(0, (1, 16)), (2, (16,))])
def test_rows_never_move(
    figures: Path, trained: Any, tmp_path: Path, workers: int, sizes: tuple[int, ...]
) -> None:
    words = (f"training.num_workers={workers}", "training.epochs=1")
    _, sound = batches_of(figures, tmp_path / "sound", "training.epochs=1")
    rows = lines_of("train")
    names = sorted({line["label"] for line in rows})
    drawn = [rows[int(sound[0].rows[0])]["path"], rows[int(sound[1].rows[5])]["path"]]
    judged = next(line["path"] for line in lines_of("validation"))
    bad = [*drawn, judged]
    ckpt, options = trained.best_ckpt, (SKIP, f"prediction.num_workers={workers}")
    for size in sizes:
        sized = (f"prediction.batch_size={size}",)
        predict(overrides=sized, ckpt=ckpt, data=figures, out=tmp_path / f"sound{size}.npy")

    break_all(figures, bad)
    report, torn = batches_of(figures, tmp_path / "torn", *words, SKIP)
    assert sorted(report.skipped) == sorted(bad)
    replaced = 0
    for before, after in zip(sound, torn, strict=True):
        assert len(before.rows) == len(after.rows) == len(after.images)
        for place, row in enumerate(before.rows.tolist()):
            taken = int(after.rows[place])
            assert names[int(after.labels[place])] == rows[taken]["label"] == rows[row]["label"]
            if rows[row]["path"] in bad:
                replaced += 1
                assert rows[taken]["path"] not in bad
            else:
                assert taken == row
                assert torch.equal(after.images[place], before.images[place])
    assert replaced == 2

    for size in sizes:
        sized = (*options, f"prediction.batch_size={size}")
        told = predict(overrides=sized, ckpt=ckpt, data=figures, out=tmp_path / f"torn{size}.npy")
        assert sorted(set(told.skipped)) == sorted(bad)
        assert_same_rows(tmp_path, size, bad)

    told = validate(overrides=(SKIP,), ckpt=ckpt, data=figures)
    assert set(told.skipped) == {judged}
    with pytest.raises(DataError) as caught:
        predict(overrides=options[1:], ckpt=ckpt, data=figures, out=tmp_path / "not.npy")
    first = min(bad, key=row_of)
    assert caught.value.message == f"cannot read image '{figures.parent / first}': image file is truncated"


def test_a_deep_check_stops_before_the_first_step(figures: Path, tmp_path: Path, read: list[int]) -> None:
    paths = [lines_of("train")[3]["path"], lines_of("validation")[2]["path"]]
    break_all(figures, paths)
    hearing = Hearing()
    reasons = [
        f"cannot read image '{figures.parent / path}': image file is truncated (row {row_of(path)})"
        for path in sorted(paths, key=row_of)
    ]
    message = "\n  ".join([f"{figures}: 2 rows name images that cannot be read", *reasons])
    for verb in (
        lambda: train(over(figures), [DEEP], run_dir=tmp_path / "run", reporter=hearing),
        lambda: dry_run(over(figures), [DEEP]),
        lambda: train(over(figures), run_dir=tmp_path / "run"),  # by now they are known
        lambda: dry_run(over(figures)),
    ):
        with pytest.raises(DataError) as caught:
            verb()
        assert caught.value.message == message
        assert caught.value.hint == "repair or remove them, or set data.on_bad_image=skip"
        assert caught.value.exit_code == 3
    images = len({line["path"] for line in lines_of()})
    assert hearing.counted == [("decode images", images, "image")]
    assert read == []
    assert not (tmp_path / "run").exists()


def test_a_deep_check_lists_all_that_will_be_skipped(figures: Path, tmp_path: Path) -> None:
    paths = [line["path"] for line in lines_of("train")[3:60:12]] + [lines_of("validation")[2]["path"]]
    break_all(figures, paths)
    hearing = Hearing()
    report = train(over(figures), [DEEP, SKIP], run_dir=tmp_path / "run", reporter=hearing)
    assert sorted(report.skipped) == sorted(paths)
    (warning,) = [message for message in report.warnings if "skipped" in message]
    assert warning.startswith(
        f"6 images are to be skipped: cannot read image '{figures.parent / paths[0]}': "
    )
    assert warning.endswith("; ...")
    assert warning.count("cannot read") == 3
    assert [word for word in hearing.warned if "another image takes its place" in word] == []
    plain = train(over(figures), [SKIP], run_dir=tmp_path / "plain")
    assert set(plain.skipped) < set(paths), "those that were drawn"
    assert plain.metrics == report.metrics
    with pytest.raises(DataError, match="6 rows name images"):
        train(over(figures), run_dir=tmp_path / "not")


def test_what_is_known_to_be_broken_stops_until_it_is_mended(
    figures: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_train, of_validation = lines_of("train")[3]["path"], lines_of("validation")[2]["path"]
    break_all(figures, [of_train, of_validation])
    assert inspect_dataset(figures, deep=True).errors == 1
    monkeypatch.setattr(looking, "open_image", lambda *_words, **_more: pytest.fail("it is known"))
    ckpt = trained.best_ckpt
    with pytest.raises(DataError, match=rf"1 row names an image .*{of_validation}"):
        validate(ckpt=ckpt, data=figures)
    with pytest.raises(DataError, match="2 rows name images that cannot be read"):
        predict(ckpt=ckpt, data=figures, out=tmp_path / "f.npy")
    with pytest.raises(DataError, match="2 rows name images that cannot be read"):
        predict(overrides=(DEEP,), ckpt=ckpt, data=figures, out=tmp_path / "f.npy")
    assert not list(tmp_path.glob("f.*"))
    shutil.copy(FIGURES.parent / of_validation, figures.parent / of_validation)
    assert validate(ckpt=ckpt, data=figures).skipped == []
    assert set(predict(overrides=(SKIP,), ckpt=ckpt, data=figures, out=tmp_path / "f.npy").skipped) == {
        of_train
    }


def test_nothing_is_asked_where_nothing_is_known(
    figures: Path, trained: Any, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("metricli.data.bad_rows.is_unchanged", lambda file, _entry: asked.append(file))
    validate(ckpt=trained.best_ckpt, data=figures)
    assert asked == []
    assert not cache.exists()


def checked(spec: dict[str, Any], place: Path, overrides: tuple[str, ...], cache: Path) -> Any:
    """What one process of several is told."""
    os.environ["METRICLI_CACHE"] = str(cache)
    looks: list[int] = []
    really = looking.look
    with mock.patch("metricli.data.bad_rows.look", lambda *words: looks.append(1) or really(*words)):
        try:
            report = train(spec, overrides, run_dir=place)
        except DataError as error:
            return len(looks), error.message, []
    return len(looks), "", report.skipped


@pytest.mark.xdist_group("worlds")
def test_the_main_process_looks_for_all(worlds: Worlds, figures: Path, tmp_path: Path, cache: Path) -> None:
    path = lines_of("train")[3]["path"]
    break_all(figures, [path])
    told = worlds.run(2, checked, over(figures), tmp_path / "run", (DEEP,), cache)
    assert [looks for looks, _, _ in told] == [1, 0]
    assert told[0][1] == told[1][1] != ""
    told = worlds.run(2, checked, over(figures), tmp_path / "run", (), cache)
    assert [looks for looks, _, _ in told] == [0, 0]
    assert path in told[0][1]
    assert path in told[1][1]
