"""`metricli report`: the page of a run, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN|FOLDER", help="A run directory, or a folder of `validate --out`.")
    ],
) -> None:
    """Make report.html of a run, or of a validation, again."""
    from metricli import api
    from metricli.cli.lines import out

    out(str(api.report(folder)))
