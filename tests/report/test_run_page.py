"""The page of a run, of any state that a run is left in, and that of a table."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import metricli
from metricli import TrainReport
from metricli.errors import Interrupted
from metricli.pages.charts import Line, Mark, Point, bars, lines, points, ticks
from metricli.pages.render import safe_json, visible
from tests.conftest import FIGURES
from tests.report.conftest import LABELS, Seen, write_table
from tests.report.pages import Page
from tests.runs.conftest import Listener


def page_of(folder: Path) -> Page:
    return Page(metricli.report(folder).read_text(encoding="utf-8"))


@pytest.fixture
def run(trained: TrainReport, tmp_path: Path) -> Path:
    """A copy of the trained run; its checkpoints are empty."""
    ignored = shutil.ignore_patterns("checkpoints")
    copied = Path(shutil.copytree(trained.run_dir, tmp_path / "run", ignore=ignored))
    (copied / "checkpoints").mkdir()
    for name in ("best.ckpt", "last.ckpt"):
        (copied / "checkpoints" / name).touch()
    return copied


def test_training_leaves_a_page_with_the_numbers_of_its_report(trained: TrainReport) -> None:
    html = (trained.run_dir / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    table = page.tables["t-metrics"]
    assert [float(value) for value in table.numbers[0][1:] if value] == list(
        trained.metrics["OVERALL"].values()
    )
    assert page.data == json.loads(json.dumps(trained.to_dict()))
    assert "Metrics by epoch" in page.text
    assert "Loss by step" in page.text
    assert "2 of 2" in page.text
    assert "all done" in page.text
    assert f"metricli train {trained.run_dir}/spec.resolved.yaml" in page.text
    assert page.styles[0].count("data:image/webp") > 20
    spec = yaml.safe_load((trained.run_dir / "spec.resolved.yaml").read_text())
    assert all(f"{key}:" in page.text for key in spec)
    assert re.search(r"torch\s*[0-9]", page.text)


def test_the_command_on_the_page_makes_the_same_run(trained: TrainReport, cli: Any) -> None:
    page = Page((trained.run_dir / "report.html").read_text(encoding="utf-8"))
    words = next(line for line in page.text.splitlines() if line.startswith("metricli train ")).split()
    again = cli(*words[1:], "--json")
    assert again.code == 0
    assert again.json["metrics"] == json.loads(json.dumps(trained.to_dict()))["metrics"]


def test_a_page_is_made_again_alike(run: Path) -> None:
    before = (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    made = metricli.report(run).read_text(encoding="utf-8")
    first = json.loads((run / "report.json").read_text())["run_dir"]
    assert made.replace(str(run), first) == before


def test_a_killed_run_has_a_page_as_far_as_it_went(run: Path) -> None:
    (run / "report.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "ep')
    page = page_of(run)
    assert "not finished" in page.text
    assert f"--resume {run}" in page.text
    assert "Loss by step" in page.text
    (run / "pictures.json").unlink()
    (run / "metrics.jsonl").unlink()
    assert "0 of 2" in page_of(run).text


def test_an_interrupted_run_has_a_page_and_another_when_it_is_over(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        metricli.train(tiny, run_dir=tmp_path / "run", reporter=Listener(stop_after=3))
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "1 of 2" in page.text
    assert "not finished" in page.text
    assert f"--resume {tmp_path / 'run'}" in page.text
    assert "the pictures of retrieval are of epoch 1" in page.text
    assert page.tables["t-queries"].rows
    done = metricli.train(tiny, run_dir=tmp_path / "run", resume="auto")
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "2 of 2" in page.text
    assert "not finished" not in page.text
    assert page.data == json.loads(json.dumps(done.to_dict()))
    (tmp_path / "run" / "report.html").write_text(html, encoding="utf-8")  # a kill before the new one
    (tmp_path / "run" / "report.json").unlink()
    metricli.train(tiny, run_dir=tmp_path / "run", resume="auto")
    assert "all done" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_made_is_a_warning(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("metricli.runs.reporting.write_run_page", fail)
    monkeypatch.setattr("metricli.runs.reporting.pictures_of", fail)
    heard = Listener()
    metricli.train(tiny, ["training.epochs=1"], run_dir=tmp_path / "run", reporter=heard)
    assert heard.warned == [
        "the pictures of the report could not be kept: OSError: no room",
        "report.html could not be made: OSError: no room",
    ]


def test_words_of_a_log_are_not_trusted(run: Path) -> None:
    hostile = {"step": 1, "epoch": 1, "split": "train", LABELS[0]: 1.5, "loss": LABELS[1], "lr": float("inf")}
    hostile_group = {"step": 1, "epoch": 1, "split": "validation", "category": LABELS[1], "cmc@1": 0.5}
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n".join([json.dumps(hostile), json.dumps(hostile_group), "[1]", "null"]) + "\n")
    document = json.loads((run / "report.json").read_text())
    document |= {"warnings": [LABELS[0], *map(str, range(80))], "skipped": [LABELS[1]] * 300}
    (run / "report.json").write_text(json.dumps(document))
    page = page_of(run)
    assert len(page.scripts) == 2
    assert "img" not in page.tags
    assert "and 31 more" in page.text
    assert "300 could not be read; the first 200" in page.text


def test_report_on_the_command_line(run: Path, cli: Any) -> None:
    (run / "report.html").unlink()
    done = cli("report", run)
    assert (done.code, done.out.strip()) == (0, str(run / "report.html"))
    assert (run / "report.html").is_file()
    refused = cli("report", run.parent)
    assert refused.code == 3
    assert "is neither a run directory nor a folder of `metricli validate --out`" in refused.err
    assert "Traceback" not in refused.err


def test_validate_out_leaves_a_page_with_its_command(trained: TrainReport, cli: Any, tmp_path: Path) -> None:
    done = cli("validate", "validation.monitor=cmc@1", "--ckpt", trained.best_ckpt, "--out", "out", "--json")
    assert done.code == 0
    page = Page(Path("out/report.html").read_text(encoding="utf-8"))
    assert page.data["metrics"] == done.json["metrics"]
    command = next(line for line in page.text.splitlines() if line.startswith("metricli validate "))
    words = f"compute.device=cpu validation.monitor=cmc@1 --ckpt {trained.best_ckpt}"  # METRICLI_DEVICE
    assert command == f"metricli validate {words}"
    again = cli(*command.split()[1:], "--json")
    assert again.json["metrics"] == done.json["metrics"]


def test_no_torch_is_imported_for_a_page(run: Path) -> None:
    code = (
        "import sys; from metricli.cli.launch import run; code = run(['report', sys.argv[1]]); "
        "sys.exit(code or 9 * ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True).returncode == 0


def test_a_table_has_a_page(cli: Any) -> None:
    Path("made").mkdir()
    done = cli("inspect-dataset", FIGURES, "--html", "page.html", "--json")
    assert done.code == 0
    page = Page(Path("page.html").read_text(encoding="utf-8"))
    assert page.data == done.json
    splits = page.tables["t-splits"]
    assert [row[0] for row in splits.rows] == list(done.json["splits"])
    assert [int(numbers[1] or 0) for numbers in splits.numbers] == [
        split["rows"] for split in done.json["splits"].values()
    ]
    assert page.styles[0].count("data:image/webp") > 50
    assert f"metricli inspect-dataset {FIGURES} --html {Path('page.html').absolute()}" in page.text


def test_a_hostile_table_with_errors_has_a_page_without_images(tmp_path: Path, cli: Any) -> None:
    table = write_table(tmp_path / "hostile")
    with table.open("a", encoding="utf-8") as file:
        file.write("secret,../../../etc/passwd,validation,True,True,,,,,\n")
    done = cli("inspect-dataset", table, "--html", tmp_path / "page.html")
    assert done.code == 3
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "path-outside-root" in {row[1] for row in page.tables["t-findings"].rows}
    assert "data:image" not in page.styles[0]
    assert "no image of a table with errors is shown" in page.text
    assert "img" not in page.tags


def test_a_chart_is_where_its_numbers_are() -> None:
    chart = str(lines("loss", [Line("a", [0, 10], [1, 3]), Line("b", [5], [2])], "step"))
    spots = re.findall(r'<polyline class="line c0" points="([^"]+)"', chart)[0].split()
    (x0, y0), (x1, y1) = (map(float, spot.split(",")) for spot in spots)
    middle = re.findall(r'<circle class="dot c1" cx="([^"]+)" cy="([^"]+)"', chart)[0]
    assert (x0 + x1) / 2 == pytest.approx(float(middle[0]), abs=0.1)
    assert (y0 + y1) / 2 == pytest.approx(float(middle[1]), abs=0.1)
    assert y0 > y1
    assert lines("none", [Line("a", [1, 2], [float("nan"), float("inf")])], "step") is None
    long = str(lines("long", [Line("a", range(100_000), [7.0] * 100_000)], "step"))
    assert len(long) < 20_000


def test_bars_are_shares_and_marks_stand_at_their_value() -> None:
    chart = str(bars("d", [0.0, 0.5, 1.0], [("genuine", [3, 1])], [Mark("eer", 0.5), Mark("far", 9)], "x"))
    path = re.findall(r'<path class="bars genuine" d="([^"]+)"', chart)[0]
    ys = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
    base, high, low = ys[0], ys[1], ys[3]
    assert (base - high) == pytest.approx(3 * (base - low), rel=0.01)
    xs = [float(x) for x in re.findall(r"[ML]([\d.]+) ", path)]
    mark = float(re.findall(r'<path class="mark" d="M([\d.]+) ', chart)[0])
    assert mark == pytest.approx((xs[0] + xs[-1]) / 2, abs=0.1)
    assert "far" not in chart


def test_words_in_a_chart_are_escaped() -> None:
    for word in LABELS:
        chart = str(points(word, [Point(0, 0, 0, word), Point(1, 1, -1, word)]))
        page = Page(chart)
        assert set(page.tags) == {"svg", "title", "circle"}
        assert not [name for _, name, _ in page.attributes if name.startswith("on")]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7.9), (1e-9, 2e-9), (5e6, 5.1e6), (0, 60)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 9
    assert low - 1e-9 * abs(low) <= found[0]
    assert found[-1] <= high * (1 + 1e-9)
    assert np.diff(found) == pytest.approx(found[1] - found[0])


def test_json_in_a_page_and_words_of_users() -> None:
    value = {word: [1.5, float("nan"), None] for word in LABELS}
    text = str(safe_json(value))
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {word: [1.5, None, None] for word in LABELS}
    assert visible("a\u202eb\x00\udc80") == "a\\u202eb\\x00\\udc80"
    assert len(visible("x" * 500)) == 200


def test_a_query_and_its_gallery_may_lie_in_two_folders(hostile: Seen, tmp_path: Path) -> None:
    for name in ("metrics.json", "pictures.json"):
        (tmp_path / name).write_bytes((hostile.folder / name).read_bytes())
    document = json.loads((tmp_path / "pictures.json").read_text())
    for item in document["items"]:
        item["side"] = "gallery"
    document["root"] = str(tmp_path / "none")
    (tmp_path / "pictures.json").write_text(json.dumps(document))
    assert "data:image/webp" in metricli.report(tmp_path).read_text(encoding="utf-8")
