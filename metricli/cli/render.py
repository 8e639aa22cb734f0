"""Reports on stdout: rich tables on a terminal, plain aligned text in a pipe."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metricli.cli.bars import one_side, sign, two_sides
from metricli.cli.lines import columns, out, plain, said, shown, styled, table
from metricli.cli.progress import span
from metricli.data.phrases import counted
from metricli.errors import WorkerError
from metricli.pages.model import PAGE
from metricli.reports import (
    OVERALL,
    Finding,
    InspectReport,
    Intervals,
    Metrics,
    PredictReport,
    TrainReport,
)
from metricli.tables import (
    WIDEST,
    aligned,
    cell,
    format_comparison,
    metric_cells,
    printable,
    shortened,
    width_of,
)

if TYPE_CHECKING:
    from metricli.reports import DryRunReport, ParityReport, ValidateReport


_NAME = 80
"""Characters of a category in a pipe."""
_MOST = 20
"""Categories, and labels of a comparison, that a terminal shows."""


def metrics_table(metrics: Metrics, intervals: Intervals, confidence: float) -> None:
    """Metrics for OVERALL and each category; where there is too little room, in several tables."""
    if not metrics:
        return
    names = list(dict.fromkeys(name for row in metrics.values() for name in row))
    if not sys.stdout.isatty():
        first = min(_NAME, max(width_of(printable(category)) for category in metrics))
        for part in _parts({name: max(len(name), 12) + 2 for name in names}, WIDEST - first):
            lines = metric_cells(metrics, intervals, confidence, part)
            rows = [[shortened(name, _NAME), *cells] for name, *cells in lines]
            out("\n".join(aligned([["", *part], *rows], left=(0,))))
        return
    kept = list(metrics)[: _MOST + 1]  # OVERALL is the first
    broad = columns()
    room = broad - min(max(len(printable(category)) for category in kept), broad // 3) - 4
    widths = {name: max(len(name), 12 if name in intervals.get(OVERALL, {}) else 6) + 3 for name in names}
    for part in _parts(widths, room):
        lines = metric_cells({name: metrics[name] for name in kept}, intervals, confidence, part)
        table(["", *part], [[shortened(first, broad // 3), *cells] for first, *cells in lines])
    if more := len(metrics) - len(kept):
        out(f"and {more} more categor{'ies' if more > 1 else 'y'}, see --json")


def _parts(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """The columns of each table, as many as fit."""
    parts: list[list[str]] = []
    left = 0
    for name, width in widths.items():
        if not parts or width > left:
            parts.append([])
            left = room
        parts[-1].append(name)
        left -= width
    return parts


def trained(report: TrainReport) -> None:
    """The end of a run: its best metrics, where everything lies, and what to type next."""
    metrics_table(report.metrics, report.intervals, report.confidence)
    monitored = f" ({report.monitor} {cell(report.monitor_value)})" if report.metrics else ""
    if report.metrics and math.isnan(report.monitor_value):
        monitored = f" (the newest; {report.monitor} has no value)"
    best = _near(report.best_ckpt)
    early = ", stopped early" if report.stopped == "early stopping" else ""
    page = report.run_dir / PAGE
    rows = [
        ["best epoch", f"{report.best_epoch} of {report.epochs}{monitored}"],
        ["trained", f"{counted(report.steps, 'step')} in {span(report.seconds)}{early}"],
        ["best", best],
        ["last", _near(report.last_ckpt)],
        *([["report", _near(page)]] if page.is_file() else []),
        ["next", f"metricli {_next(report)} --ckpt {shlex.quote(best)}"],
    ]
    out(plain(["", ""], rows, numbers_from=9))


def _next(report: TrainReport) -> str:
    """What to do with a run: what was never judged can only be used."""
    return "validate" if report.metrics else "predict --out feats.npy"


def _near(path: Path) -> str:
    """A path as one would type it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def validated(report: ValidateReport) -> None:
    """The metrics and what they were taken over."""
    metrics_table(report.metrics, report.intervals, report.confidence)
    pairs = report.pair_histogram()
    if pairs is not None:
        width = min(columns(), 120) if sys.stdout.isatty() else 80
        title, *lines = two_sides(pairs, report.distance, sign(), width)
        said("".join(text for text, _ in title))
        for parts in lines:
            styled(parts)
        out("")
    for line in _thresholds(report.thresholds):
        out(line)
    lows = [low for row in report.intervals.values() for low, _ in row.values()]
    if any(not math.isnan(low) for low in lows):
        share = f"{100 * report.confidence:.6g}%"
        said(f"{share} intervals: bootstrap over labels; too narrow where there are fewer than 10")
    elif lows:  # they were asked for
        out("fewer than two labels: no intervals")
    said(
        f"{report.queries} queries ({report.queries_without_match} without match), "
        f"{report.gallery} gallery rows; {report.distance} distance, {report.search} search; "
        f"split {report.split}; embeddings: {report.embeddings}"
    )
    if report.comparison is not None:
        out("")
        shown = {"most": _MOST, "width": columns()} if sys.stdout.isatty() else {}
        out(format_comparison(report.comparison, **shown))


def _thresholds(thresholds: Metrics) -> list[str]:
    """The distance below which a pair is taken for one label, at each operating point over all pairs."""
    points = [f"{name} at {cell(value)}" for name, value in thresholds.get(OVERALL, {}).items()]
    return [f"threshold on the distance: {', '.join(points)}"] if points else []


def predicted(report: PredictReport) -> None:
    """Where the features are."""
    out(f"{report.rows} rows of {report.dim} {report.dtype} in {report.out}")
    out(f"index {report.index}, manifest {report.manifest}")


def dry(report: DryRunReport) -> None:
    """What the batches held and what a step cost."""
    rows = [[f"train batch {key}", _cell(value)] for key, value in report.train_batch.items()]
    rows += [[f"eval batch {key}", _cell(value)] for key, value in report.eval_batch.items()]
    rows += [
        ["steps per epoch", str(report.steps_per_epoch)],
        ["parameters", f"{report.parameters:,} ({report.trainable:,} trained)"],
        ["memory", f"{report.memory_mb:,.0f} MB"],
    ]
    table(["dry run", ""], rows, numbers_from=9)
    out("nothing was written")


def compared_processes(report: ParityReport) -> None:
    """What differs between several processes and one, and why."""
    rows = [[name, _cell(value)] for name, value in report.differences.items()]
    rows += [[f"gradient of {shown(name)}", _cell(value)] for name, value in report.worst.items() if value]
    table([f"{report.processes} processes against one", "differ by"], rows, numbers_from=1)
    if report.same:
        out(f"the same: a step of {report.images} images, in float64, to {report.tolerance:g}")
    elif report.same_without_noise:
        out(f"the same without dropout; {shown('; '.join(report.causes))}")


def require_parity(report: ParityReport) -> None:
    """Raise for processes that do not give the numbers of one.

    Raises:
        WorkerError: with the likely cause.
    """
    if not report.same and not report.same_without_noise:
        what = f"{report.processes} processes do not train as one does: {'; '.join(report.causes)}"
        raise WorkerError(what)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def inspected(report: InspectReport) -> None:
    """Findings, counts, sizes and suggestions."""
    _findings(report.findings)
    measures = ("rows", "labels", "categories", "sequences", "queries", "gallery", "boxes")
    splits = report.splits.values()
    rows = [[measure, *(str(getattr(split, measure)) for split in splits)] for measure in measures]
    spreads = [f"{s.instances_min} / {s.instances_median:g} / {s.instances_max}" for s in splits]
    rows.append(["instances a label", *spreads])
    head = ["", *(shown(name) or "(none)" for name in report.splits)]
    table(head, rows, title=f"{report.table}: {report.rows} rows (instances: min / median / max)")
    for name, s in report.splits.items():
        if s.histogram:
            out(f"instances a label, {shown(name) or '(none)'}")
            for line in one_side(s.histogram, sign()):
                styled(line)
    if report.images:
        _images(report)
    if report.suggested:
        labels, instances = report.suggested["n_labels"], report.suggested["n_instances"]
        out(f"suggested sampler: {{name: balanced, n_labels: {labels}, n_instances: {instances}}}")
        for reason in report.suggested["why"]:
            said(f"  {reason}")


def _findings(findings: Sequence[Finding]) -> None:
    if not findings:
        out("no findings")
    for finding in findings:
        out(f"{finding.severity}: {finding.message} [{finding.code}]")


def _images(report: InspectReport) -> None:
    images = report.images
    parts = [
        f"{side} {' / '.join(map(_cell, images[side]))}" for side in ("width", "height") if images.get(side)
    ]
    formats = ", ".join(f"{count} {name}" for name, count in (images.get("formats") or {}).items())
    said(
        f"images (min / median / max): {'; '.join(parts)}; {formats}; "
        f"{images['checked']} of {images['images']} looked at"
    )
