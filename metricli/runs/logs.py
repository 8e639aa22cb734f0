"""metrics.jsonl always, and the loggers of the spec; one that fails is left behind, not the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from metricli.reporter import Reporter
from metricli.reports import OVERALL
from metricli.runs.directory import RunDirectory
from metricli.specs.kinds import Logger, LoggerSpec


class Transcript:
    """A reporter that passes everything on, says each warning once, and keeps the lines for log.txt."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.begin, self.advance, self.end = reporter.begin, reporter.advance, reporter.end
        self._warned: set[str] = set()
        self._lines: list[str] = []
        self._path: Path | None = None

    def write_to(self, path: Path) -> None:
        """Append what was said so far, and from now on, to a file."""
        self._path = path
        self._keep(*self._lines)

    def _keep(self, *lines: str) -> None:
        if self._path is None:
            self._lines += lines
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{now} {line}\n" for line in lines)

    def say(self, message: str) -> None:
        """Pass on and keep."""
        self._keep(message)
        self.reporter.say(message)

    def warn(self, message: str) -> None:
        """Pass on and keep, once."""
        if message not in self._warned:
            self._warned.add(message)
            self._keep(f"warning: {message}")
            self.reporter.warn(message)

    def epoch(self, row: Mapping[str, float | int | str]) -> None:
        """Pass on and keep."""
        self._keep("  ".join(f"{name} {value}" for name, value in row.items()))
        self.reporter.epoch(row)


class Logs:
    """Opens the loggers, sends every row to all of them, and closes them; without a run, keeps nothing."""

    def __init__(self, run: RunDirectory | None, specs: Sequence[LoggerSpec], reporter: Reporter) -> None:
        self.run, self.specs, self.reporter = run, specs, reporter
        self.loggers: list[Logger] = []

    def __enter__(self) -> Self:
        if self.run is not None:
            self.loggers = [spec.build(run_dir=self.run.path) for spec in self.specs]
        return self

    def __exit__(self, *exc: object) -> None:
        for logger in list(self.loggers):
            self._try(logger, "close")

    def row(self, step: int, epoch: int, split: str, values: Mapping[str, float], category: str = "") -> None:
        """One flat line, and scalars named `split/name` or `split/category/name`."""
        if self.run is None:
            return
        place = {"category": category} if category else {}
        self.run.append({"step": step, "epoch": epoch, "split": split, **place, **values})
        prefix = f"{split}/" if category in ("", OVERALL) else f"{split}/{category}/"
        scalars = {prefix + name: value for name, value in values.items()}
        for logger in list(self.loggers):
            self._try(logger, "log", {**scalars, "epoch": float(epoch)}, step=step)

    def _try(self, logger: Logger, call: str, *args: Any, **kwargs: Any) -> None:
        try:
            getattr(logger, call)(*args, **kwargs)
        except Exception as error:  # a logger is someone else's code and no reason to lose a run
            self.loggers.remove(logger)
            what = f"the logger {type(logger).__name__} failed and is left out from now on"
            self.reporter.warn(f"{what}: {type(error).__name__}: {error}")
