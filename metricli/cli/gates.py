"""Quality gates: `--fail-under cmc@1=0.8`."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metricli.errors import GateError, ResourceError, UsageError
from metricli.reports import OVERALL, Metrics


@dataclass(frozen=True)
class Limit:
    """A metric (of OVERALL, or `category/metric`) and the value it must reach."""

    metric: str
    value: float
    category: str = OVERALL

    def check(self, metrics: Metrics) -> dict[str, Any]:
        """The outcome, as it stands in the `--json` document.

        Raises:
            UsageError: no such category.
        """
        from metricli.specs.validate import lower_is_better

        if self.category not in metrics:
            raise UsageError(f"--fail-under: no category {self.category!r}; there are: {', '.join(metrics)}")
        found = metrics[self.category][self.metric]
        lower = lower_is_better(self.metric)
        passed = not math.isnan(found) and (found <= self.value if lower else found >= self.value)
        return {
            "metric": self.metric,
            "category": self.category,
            "limit": self.value,
            "value": None if math.isnan(found) else found,
            "at": "most" if lower else "least",
            "passed": passed,
        }


def parse(words: Sequence[str]) -> list[Limit]:
    """`[category/]metric=value` words.

    Raises:
        UsageError: one of them is not of that form.
    """
    from metricli.specs.validate import is_bounded

    limits = []
    for word in words:
        name, _, text = word.rpartition("=")
        category, _, metric = name.rpartition("/")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not metric or not math.isfinite(value):
            raise UsageError(
                f"--fail-under {word!r} is not METRIC=VALUE", hint="for example --fail-under cmc@1=0.8"
            )
        if is_bounded(metric) and not 0 <= value <= 1:
            raise UsageError(f"--fail-under {word!r}: metrics lie between 0 and 1, got {value:g}")
        limits.append(Limit(metric, value, category or OVERALL))
    return limits


def enforce(checked: Sequence[dict[str, Any]]) -> None:
    """Raise for the gates that were not met.

    Raises:
        GateError: naming each of them.
    """
    failed = [gate for gate in checked if not gate["passed"]]
    if failed:
        parts = [
            f"{gate['metric']} of {gate['category']} is "
            f"{'not defined' if gate['value'] is None else _told_apart(gate['value'], gate['limit'])}, "
            f"at {gate['at']} {gate['limit']:.15g} is asked for"
            for gate in failed
        ]
        raise GateError("quality gate: " + "; ".join(parts))


def _told_apart(value: float, limit: float) -> str:
    """Four decimals, or as many as show on which side of the limit the value is."""
    for digits in range(4, 17):
        text = f"{value:.{digits}f}"
        if float(text) != limit and (float(text) < limit) == (value < limit):
            return text
    return repr(value)


def check_folder(folder: Path | None) -> None:
    """Refuse a place for `metrics.json` before any work is done.

    Raises:
        UsageError: it is a file, or below one.
        ResourceError: it cannot be made or written in.
    """
    if folder is None:
        return
    if (folder / "spec.resolved.yaml").exists():
        what = f"--out {str(folder)!r} is a run, which has a report of its own"
        raise UsageError(what, hint="give another folder, such as one below it")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        what = "is a file" if there == folder else f"lies below the file {str(there)!r}"
        raise UsageError(f"--out {str(folder)!r} {what}", hint="give a folder for metrics.json")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ResourceError(f"cannot write in {str(there)!r}: {error.strerror}") from None
