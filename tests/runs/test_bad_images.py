from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metricli import TrainReport, dry_run, validate
from metricli.errors import DataError
from tests.conftest import FIGURES
from tests.runs.conftest import JUDGED, LABELS, Listener, assert_same_weights, write_table

Fit = Callable[..., TrainReport]
SKIP = "data.on_bad_image=skip"


@pytest.fixture
def images(spec: dict[str, Any], tmp_path: Path) -> Callable[..., list[Path]]:
    """Give the spec a copy of its images, in which the first few of a label are broken."""
    shutil.copytree(FIGURES.parent / "images", tmp_path / "images")
    table = write_table(tmp_path / "t.csv", LABELS, JUDGED)
    spec["data"] = {"table": str(table)}

    def break_some(label: str, count: int = 1) -> list[Path]:
        with table.open(newline="") as file:
            paths = [tmp_path / row["path"] for row in csv.DictReader(file) if row["label"] == label]
        for path in paths[:count]:
            path.write_bytes(path.read_bytes()[:60])
        return paths[:count]

    return break_some


def relative(paths: list[Path]) -> list[str]:
    return [f"images/{path.name}" for path in paths]


def test_training_stops_at_a_bad_image_by_name(fit: Fit, images: Any) -> None:
    (path,) = images("arc_plain")
    with pytest.raises(DataError) as caught:
        fit()
    assert caught.value.message.startswith(f"cannot read image '{path}': ")
    assert caught.value.hint == "repair or remove it, or set data.on_bad_image=skip"
    assert caught.value.exit_code == 3


def test_training_goes_on_with_others_of_the_label(fit: Fit, images: Any) -> None:
    paths = images("arc_plain", count=2)
    listener = Listener()
    report = fit(SKIP, "training.epochs=4", reporter=listener)
    assert sorted(report.skipped) == relative(paths)
    named = [
        message for message in listener.warned if "; another image takes its place, of its label" in message
    ]
    assert len(named) == 2, "each is said once, however often it comes"
    assert all(step["images"] == 6 for step in listener.steps)
    assert_same_weights(report.last_ckpt, fit(SKIP, "training.epochs=4").last_ckpt)


def test_a_resumed_run_remembers_what_was_skipped(fit: Fit, images: Any) -> None:
    from metricli.errors import Interrupted

    paths = images("arc_plain", count=2)
    with pytest.raises(Interrupted) as caught:
        fit(SKIP, "training.epochs=4", reporter=Listener(stop_after=6))
    report = fit(SKIP, "training.epochs=4", resume=caught.value.hint.rpartition(" ")[2])
    assert sorted(report.skipped) == relative(paths)


def test_a_label_without_a_readable_image_gives_its_place_to_others(fit: Fit, images: Any) -> None:
    paths = images("arc_plain", count=4)
    listener = Listener()
    report = fit(SKIP, reporter=listener)
    assert {step["images"] for step in listener.steps} == {6}
    assert sorted(report.skipped) == relative(paths)


def test_a_batch_without_a_readable_image_stops(fit: Fit, spec: dict[str, Any], images: Any) -> None:
    for label in LABELS:
        images(label, count=4)
    with pytest.raises(DataError) as caught:
        fit(SKIP)
    message = "no image can be read for 6 places of a batch: cannot read image "
    assert caught.value.message.startswith(message)
    with pytest.raises(DataError) as caught:
        dry_run(spec, [SKIP])
    assert caught.value.message.startswith(message)


def test_evaluation_leaves_bad_images_out_and_counts_them(fit: Fit, images: Any) -> None:
    report = fit()
    paths = images("zed_dotted", count=2)
    with pytest.raises(DataError, match=r"cannot read image .*zed_dotted"):
        validate(ckpt=report.best_ckpt)
    listener = Listener()
    found = validate(ckpt=report.best_ckpt, overrides=[SKIP], reporter=listener)
    assert found.skipped == relative(paths)
    with (paths[0].parents[1] / "t.csv").open(newline="") as file:
        judged = [row for row in csv.DictReader(file) if row["split"] == "validation"]
    left = [row for row in judged if row["path"] not in relative(paths)]
    assert found.queries == sum(row["is_query"] == "true" for row in left)
    assert found.gallery == sum(row["is_gallery"] == "true" for row in left)
    shown = ", ".join(map(repr, relative(paths)))
    assert listener.warned[-1] == f"2 of {len(judged)} images could not be read and were skipped: {shown}"
    again = fit(SKIP)
    assert again.skipped == relative(paths)
    assert again.metrics == validate(ckpt=again.best_ckpt).metrics
