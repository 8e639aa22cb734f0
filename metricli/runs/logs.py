"""metrics.jsonl always, and the loggers of the spec; one that fails is left behind, not the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from metricli.reports import OVERALL, Reporter
from metricli.runs.directory import RunDirectory
from metricli.specs.kinds import Logger, LoggerSpec


class Logs:
    """Opens the loggers, sends every row to all of them, and closes them."""

    def __init__(self, run: RunDirectory, specs: Sequence[LoggerSpec], reporter: Reporter) -> None:
        self.run, self.specs, self.reporter = run, specs, reporter
        self.loggers: list[Logger] = []

    def __enter__(self) -> Self:
        self.loggers = [spec.build(run_dir=self.run.path) for spec in self.specs]
        return self

    def __exit__(self, *exc: object) -> None:
        for logger in list(self.loggers):
            self._try(logger, "close")

    def row(self, step: int, epoch: int, split: str, values: Mapping[str, float], category: str = "") -> None:
        """One flat line, and scalars named `split/name` or `split/category/name`."""
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
