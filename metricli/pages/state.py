"""How far a run is: what its report says, or, where a kill has left none of now, what its log says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metricli.core.catalogue import metric_of
from metricli.pages.documents import Trained, block_of, read_document
from metricli.reports import OVERALL

__all__ = ["OUTCOME", "State", "numbers_in", "read_rows", "state_of"]

OUTCOME = "report.json"
_BEGINNINGS = ("run directory ", "going on with ")
_PLACE = ("step", "epoch", "split", "category")
_HINT = "remove it: a page is made of metrics.jsonl alone, too"


@dataclass(frozen=True)
class State:
    """A run as far as it is."""

    document: dict[str, Any]
    """As `report.json` is, with less in it where that is made of the log."""
    ended: str = ""
    """Why it is not finished; "" if it is."""
    warnings: list[str] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.document.get("stopped"))


def state_of(run: Path, spec: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], ended: str = "") -> State:
    """The state of a run directory; `ended` is why it has just ended, if that is known.

    Raises:
        DataError: its report.json is damaged.
    """
    told = read_document(run / OUTCOME, Trained, _HINT)
    said, last_error = _log(run / "log.txt")
    if told is not None and _is_of_now(told, rows, spec):
        document, warnings = told, list(told.get("warnings") or [])
    else:
        known = told or {}
        document = _of_rows(rows, spec) | {
            "run_dir": str(run),
            "warnings": known.get("warnings") or [],
            "skipped": known.get("skipped") or [],
        }
        warnings = list(dict.fromkeys([*document["warnings"], *said]))
    if document.get("stopped"):
        return State(document, "", warnings)
    return State(document, ended or last_error or "it was killed, or is still under way", warnings)


def _is_of_now(told: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> bool:
    """Whether a report is of where the log is: a run that went on, or back, has no new one until it ends."""
    steps, epochs = int(told.get("steps") or 0), int(told.get("epochs") or 0)
    wanted = _whole(block_of(spec, "training").get("epochs"))
    if told.get("stopped") == "epochs" and epochs < wanted:
        return False
    logged = max((_whole(row.get("epoch")) for row in rows if row.get("split") == "train_epoch"), default=0)
    went_on = max((_whole(row.get("step")) for row in rows), default=0) > steps
    return not went_on and (logged >= epochs or not rows)


def _of_rows(rows: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.jsonl says of a run, its best epoch found as the run finds it."""
    validation, training = block_of(spec, "validation"), block_of(spec, "training")
    monitor = str(validation.get("monitor") or "")
    over = {_whole(row.get("epoch")): row for row in rows if row.get("split") == "train_epoch"}
    judged: dict[int, dict[str, dict[str, float | None]]] = {}
    for row in rows:
        if row.get("split") == "validation":
            group = str(row.get("category", OVERALL))
            judged.setdefault(_whole(row.get("epoch")), {})[group] = _values(row)
    if not judged:  # there are no rows to judge: the loss, or nothing, says what is best
        every = max(1, _whole(validation.get("every_n_epochs")))
        wanted = _whole(training.get("epochs"))
        judged = {epoch: {} for epoch in over if epoch % every == 0 or epoch == wanted}
    best, value = _best(judged, over, monitor, number(training.get("min_delta")) or 0.0)
    return {
        "metrics": judged.get(best, {}),
        "best_epoch": best,
        "epochs": max(over, default=0),
        "steps": max((_whole(row.get("step")) for row in rows), default=0),
        "monitor": monitor,
        "monitor_value": value,
        "stopped": "",
    }


def _best(
    judged: Mapping[int, Mapping[str, Mapping[str, float | None]]],
    over: Mapping[int, Mapping[str, Any]],
    monitor: str,
    min_delta: float,
) -> tuple[int, float | None]:
    """The best of the judged epochs, 0 if there is none, and its value of the monitor."""
    known = metric_of(monitor)
    sign = -1 if monitor == "loss" or (known is not None and known.lower_is_better) else 1
    best, value = 0, None
    for epoch, metrics in judged.items():
        now = number(over.get(epoch, {}).get("loss") if monitor == "loss" else _overall(metrics, monitor))
        if value is None or (now is not None and sign * (now - value) > min_delta):
            best, value = epoch, now
    return best, value


def _overall(metrics: Mapping[str, Mapping[str, float | None]], name: str) -> float | None:
    return metrics.get(OVERALL, {}).get(name)


def _values(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of a line; None where there was nothing to judge."""
    return {
        name: number(value)
        for name, value in row.items()
        if name not in _PLACE and (value is None or number(value) is not None)
    }


def numbers_in(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names that hold a number in some row."""
    return list(
        dict.fromkeys(
            name
            for row in rows
            for name, value in row.items()
            if name not in _PLACE and isinstance(value, (int, float)) and not isinstance(value, bool)
        )
    )


def number(value: object) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _whole(value: object) -> int:
    return int(number(value) or 0)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a kill has cut off is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line, parse_int=_integer)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def _integer(text: str) -> int | float:
    return int(text) if len(text) < 19 else float(text)


def _log(path: Path) -> tuple[list[str], str]:
    """The warnings of log.txt, and the error that ended the run, if it has not gone on since."""
    if not path.is_file():
        return [], ""
    warnings, ended = [], ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.partition(" ")[2]  # a time stands before them
        if words.startswith("warning: "):
            warnings.append(words.removeprefix("warning: "))
        elif words.startswith("error: "):
            ended = words.removeprefix("error: ").partition("; go on with: ")[0]
        elif words.startswith(_BEGINNINGS):
            ended = ""
    return list(dict.fromkeys(warnings)), ended
