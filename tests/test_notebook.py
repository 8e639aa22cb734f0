"""What a notebook shows of a report, and its metrics as a frame."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from metricli.reports import (
    Comparison,
    Flips,
    MetricDifference,
    PredictReport,
    TrainReport,
    ValidateReport,
)

HOSTILE = "<img src=x onerror=alert(1)>&\x1b[31m\"'"
SHOWN = "<img src=x onerror=alert(1)>&\\x1b[31m\"'"
METRICS = {"OVERALL": {"cmc@1": 0.5, "pcf@0.5": 0.25}, HOSTILE: {"cmc@1": math.nan, "pcf@0.5": 0.75}}
INTERVALS = {"OVERALL": {"cmc@1": (0.25, 0.75)}, HOSTILE: {"cmc@1": (math.nan, math.nan)}}


class Seen(HTMLParser):
    """The tags, and the text of each cell, definition and paragraph."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data


def validation(**other: Any) -> ValidateReport:
    return ValidateReport(
        metrics=METRICS,
        split="validation",
        queries=4,
        gallery=4,
        queries_without_match=1,
        distance="cosine",
        embeddings=HOSTILE,
        intervals=INTERVALS,
        warnings=[HOSTILE],
        **other,
    )


def training() -> TrainReport:
    ckpt = Path("run/checkpoints/best.ckpt")
    return TrainReport(
        METRICS, Path("run"), ckpt, ckpt, 3, 15, 60, "cmc@1", 0.5, "epochs", intervals=INTERVALS
    )


def test_a_table_of_the_metrics_and_nothing_of_theirs_is_html() -> None:
    seen = Seen(validation()._repr_html_())
    cells = seen.texts[seen.tags.index("table") :]
    assert [text for text in cells if text] == [
        *("cmc@1", "pcf@0.5"),
        *("OVERALL", "0.5000 (0.250..0.750)", "0.2500"),
        *(SHOWN, "-", "0.7500"),
        *("embeddings", SHOWN, "split", "validation", "queries", "4", "gallery", "4"),
        *("queries without a match", "1", "warnings", SHOWN),
    ]
    assert set(seen.tags) <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd"}


def test_training_says_the_best_epoch_and_where_it_is() -> None:
    texts = Seen(training()._repr_html_()).texts
    assert "Training: best epoch 3 of 15" in texts
    assert texts[texts.index("best checkpoint") + 1] == "run/checkpoints/best.ckpt"
    assert texts[texts.index("cmc@1", texts.index("best checkpoint")) + 1] == "0.5"


def test_a_comparison_has_its_own_table() -> None:
    change = MetricDifference(0.5, 0.75, 0.25, 0.1, 0.4, 0.01, "better")
    flips = Flips("cmc@1", 1, 0, 3, [])
    found = Comparison("a", HOSTILE, 4, 2, 0.9, 100, {"OVERALL": {"cmc@1": change}}, flips, [HOSTILE])
    page = validation(comparison=found)._repr_html_()
    texts = [text for text in Seen(page).texts if text]
    texts = texts[texts.index("Comparison") :]
    assert texts == [
        *("Comparison", "metric", "A", "B", "B - A", "90 % interval"),
        *("OVERALL", "cmc@1", "0.5000", "0.7500", "0.2500", "(0.100..0.400)", "better"),
        *("A", "a", "B", SHOWN, "queries", "4", SHOWN),
    ]
    assert "<img" not in page


def test_other_reports_are_lists_of_facts() -> None:
    report = PredictReport(Path("f.npy"), Path("f.csv"), Path("f.json"), 3, 2, "float32", HOSTILE)
    texts = Seen(report._repr_html_()).texts
    assert texts[1] == "PredictReport"
    assert texts[texts.index("rows") + 1] == "3"
    assert texts[texts.index("ckpt") + 1] == SHOWN


def test_many_categories_and_long_words_are_cut_and_said() -> None:
    metrics = {"OVERALL": {"m": 1.0}} | {f"c{i}" + "x" * 1000: {"m": 0.0} for i in range(50)}
    report = TrainReport(metrics, Path(), Path(), Path(), 1, 1, 1, "m", 1.0, "epochs")
    page = report._repr_html_()
    assert page.count("<tr>") == 22
    assert "and 30 more categories: see to_frame()" in page
    assert len(page) < 10_000


@pytest.mark.parametrize("report", [validation(), training()])
def test_the_frame_has_a_row_for_each_category(report: Any) -> None:
    frame = report.to_frame()
    assert list(frame.index) == ["OVERALL", HOSTILE]
    assert list(frame.columns) == ["cmc@1", "cmc@1 low", "cmc@1 high", "pcf@0.5"]
    assert frame.loc["OVERALL"].tolist() == [0.5, 0.25, 0.75, 0.25]
    assert frame["pcf@0.5"].tolist() == [0.25, 0.75]
    assert frame.index.name == "category"
    assert "write" not in report.to_dict()
