"""The doors to loggers, through Accelerate's trackers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metricli.errors import Problem
from metricli.specs.kinds import Logger, LoggerSpec

if TYPE_CHECKING:
    from metricli.data.facts import TableFacts


class TensorBoard(LoggerSpec):
    """TensorBoard event files in the run directory (extra `tensorboard`)."""

    name: Literal["tensorboard"] = "tensorboard"

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """The package must be there before the run starts."""
        problems = super().check(spec, table)
        if importlib.util.find_spec("tensorboard") is None:
            problems.append(Problem("", "needs the package tensorboard: pip install 'metricli[tensorboard]'"))
        return problems

    def build(self, *, run_dir: Path) -> Logger:
        """A `TrackerLogger` over Accelerate's TensorBoard tracker."""
        from metricli.components.loggers import tensorboard_logger

        return tensorboard_logger(run_dir)
