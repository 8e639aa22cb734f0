"""Files to run commands on, and what a command that fails must leave as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import FIGURES, ROOT, TINY, Outcome

Call = Callable[..., Outcome]


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below; of files the size and time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_folder = path.is_dir()
        found[str(path.relative_to(folder))] = (0, 0) if is_folder else (status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture
def spec(tiny: dict[str, Any], tmp_path: Path) -> str:
    """The tiny spec as `tiny.yaml` in the folder that commands run in."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny, sort_keys=False))
    return "tiny.yaml"


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    """A copy of the drawn data set that a test may damage: `figures/df.csv` and its images."""
    folder = tmp_path / "figures"
    shutil.copytree(FIGURES.parent, folder)
    return folder


@pytest.fixture
def refused(cli: Call, tmp_path: Path) -> Call:
    """Run a command that must fail: nothing on stdout, nothing written, one error on stderr; its outcome."""

    def call(*words: Any) -> Outcome:
        before = listing(tmp_path)
        outcome = cli(*words)
        assert listing(tmp_path) == before
        assert outcome.out == ""
        assert outcome.err.count("error: ") == 1, outcome.err
        assert "Traceback" not in outcome.err
        return outcome

    return call


def error_of(outcome: Outcome) -> str:
    """The error of a command that said nothing else, without its `error: `."""
    assert outcome.err.startswith("error: "), outcome.err
    return unbroken(outcome.err).removeprefix("error: ").removesuffix("\n")


def unbroken(text: str) -> str:
    """Words as they were before lines of more than 200 characters were broken.

    A line goes on the one before it if it is indented by two more than that began with, and its first word
    would not have fitted there.
    """
    lines: list[str] = []
    indent = last = 0
    for line in text.split("\n"):
        start = len(line) - len(line.lstrip())
        first = line.split(" ", start + 1)[start] if line else ""
        if lines and line and start == indent + 2 and last + 1 + len(first) > 200:
            lines[-1] += " " + line.lstrip()
        else:
            indent = start
            lines.append(line)
        last = len(line)
    return "\n".join(lines)


def process(*words: Any, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """`metricli ...` as a process of its own, on the CPU."""
    environment = {**os.environ, "METRICLI_DEVICE": "cpu", **options.pop("env", {})}
    command = [sys.executable, "-m", "metricli", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment, **(pipes | options))


def table_lines() -> list[str]:
    """The lines of the drawn table, header first."""
    return FIGURES.read_text().splitlines()


METRICS = ["cmc@1", "cmc@5", "precision@5", "map@5", "map@r"]
VALIDATE_KEYS = [
    "schema_version",
    "metrics",
    "split",
    "queries",
    "gallery",
    "queries_without_match",
    "distance",
    "embeddings",
    "skipped",
    "warnings",
    "seconds",
    "intervals",
    "confidence",
    "thresholds",
    "unmatched",
    "ignored",
    "search",
    "protocol",
    "comparison",
]


def metrics_text(report: Any) -> str:
    """The table of metrics as it is printed in a pipe: values, and their intervals below."""
    rows = [["", *METRICS]]
    for name, row in report.metrics.items():
        rows.append([name, *(f"{row[metric]:.4f}" for metric in METRICS)])
        found = report.intervals[name]
        rows.append(["  95%", *("{:.3f}..{:.3f}".format(*found[metric]) for metric in METRICS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() + "\n"
        for row in rows
    )


__all__ = [
    "FIGURES",
    "METRICS",
    "ROOT",
    "TINY",
    "VALIDATE_KEYS",
    "Call",
    "Outcome",
    "error_of",
    "listing",
    "metrics_text",
    "process",
    "table_lines",
]
