"""What report.html is made of, written beside what a run or a validation leaves."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metricli.data.images import DEFAULT_MAX_PIXELS
from metricli.errors import MetricliError, ResourceError
from metricli.pages.documents import read_json
from metricli.pages.model import PAGE, Pictures
from metricli.pages.plots import histogram, scatter
from metricli.pages.run_page import write_run_page
from metricli.pages.sheets import sheets
from metricli.pages.state import OUTCOME
from metricli.pages.thumbnails import Budget
from metricli.reporter import Reporter, SilentReporter
from metricli.reports import OVERALL, TrainReport, write_text
from metricli.runs.evaluate import Evaluation
from metricli.runs.logs import Logs, segment
from metricli.runs.pictures import pictures_of
from metricli.specs.load import Source
from metricli.specs.train import TrainSpec

__all__ = [
    "Shown",
    "keep_pictures",
    "log_pictures",
    "mend_report",
    "reported",
    "survived",
    "validate_command",
    "write_report",
]

_IN_A_HURRY = Budget(seconds=4)
"""After a signal, when more than the page waits."""
_PATHS = ("data.table", "data.root", "validation.gallery_features", "validation.gallery_table")


@dataclass(frozen=True)
class Shown:
    """What a page says of a validation beside its numbers."""

    max_pixels: int = DEFAULT_MAX_PIXELS
    spec: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    """By which it is made again; "" from Python."""


def keep_pictures(
    run: Path, found: Evaluation | None, spec: TrainSpec, epoch: int, reporter: Reporter
) -> Pictures | None:
    """Write what the pictures of the best epoch show; None where there was nothing to judge."""
    if found is None:
        return None
    pictures = None
    with survived(reporter, "the pictures of the report could not be kept"):
        pictures = pictures_of(found, spec.validation, max_pixels=spec.data.max_pixels, epoch=epoch)
        pictures.write(run)
    return pictures


def log_pictures(pictures: Pictures | None, logs: Logs, step: int) -> None:
    """Draw them for the loggers, if there are any: panels, the histogram of distances, and the map."""
    if pictures is None or not logs.loggers:
        return
    with survived(logs.reporter, "the pictures could not be drawn for the loggers"):
        for name, drawn in (("distances", histogram(pictures)), ("map", scatter(pictures))):
            if drawn is not None:
                logs.figure(step, f"validation/{name}", drawn)
        for group, kind, sheet in sheets(pictures, max_pixels=pictures.max_pixels):
            place = kind if group == OVERALL else f"{segment(group)}/{kind}"
            logs.figure(step, f"validation/{place}", sheet)


@contextmanager
def reported(made: Callable[[], TrainReport], reporter: Reporter, *, is_main: bool) -> Iterator[None]:
    """However the body ends, the main process writes the page of the run as far as it is.

    Where it ends for want of room, that it leaves no page is not told beside it.
    """
    said, ended = reporter, ""
    try:
        yield
    except BaseException as error:
        ended = _words(error)
        if isinstance(error, ResourceError):
            said = SilentReporter()
        raise
    finally:
        if is_main:
            write_report(made(), said, ended)


def mend_report(report: TrainReport, reporter: Reporter) -> None:
    """Write the page of a finished run where a kill has left none, or that of an earlier stop."""
    known = None
    with suppress(MetricliError):
        known = read_json(report.run_dir / OUTCOME)
    told = known is not None and (known.get("steps"), known.get("stopped")) == (report.steps, report.stopped)
    if not (told and (report.run_dir / PAGE).is_file()):
        write_report(report, reporter)


def write_report(report: TrainReport, reporter: Reporter, ended: str = "") -> None:
    """Write report.json and report.html of a run that is over, or as far as it is; `ended` says why."""
    with survived(reporter, "report.html could not be made"):
        write_text(report.run_dir / OUTCOME, json.dumps(report.to_dict(), indent=2) + "\n")
        write_run_page(report.run_dir, budget=None if report.stopped else _IN_A_HURRY, ended=ended)


def _words(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, MetricliError):
        return " ".join(error.message.split())
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


@contextmanager
def survived(reporter: Reporter, what: str) -> Iterator[None]:
    """A failure is said, and the run goes on: a page can be made again."""
    try:
        yield
    except Exception as error:
        words = " ".join(str(error).split())
        reporter.warn(f"{what}: {type(error).__name__}: {words}")


def validate_command(
    source: Source | None,
    overrides: Sequence[str],
    *,
    split: str,
    data: Mapping[str, str],
    **files: str | Path | None,
) -> str:
    """The command of a validation, with absolute paths; "" where the spec was an object in Python.

    Paths of `overrides` are relative to the spec, or to that of the checkpoint; without one they are made
    absolute.
    """
    words = ["metricli", "validate"]
    if isinstance(source, (str, Path)):
        words.append(str(Path(source).absolute()))
    elif source:
        return ""
    alone = source is not None and not source
    words += [_from_anywhere(word) for word in overrides] if alone else overrides
    for name, path in files.items():
        words += [f"--{name}", str(Path(path).absolute())] if path is not None else []
    flags = {"table": "--data", "root": "--root"}
    words += [word for key, value in data.items() for word in (flags[key], value)]
    words += ["--split", split] if split != "validation" else []
    return shlex.join(words)


def _from_anywhere(override: str) -> str:
    key, _, value = override.partition("=")
    is_path = key in _PATHS and value not in ("", "null", "~")
    return f"{key}={Path(value).expanduser().absolute()}" if is_path else override
