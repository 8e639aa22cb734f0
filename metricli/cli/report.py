"""`metricli report`: the page of a run, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metricli.errors import MetricliError
from metricli.reporter import Reporter


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN|FOLDER", help="A run directory, or a folder of `validate --out`.")
    ],
) -> None:
    """Make report.html of a run, or of a validation, again."""
    from metricli import api
    from metricli.cli.lines import out

    out(str(api.report(folder)))


def write_page(folder: Path, reporter: Reporter) -> None:
    """Make the page of a validation that has just been saved, and say where; a fault of ours is a warning.

    Raises:
        MetricliError: it cannot be written.
    """
    from metricli import api
    from metricli.pages.model import PICTURES

    if not (folder / PICTURES).is_file():  # that is said
        return
    try:
        reporter.say(f"report {api.report(folder)}")
    except MetricliError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        reporter.warn(f"report.html could not be made: {type(error).__name__}: {words}")
