"""What a page takes from `report.json` and `metrics.json`: what is there is of its type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from metricli.errors import DataError

__all__ = ["Judged", "Trained", "block_of", "read_document", "read_json"]

_Numbers = dict[str, dict[str, float | None]]
_Ranges = dict[str, dict[str, Annotated[list[float | None], Field(min_length=2, max_length=2)]]]
_OrNothing = BeforeValidator(lambda value: {} if value is None else value)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Document(_Part):
    metrics: Annotated[_Numbers, _OrNothing] = {}
    intervals: Annotated[_Ranges, _OrNothing] = {}
    confidence: float = 0.95
    warnings: list[str] = []
    skipped: list[str] = []
    seconds: float | None = None


class Trained(_Document):
    """Of `report.json`."""

    best_epoch: int = 0
    epochs: int = 0
    steps: int = 0
    monitor: str = ""
    stopped: str = ""


class _Difference(_Part):
    theirs: float | None
    ours: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    verdict: str


class _Comparison(_Part):
    theirs: str
    ours: str
    queries: int
    labels: int
    samples: int
    differences: dict[str, dict[str, _Difference]]


class Judged(_Document):
    """Of `metrics.json`."""

    queries: int = 0
    gallery: int = 0
    queries_without_match: int = 0
    distance: str = ""
    search: str = ""
    embeddings: str = ""
    comparison: _Comparison | None = None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object of a JSON file; None where there is no file.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {str(path)!r}: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise DataError(f"{str(path)!r} holds no JSON object")
    return found


def read_document(path: Path, model: type[_Document], hint: str) -> dict[str, Any] | None:
    """The same, of which all that a page takes is of its type.

    Raises:
        DataError: it is not.
    """
    found = read_json(path)
    if found is None:
        return None
    try:
        model.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"].splitlines()[0].removeprefix("Input ")
        raise DataError(f"{str(path)!r} is damaged: {where} {what}", hint=hint) from None
    return found


def block_of(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A block of a spec; one that is missing, or of another type, is empty."""
    found = spec.get(name)
    return found if isinstance(found, dict) else {}
