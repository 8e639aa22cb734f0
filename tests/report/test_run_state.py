"""The page of a run that was stopped, killed, damaged or short: what it says is of one state, and true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import metricli
from metricli.errors import DataError, Interrupted
from metricli.pages.state import state_of
from tests.report.conftest import Seen
from tests.report.pages import Page
from tests.runs.conftest import Listener, write_table


def line(epoch: int, split: str, **values: Any) -> dict[str, Any]:
    return {"step": 2 * epoch, "epoch": epoch, "split": split, **values}


def judged(epoch: int, value: float | None, **more: Any) -> list[dict[str, Any]]:
    return [
        line(epoch, "train_epoch", loss=1 / epoch, **more),
        line(epoch, "validation", category="OVERALL", **{"map@r": value}),
        line(epoch, "validation", category="ring", **{"map@r": value and value / 2}),
    ]


def run_of(folder: Path, rows: list[dict[str, Any]], **validation: Any) -> Path:
    """A run directory of six epochs of two steps, without a report."""
    folder.mkdir(exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    spec = {
        "name": "made",
        "training": {"epochs": 6, "min_delta": 0.0},
        "validation": {"monitor": "map@r", "every_n_epochs": 1, **validation},
    }
    (folder / "spec.resolved.yaml").write_text(yaml.safe_dump(spec))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def report_of(run: Path, epoch: int, **more: Any) -> None:
    document = {
        "metrics": {"OVERALL": {"map@r": 0.125}}, "intervals": {}, "best_epoch": epoch, "epochs": epoch,
        "steps": 2 * epoch, "monitor": "map@r", "stopped": "", "seconds": 5.0, "warnings": ["an old one"],
        "skipped": ["bad.jpg"], **more,
    }  # fmt: skip
    (run / "report.json").write_text(json.dumps(document))


def page_of(folder: Path) -> Page:
    return Page(metricli.report(folder).read_text(encoding="utf-8"))


FOUR = [row for epoch, value in enumerate((0.25, 0.5, 0.75, 0.625), 1) for row in judged(epoch, value)]


def test_a_report_of_an_earlier_stop_is_not_mixed_with_a_later_log(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", FOUR)
    report_of(run, 1)
    page = page_of(run)
    assert page.tables["t-metrics"].rows == [["OVERALL", "0.7500"], ["ring", "0.3750"]]
    assert re.search(r"best epoch\s*3\s*by map@r", page.text)
    assert "4 of 6" in page.text
    assert re.search(r"steps\s*8", page.text)
    assert "Of epoch 3, the best." in page.text
    assert "0.1250" not in page.text
    assert "an old one" in page.text
    assert "bad.jpg" in page.text
    assert "the run is not finished: it was killed, or is still under way" in page.text
    report_of(run, 4)
    assert page_of(run).tables["t-metrics"].rows == [["OVERALL", "0.1250"]]


def test_a_report_of_what_was_gone_back_from_or_is_extended_is_not_of_now(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", FOUR)
    for epochs, stopped in ((5, ""), (4, "epochs")):
        report_of(run, 4, epochs=epochs, steps=9, stopped=stopped)
        page = page_of(run)
        assert page.tables["t-metrics"].rows[0] == ["OVERALL", "0.7500"]
        assert "not finished" in page.text
        assert "all done" not in page.text
    report_of(run, 4, stopped="early stopping")
    assert "the run is not finished" not in page_of(run).text


@pytest.mark.parametrize(
    ("values", "more", "monitor", "epoch"),
    [
        ([0.5, 0.25, 0.5], {}, "map@r", 1),
        ([0.5, 0.25, 0.375], {}, "fnmr@0.1", 2),
        ([0.5, 0.25, 0.375], {}, "loss", 3),
        ([None, 0.25, 0.125], {}, "map@r", 2),
        ([None, None, None], {}, "map@r", 3),
        ([0.5, 0.5625, 0.625], {"min_delta": 0.1}, "map@r", 3),
        ([0.5, 0.5625, 0.59375], {"min_delta": 0.1}, "map@r", 1),
    ],
)
def test_the_best_epoch_of_a_log(
    values: list[float | None], more: dict[str, Any], monitor: str, epoch: int, tmp_path: Path
) -> None:
    rows = [row for place, value in enumerate(values, 1) for row in judged(place, value)]
    for row in rows:
        if "map@r" in row:
            row[monitor] = row["map@r"]
    spec = {"training": {"epochs": 6, **more}, "validation": {"monitor": monitor, "every_n_epochs": 1}}
    assert state_of(tmp_path, spec, rows).document["best_epoch"] == epoch


def test_without_judged_rows_the_newest_epoch_is_best(tmp_path: Path) -> None:
    rows = [line(epoch, "train_epoch", loss=1.0) for epoch in (1, 2, 3)]
    spec = {"training": {"epochs": 6}, "validation": {"monitor": "map@r", "every_n_epochs": 2}}
    assert state_of(tmp_path, spec, rows).document["best_epoch"] == 2
    assert state_of(tmp_path, spec, rows[:1]).document["best_epoch"] == 0


def test_a_page_offers_checkpoints_that_are_there(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", FOUR)
    told = {"best_ckpt": str(run / "checkpoints" / "best.ckpt")}
    report_of(run, 4, **told)
    text = page_of(run).text
    assert "best.ckpt" not in text.partition("How to make it again\n")[2]
    assert f"--run-dir {run} --resume auto" in text
    for name in ("best", "last"):
        (run / "checkpoints" / f"{name}.ckpt").touch()
    for _ in range(2):
        text = page_of(run).text
        assert f"metricli validate --ckpt {run}/checkpoints/best.ckpt" in text
        assert f"spec.resolved.yaml --resume {run}\n" in text
        (run / "report.json").unlink(missing_ok=True)  # by a kill


def test_an_interrupted_run_says_how_it_ended(tiny: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        metricli.train(tiny, run_dir=run, reporter=Listener(stop_after=1))
    words = f"the run is not finished: stopped by a signal after step 1, saved in {run}"
    before = Page((run / "report.html").read_text(encoding="utf-8"))
    for page in (before, page_of(run)):
        assert re.search(re.escape(words) + "$", page.text, re.MULTILINE)
        assert "metricli validate" not in page.text
        assert f"--resume {run}\n" in page.text
    with (run / "log.txt").open("a") as file:
        file.write("2026-01-01T00:00:00Z going on with it at epoch 1, step 2\n")
        file.write("2026-01-01T00:00:01Z warning: a late one\n")
    (run / "report.json").unlink()
    page = page_of(run)
    assert "it was killed, or is still under way" in page.text
    assert "a late one" in page.text


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({"seconds": "x"}, "seconds should be a valid number"),
        ({"metrics": []}, "metrics should be a valid dictionary"),
        ({"metrics": {"OVERALL": {"a": "b"}}}, "metrics.OVERALL.a should be a valid number"),
        ({"intervals": {"OVERALL": {"a": [1]}}}, "intervals.OVERALL.a List should have at least 2 items"),
        ({"warnings": "x"}, "warnings should be a valid list"),
        ({"best_epoch": {}}, "best_epoch should be a valid integer"),
    ],
)
def test_a_report_of_other_types_is_one_line(document: dict[str, Any], where: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", FOUR)
    (run / "report.json").write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        metricli.report(run)
    assert caught.value.message.startswith(f"'{run}/report.json' is damaged: {where}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "document", [{"seconds": "x"}, {"queries_without_match": []}, {"comparison": {"differences": [1]}}]
)
def test_metrics_of_other_types_are_one_line(document: dict[str, Any], hostile: Seen, tmp_path: Path) -> None:
    (tmp_path / "pictures.json").write_bytes((hostile.folder / "pictures.json").read_bytes())
    (tmp_path / "metrics.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"metrics.json' is damaged: .*validate again with --out"):
        metricli.report(tmp_path)


def test_a_spec_and_a_log_of_other_types_have_a_page(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [])
    (run / "spec.resolved.yaml").write_text("training: 3\nvalidation: [1]\n")
    (run / "metrics.jsonl").write_text(
        '{"step": "x", "epoch": [], "split": "train_epoch"}\n'
        '{"step": 1, "epoch": true, "split": "validation"}\n'
        f'{{"step": 1{"0" * 400}, "epoch": 1, "split": "train", "loss": 1{"0" * 400}}}\n{"[" * 100_000}\n'
    )
    assert "not finished" in page_of(run).text


def test_damaged_pictures_cost_a_run_no_page(hostile: Seen, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", FOUR)
    (run / "checkpoints" / "best.ckpt").touch()
    whole = json.loads((hostile.folder / "pictures.json").read_text()) | {"epoch": 3}
    (run / "pictures.json").write_text(json.dumps(whole))
    page = page_of(run)
    assert "t-queries" in page.tables
    assert "the metrics of epoch" not in page.text
    (run / "pictures.json").write_text(json.dumps(whole | {"epoch": 4}))
    assert "the pictures are of epoch 4, the metrics of epoch 3" in page_of(run).text
    bars = whole["distances"]
    for damage in (
        {"items": 3},
        {"distances": bars | {"genuine": bars["genuine"][:-1]}},
        {"distances": bars | {"edges": bars["edges"][::-1]}},
        {"map": whole["map"] | {"scores": "AAAA"}},
        {"map": whole["map"] | {"scores": "é"}},
        {"columns": ["one"]},
    ):
        (run / "pictures.json").write_text(json.dumps(whole | damage))
        page = page_of(run)
        assert page.tables["t-metrics"].rows[0] == ["OVERALL", "0.7500"]
        assert "t-queries" not in page.tables
        assert re.search(r"pictures.json' is damaged, .*; this page has no pictures; ", page.text)
        assert f"`metricli validate --ckpt {run}/checkpoints/best.ckpt --out DIR`" in page.text


def test_a_short_run_has_a_loss_curve_by_epoch(tmp_path: Path) -> None:
    text = page_of(run_of(tmp_path / "run", FOUR)).text
    assert "Loss by epoch" in text
    assert "Loss by step" not in text
    rows = [*FOUR, {"step": 5, "epoch": 3, "split": "train", "loss": 0.5}]
    text = page_of(run_of(tmp_path / "run", rows)).text
    assert "Loss by step" in text
    assert "Loss by epoch" not in text


def test_the_note_below_metrics_knows_where_queries_search(tmp_path: Path) -> None:
    everywhere = "a category's queries search the whole gallery"
    own = "each query searches the gallery items of its own category alone"
    text = page_of(run_of(tmp_path / "run", FOUR)).text
    assert (everywhere in text, own in text) == (True, False)
    text = page_of(run_of(tmp_path / "run", FOUR, search_within="category")).text
    assert (everywhere in text, own in text) == (False, True)


def test_no_query_with_a_match_still_has_a_page(tmp_path: Path) -> None:
    table = tmp_path / "df.csv"
    rows = "".join(f"{name},{name}.jpg,validation,True,True\n" for name in "abcd")
    table.write_text("label,path,split,is_query,is_gallery\n" + rows)
    report = metricli.evaluate(np.eye(4, dtype=np.float32), table)
    report.save(tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert "4 without a match" in page.text
    assert "Retrieval" not in page.text


def test_training_where_no_query_has_a_match_keeps_its_pictures(tiny: dict[str, Any], tmp_path: Path) -> None:
    train, alone = (tmp_path / name for name in ("train.csv", "alone.csv"))
    write_table(train, ["arc_plain", "star4_plain"], [])
    write_table(alone, [], ["plus_plain", "ring_plain", "tee_hollow"], per_label=1)
    rows = train.read_text().splitlines() + alone.read_text().splitlines()[1:]
    (tmp_path / "df.csv").write_text("\n".join(rows) + "\n")
    heard = Listener()
    tiny["data"] = {"table": str(tmp_path / "df.csv"), "root": str(Path(tiny["data"]["table"]).parent)}
    tiny["sampler"]["n_labels"] = 2
    metricli.train(tiny, ["training.epochs=1"], run_dir=tmp_path / "run", reporter=heard)
    assert not [message for message in heard.warned if "could not be" in message]
    assert (tmp_path / "run" / "pictures.json").is_file()


def test_the_command_of_saved_features_holds_absolute_paths(
    hostile: Seen, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("features.npy", hostile.embeddings)
    Path("df.csv").symlink_to(hostile.table)
    words = "data.table=df.csv validation.monitor=cmc@1 --features features.npy --out out"
    assert cli("validate", *words.split(), "--json").code == 0
    page = Page(Path("out/report.html").read_text(encoding="utf-8"))
    command = next(text for text in page.text.splitlines() if text.startswith("metricli validate "))
    assert f"data.table={Path('df.csv').absolute()} validation.monitor=cmc@1" in command
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = cli(*command.split()[1:], "--json")
    assert again.json["metrics"] == page.data["metrics"]
