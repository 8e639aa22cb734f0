"""Loggers over Accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker

from metricli.errors import UsageError


class TrackerLogger:
    """A logger over one Accelerate tracker: scalars by name, figures as images."""

    def __init__(self, tracker: GeneralTracker) -> None:
        self.tracker = tracker

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Log scalars at a global step."""
        self.tracker.log(dict(values), step=step)

    def log_figure(self, name: str, figure: Any, *, step: int) -> None:
        """Log an image array (H, W, 3) of uint8."""
        self.tracker.log_images({name: figure[None]}, step=step, dataformats="NHWC")

    def close(self) -> None:
        """Flush and end."""
        self.tracker.finish()


def tensorboard_logger(run_dir: Path) -> TrackerLogger:
    """A logger that writes event files to `run_dir/tensorboard`.

    Raises:
        UsageError: the package tensorboard is not installed.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UsageError(
            "the logger 'tensorboard' needs tensorboard", hint="pip install 'metricli[tensorboard]'"
        ) from None
    tracker = TensorBoardTracker(run_name="tensorboard", logging_dir=str(run_dir))
    tracker.start()
    return TrackerLogger(tracker)
