"""The page of a training run, made from its directory, as far as the run is."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from metricli.errors import DataError
from metricli.pages.charts import COLOURS, Line, lines
from metricli.pages.documents import block_of, read_json
from metricli.pages.model import PAGE, Pictures
from metricli.pages.parts import (
    Card,
    finish,
    leading_cards,
    metrics_view,
    started,
    time_of,
)
from metricli.pages.state import State, numbers_in, read_rows, state_of
from metricli.pages.thumbnails import Budget, Thumbnails
from metricli.pages.views import evaluation_view
from metricli.reports import OVERALL

__all__ = ["SPEC", "write_run_page"]

SPEC = "spec.resolved.yaml"
_MOST_CHARTS = 12
_NAMES = {"lr": "learning rate", "grad_norm": "norm of the gradient"}


@dataclass(frozen=True)
class Curve:
    """A chart with its title and legend."""

    title: str
    chart: Markup
    legend: list[tuple[int, str]]


def write_run_page(run: Path, *, budget: Budget | None = None, ended: str = "") -> Path:
    """Make `run/report.html` of what lies in a run directory; `ended` is why it has just ended, if known.

    Raises:
        DataError: it is no run directory, or a file of it is damaged.
        ResourceError: the page cannot be written.
    """
    spec = _spec(run / SPEC)
    rows = read_rows(run / "metrics.jsonl")
    state = state_of(run, spec, rows, ended)
    document, env = state.document, read_json(run / "env.json")
    pictures, warnings = _pictures(run)
    if state.ended:
        warnings.insert(0, f"the run is not finished: {state.ended}")
    thumbnails = Thumbnails(budget=budget or Budget())
    if pictures is not None:
        thumbnails.max_pixels = pictures.max_pixels
        best = document.get("best_epoch")
        if best and pictures.epoch not in (None, best):  # a kill came between the two
            warnings.append(f"the pictures are of epoch {pictures.epoch}, the metrics of epoch {best}")
    monitor = str(document.get("monitor") or block_of(spec, "validation").get("monitor") or "")
    context = started(
        kicker="training run",
        title=str(spec.get("name") or run.name),
        subtitle=str(run),
        cards=_cards(document, spec, monitor),
        warnings=[*warnings, *state.warnings],
        skipped=document.get("skipped") or [],
        commands=_commands(run, state),
        spec=spec,
        env=env,
    )
    context |= metrics_view(document, spec)
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


def _pictures(run: Path) -> tuple[Pictures | None, list[str]]:
    """The pictures of the best epoch, or a warning that they are damaged: the rest of the page needs none."""
    try:
        return Pictures.read(run), []
    except DataError as error:
        best = run / "checkpoints" / "best.ckpt"
        remedy = f"metricli validate --ckpt {shlex.quote(str(best))} --out DIR"
        instead = f"; `{remedy}` makes a page with pictures" if best.is_file() else ""
        return None, [f"{error.message}; this page has no pictures{instead}"]


def _cards(document: Mapping[str, Any], spec: Mapping[str, Any], monitor: str) -> list[Card]:
    wanted = block_of(spec, "training").get("epochs")
    cards = leading_cards(document, monitor)
    if document.get("best_epoch"):
        cards.append(Card("best epoch", str(document["best_epoch"]), f"by {monitor}"))
    stopped = str(document.get("stopped") or "")
    how = {"epochs": "all done", "early stopping": "stopped early"}.get(stopped, "not finished")
    epochs = f"{document.get('epochs', 0)} of {wanted}"
    cards.append(Card("epochs", epochs, how, "" if stopped else "warning"))
    cards.append(Card("steps", str(document.get("steps", 0))))
    if document.get("seconds"):
        cards.append(Card("took", time_of(float(document["seconds"]))))
    return cards


def _commands(run: Path, state: State) -> list[tuple[str, str]]:
    name, folder, checkpoints = shlex.quote(str(run / SPEC)), shlex.quote(str(run)), run / "checkpoints"
    found = [("The same run anew:", f"metricli train {name}")]
    if not state.is_finished and (checkpoints / "last.ckpt").is_file():
        found.append(("To go on with it:", f"metricli train {name} --resume {folder}"))
    elif not state.is_finished:
        found.append(("To start it again:", f"metricli train {name} --run-dir {folder} --resume auto"))
    if (checkpoints / "best.ckpt").is_file():
        ckpt = shlex.quote(str(checkpoints / "best.ckpt"))
        found.append(("To judge its best checkpoint:", f"metricli validate --ckpt {ckpt}"))
    found.append(("To make this page again:", f"metricli report {folder}"))
    return found


def curves(rows: Sequence[Mapping[str, Any]], monitor: str) -> list[Curve]:
    """Loss, metrics and rates of a run, and whatever else its steps have logged."""
    steps, at = [row for row in rows if row.get("split") == "train"], "step"
    if not steps:  # the run is shorter than log_every_steps
        steps, at = [row for row in rows if row.get("split") == "train_epoch"], "epoch"
    judged = [row for row in rows if row.get("split") == "validation"]
    overall = [row for row in judged if row.get("category", OVERALL) == OVERALL]
    groups = list(dict.fromkeys(str(row.get("category", OVERALL)) for row in judged))
    names = numbers_in(overall)
    names.sort(key=lambda name: name != monitor)
    drawn = [
        _curve(f"Loss by {at}", [_line("loss", steps, "loss", at)], at),
        _curve(
            "Metrics by epoch", [_line(name, overall, name, "epoch") for name in names][:COLOURS], "epoch"
        ),
    ]
    if len(groups) > 2 and monitor:
        drawn.append(
            _curve(f"{monitor} by epoch, for each category", _of_groups(judged, groups, monitor), "epoch")
        )
    others = [name for name in numbers_in(steps) if name != "loss"]
    for name in others[: _MOST_CHARTS - len(drawn)]:
        title = f"{_NAMES.get(name, name.replace('_', ' '))} by {at}"
        drawn.append(_curve(title[:1].upper() + title[1:], [_line(name, steps, name, at)], at))
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
