"""`report.html`: what a run, a validation or a table is, in one file for a browser; no torch here."""

from __future__ import annotations

from pathlib import Path

from metricli.errors import DataError

__all__ = ["write_page"]


def write_page(folder: Path) -> Path:
    """Make the page of a run directory or of a folder of `metricli validate --out`.

    Raises:
        DataError: it is neither, or a file of it is damaged.
        ResourceError: the page cannot be written.
    """
    from metricli.pages.model import PICTURES
    from metricli.pages.run_page import SPEC, write_run_page
    from metricli.pages.validation_page import METRICS, write_validation_page

    if (folder / SPEC).is_file():
        return write_run_page(folder)
    if (folder / METRICS).is_file() and (folder / PICTURES).is_file():
        return write_validation_page(folder)
    above = next((parent for parent in list(folder.parents)[:3] if (parent / SPEC).is_file()), None)
    raise DataError(
        f"{str(folder)!r} is neither a run directory nor a folder of `metricli validate --out`",
        hint="give a folder that holds spec.resolved.yaml, or metrics.json and pictures.json"
        if above is None
        else f"did you mean {str(above)!r}?",
    )
