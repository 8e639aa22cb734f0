"""A table whose every word is hostile, judged, and its page."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import metricli
from metricli import MetricsSpec, ValidateReport, ValidationSpec

LABELS = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror=window.hacked=2>",
    "javascript:window.hacked=3",
    '" onmouseover="window.hacked=4" x=\'',
    "\u202egnp.evil\u202c \u200f\x07\x1b[31m",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- ]]> <style>*{display:none}</style>",
    "long" + "W" * 900,
    "&lt;b&gt; &amp; \u2028 \u2029",
    "plain",
]
CATEGORIES = ['"><svg onload=window.hacked=5>', "</title></textarea>", "C" * 300]
EACH = 4


@dataclass(frozen=True)
class Seen:
    """A validation of the hostile table."""

    table: Path
    folder: Path
    report: ValidateReport
    embeddings: np.ndarray

    @property
    def html(self) -> str:
        return (self.folder / "report.html").read_text(encoding="utf-8")


def write_table(folder: Path) -> Path:
    """Forty images of ten labels; every fourth has a box, and one cannot be read."""
    (folder / "images").mkdir(parents=True)
    columns = ["label", "path", "split", "is_query", "is_gallery", "category", "x_1", "x_2", "y_1", "y_2"]
    generator = np.random.default_rng(0)
    with (folder / "df.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for place in range(len(LABELS) * EACH):
            label = LABELS[place // EACH]
            name = f"images/{place} <img src=y onerror='window.hacked=6'>\".png"
            pixels = generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)
            pixels[:, :, place // EACH % 3] = 25 * (place // EACH)
            Image.fromarray(pixels).save(folder / name)
            box = [10, 30, 5, 25] if place % 4 == 0 else [""] * 4
            category = CATEGORIES[place // EACH % 3]
            writer.writerow([label, name, "validation", True, True, category, *box])
    (folder / "images").joinpath(f"{5} <img src=y onerror='window.hacked=6'>\".png").write_bytes(b"no image")
    return folder / "df.csv"


def rows_of(labels: int = len(LABELS)) -> np.ndarray:
    """Embeddings whose labels overlap."""
    generator = np.random.default_rng(1)
    centres = generator.normal(size=(labels, 8))
    return (np.repeat(centres, EACH, 0) + 0.6 * generator.normal(size=(labels * EACH, 8))).astype(np.float32)


def spec(**more: Any) -> ValidationSpec:
    metrics = MetricsSpec(cmc=[1, 5], map=[5], fnmr=[0.1], tar=[0.1], eer=True)
    return ValidationSpec(metrics=metrics, **more)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("hostile")
    table, rows = write_table(folder), rows_of()
    report = metricli.evaluate(rows, table, validation=spec())
    report.save(folder / "out")
    metricli.report(folder / "out")
    return Seen(table, folder / "out", report, rows)
