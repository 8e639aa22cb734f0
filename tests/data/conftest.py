from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from metricli.data.checks import check_table
from metricli.data.table import Table, read_table
from metricli.reports import Finding

HEADER = "label,path,split,is_query,is_gallery"
ONE_LABEL = ("one-train-label", "one-label-gallery")
"""What is true of the few rows that most checks are tried on, and has tests of its own."""


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Table]:
    def make(*lines: str, header: str = HEADER, need: str = "train") -> Table:
        file = tmp_path / "table.csv"
        file.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return read_table(file, need=need)

    return make


@pytest.fixture
def check(table: Callable[..., Table]) -> Callable[..., dict[str, Finding]]:
    """Findings by code, with `one_label` those too that a table of one label has."""

    def findings(
        *lines: str, header: str = HEADER, need: str = "train", one_label: bool = False, **options: object
    ) -> dict[str, Finding]:
        found = check_table(table(*lines, header=header, need=need), need=need, files=False, **options)
        assert len({finding.code for finding in found}) == len(found)
        return {finding.code: finding for finding in found if one_label or finding.code not in ONE_LABEL}

    return findings


@pytest.fixture
def image() -> Callable[..., Path]:
    def save(
        path: Path, size: tuple[int, int] = (6, 4), colour: object = (10, 200, 30), **options: object
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path, **options)
        return path

    return save
