"""The base of all reports, and how they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metricli.errors import ResourceError

SCHEMA_VERSION = 1
OVERALL = "OVERALL"

Metrics = dict[str, dict[str, float]]
"""category (or OVERALL) -> metric name -> value; NaN where no query could be judged."""


Intervals = dict[str, dict[str, tuple[float, float]]]
"""The same with a confidence interval (low, high) in place of a value; NaN where there is none."""

Verdict = Literal["better", "worse", "equal", "unclear"]


def plain(value: Any) -> Any:
    """Plain JSON types; NaN and infinities as None, paths as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: plain(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if item.metadata.get("shown", True)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def write_text(target: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        ResourceError: it cannot be written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise ResourceError(f"cannot write {str(target)!r}: {error.strerror}") from None


@dataclass(frozen=True)
class Report:
    """Base of all reports; `to_dict` is the `--json` document."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN and infinities as None, paths as strings."""
        return {"schema_version": SCHEMA_VERSION, **plain(self)}

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        from metricli.notebook import facts_page

        facts = {name: value for name, value in plain(self).items() if value not in (None, "", [], {})}
        return facts_page(type(self).__name__, facts)
