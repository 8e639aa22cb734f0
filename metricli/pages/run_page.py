"""The page of a training run, made from its directory, as far as the run is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from metricli.errors import DataError
from metricli.pages.charts import COLOURS, Line, lines
from metricli.pages.model import PAGE, Pictures
from metricli.pages.parts import (
    Card,
    finish,
    leading_cards,
    metrics_view,
    read_json,
    started,
    time_of,
)
from metricli.pages.thumbnails import Budget, Thumbnails
from metricli.pages.views import evaluation_view
from metricli.reports import OVERALL

__all__ = ["OUTCOME", "SPEC", "write_run_page"]

OUTCOME = "report.json"
SPEC = "spec.resolved.yaml"
_PLACE = ("step", "epoch", "split", "category")
_MOST_CHARTS = 12
_NAMES = {"lr": "learning rate", "grad_norm": "norm of the gradient"}


@dataclass(frozen=True)
class Curve:
    """A chart with its title and legend."""

    title: str
    chart: Markup
    legend: list[tuple[int, str]]


def write_run_page(run: Path, *, budget: Budget | None = None) -> Path:
    """Make `run/report.html` of what lies in a run directory.

    Raises:
        DataError: it is no run directory, or a file of it is damaged.
        ResourceError: the page cannot be written.
    """
    spec = _spec(run / SPEC)
    document = read_json(run / OUTCOME) or {}
    env = read_json(run / "env.json")
    pictures = Pictures.read(run)
    rows = _rows(run / "metrics.jsonl")
    thumbnails = Thumbnails(budget=budget or Budget())
    if pictures is not None:
        thumbnails.max_pixels = pictures.max_pixels
    monitor = str(document.get("monitor") or spec.get("validation", {}).get("monitor") or "")
    context = started(
        kicker="training run",
        title=str(spec.get("name") or run.name),
        subtitle=str(run),
        cards=_cards(document, rows, spec, monitor),
        warnings=[str(each) for each in document.get("warnings") or []],
        skipped=[str(each) for each in document.get("skipped") or []],
        commands=_commands(run, document),
        spec=spec,
        env=env,
    )
    context |= metrics_view(document)
    context["metrics_note"] = f"Of epoch {document.get('best_epoch')}, the best. {context['metrics_note']}"
    context["curves"] = curves(rows, monitor)
    if pictures is not None:
        context |= evaluation_view(pictures, thumbnails)
        context["notes"] = context.pop("sampled")
        if pictures.epoch is not None:
            context["notes"].append(f"the pictures of retrieval are of epoch {pictures.epoch}")
    context["data"] = document
    return finish(run / PAGE, context, thumbnails)


def _spec(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"cannot read {str(path)!r}: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise DataError(f"{str(path)!r} holds no mapping")
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a kill has cut off is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def _cards(
    document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], spec: Mapping[str, Any], monitor: str
) -> list[Card]:
    wanted = spec.get("training", {}).get("epochs")
    steps = document.get("steps") or max((int(row.get("step") or 0) for row in rows), default=0)
    over = [int(row["epoch"]) for row in rows if row.get("split") == "train_epoch" and row.get("epoch")]
    epochs = document.get("epochs", max(over, default=0))
    cards = leading_cards(document, monitor)
    if document.get("best_epoch"):
        cards.append(Card("best epoch", str(document["best_epoch"]), f"by {monitor}"))
    stopped = str(document.get("stopped") or "")
    how = {"epochs": "all done", "early stopping": "stopped early"}.get(stopped, "not finished")
    cards.append(Card("epochs", f"{epochs} of {wanted}", how, "" if stopped else "warning"))
    cards.append(Card("steps", str(steps)))
    if document.get("seconds"):
        cards.append(Card("took", time_of(float(document["seconds"]))))
    return cards


def _commands(run: Path, document: Mapping[str, Any]) -> list[tuple[str, str]]:
    name = shlex.quote(str(run / SPEC))
    found = [("The same run anew:", f"metricli train {name}")]
    if not document.get("stopped"):
        found.append(("To go on with it:", f"metricli train {name} --resume {shlex.quote(str(run))}"))
    if document.get("best_ckpt"):
        ckpt = shlex.quote(str(run / "checkpoints" / "best.ckpt"))
        found.append(("To judge its best checkpoint:", f"metricli validate --ckpt {ckpt}"))
    found.append(("To make this page again:", f"metricli report {shlex.quote(str(run))}"))
    return found


def curves(rows: Sequence[Mapping[str, Any]], monitor: str) -> list[Curve]:
    """Loss, metrics and rates of a run, and whatever else its steps have logged."""
    steps = [row for row in rows if row.get("split") == "train"]
    judged = [row for row in rows if row.get("split") == "validation"]
    overall = [row for row in judged if row.get("category", OVERALL) == OVERALL]
    groups = list(dict.fromkeys(str(row.get("category", OVERALL)) for row in judged))
    names = _numbers(overall)
    names.sort(key=lambda name: name != monitor)
    drawn = [
        _curve("Loss by step", [_line("loss", steps, "loss", "step")], "step"),
        _curve(
            "Metrics by epoch", [_line(name, overall, name, "epoch") for name in names][:COLOURS], "epoch"
        ),
    ]
    if len(groups) > 2 and monitor:
        drawn.append(
            _curve(f"{monitor} by epoch, for each category", _of_groups(judged, groups, monitor), "epoch")
        )
    others = [name for name in _numbers(steps) if name != "loss"]
    for name in others[: _MOST_CHARTS - len(drawn)]:
        title = f"{_NAMES.get(name, name.replace('_', ' '))} by step"
        drawn.append(_curve(title[:1].upper() + title[1:], [_line(name, steps, name, "step")], "step"))
    return [curve for curve in drawn if curve is not None]


def _of_groups(judged: Sequence[Mapping[str, Any]], groups: Sequence[str], metric: str) -> list[Line]:
    """A line for OVERALL and for the categories that end worst."""
    series = [
        _line(group, [row for row in judged if str(row.get("category", OVERALL)) == group], metric, "epoch")
        for group in groups
    ]
    overall = [line for line in series if line.name == OVERALL]
    rest = sorted(
        (line for line in series if line.name != OVERALL and len(line.ys)), key=lambda line: line.ys[-1]
    )
    return [*overall, *rest][:COLOURS]


def _numbers(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names that hold a number in some row."""
    return list(
        dict.fromkeys(
            name
            for row in rows
            for name, value in row.items()
            if name not in _PLACE and isinstance(value, (int, float)) and not isinstance(value, bool)
        )
    )


def _line(name: str, rows: Iterable[Mapping[str, Any]], key: str, x: str) -> Line:
    spots = [
        (float(row[x]), float(row[key]))
        for row in rows
        if isinstance(row.get(key), (int, float)) and isinstance(row.get(x), (int, float))
    ]
    return Line(name, [at for at, _ in spots], [value for _, value in spots])


def _curve(title: str, series: list[Line], label_x: str) -> Curve | None:
    series = [line for line in series if len(line.xs)]
    chart = lines(title, series, label_x)
    return None if chart is None else Curve(title, chart, [(i, line.name) for i, line in enumerate(series)])
