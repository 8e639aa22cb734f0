"""Reports as plain aligned text."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metricli.reports import Comparison, Intervals, MetricDifference, Metrics

__all__ = [
    "WIDEST",
    "aligned",
    "broken",
    "cell",
    "format_comparison",
    "format_metrics",
    "metric_cells",
    "printable",
    "printable_lines",
    "shortened",
    "width_of",
]

WIDEST = 200
"""Characters of a line off a terminal, as far as it can be broken between words."""


def metric_cells(
    metrics: Metrics, intervals: Intervals, confidence: float, names: Sequence[str]
) -> list[list[str]]:
    """A line for OVERALL and each category, and below it its intervals, if it has any."""
    lines = []
    for category, row in metrics.items():
        lines.append([printable(category), *(cell(row.get(name, math.nan)) for name in names)])
        found = intervals.get(category, {})
        if any(name in found and not math.isnan(found[name][0]) for name in names):
            lines.append([f"  {100 * confidence:.6g}%", *(_range(found.get(name)) for name in names)])
    return lines


def _range(interval: tuple[float, float] | None) -> str:
    if interval is None or math.isnan(interval[0]):
        return "-"
    return f"{interval[0]:.3f}..{interval[1]:.3f}"


def format_metrics(metrics: Metrics, intervals: Intervals | None = None, confidence: float = 0.95) -> str:
    """Metrics as plain aligned text: a line for OVERALL and each category, four decimals, and intervals."""
    names = list(dict.fromkeys(name for row in metrics.values() for name in row))
    body = metric_cells(metrics, intervals or {}, confidence, names)
    return "\n".join(aligned([["", *names], *body], left=(0,)))


def printable(text: str) -> str:
    """A user's word, with control characters made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """The same for words of ours around those of a user: their line breaks stay."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def shortened(text: str, most: int) -> str:
    """The first characters of a text that is longer than `most`, and an ellipsis."""
    return text if len(text) <= most else text[: max(1, most - 1)] + "…"


def cell(value: float) -> str:
    """Four decimals, or - for NaN."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def format_comparison(comparison: Comparison, *, most: int | None = None, width: int | None = None) -> str:
    """A comparison as plain aligned text; of the categories and the labels that changed, the first `most`.

    With a `width` no category or label takes more than a third of it, and where a line would still be
    longer, there are two tables: the differences, and below them the two values.
    """
    found = comparison
    longest = None if width is None else width // 3
    lines = [
        f"A  {printable(found.theirs)}",
        f"B  {printable(found.ours)}",
        f"{found.queries} queries of {found.labels} labels; intervals by {found.samples} draws of labels",
        "",
    ]
    categories = list(found.differences.items())[: None if most is None else most + 1]
    named = [(_name(category, longest), row) for category, row in categories]
    lines += _differences(named, f"{100 * found.confidence:g} % interval", width)
    if hidden := len(found.differences) - len(categories):
        lines.append(f"and {hidden} more categor{'ies' if hidden > 1 else 'y'}, see --json")
    flips = found.flips
    counts = f"{flips.gained} gained, {flips.lost} lost, {flips.unchanged} unchanged"
    lines += ["", f"{flips.metric} by query, from A to B: {counts}"]
    shown = flips.labels if most is None else flips.labels[:most]
    if shown:
        table = [["label", "gained", "lost"]]
        table += [[_name(label, longest), str(gained), str(lost)] for label, gained, lost in shown]
        lines += aligned(table, left=(0,))
    if more := len(flips.labels) - len(shown):
        lines.append(f"and {more} more label{'s' if more > 1 else ''}, see --json")
    lines += ["", *(f"note: {printable(note)}" for note in found.notes)] if found.notes else []
    return "\n".join(lines)


def _name(text: str, longest: int | None) -> str:
    return printable(text) if longest is None else shortened(printable(text), longest)


def _differences(
    named: Sequence[tuple[str, Mapping[str, MetricDifference]]], interval: str, width: int | None
) -> list[str]:
    """One table, or two of which each line is a metric below its category's own line."""
    rows = [["", "metric", "A", "B", "B - A", interval, "p", ""]]
    for category, row in named:
        for place, (metric, entry) in enumerate(row.items()):
            rows.append([category if place == 0 else "", metric, *_cells(entry)])
    lines = aligned(rows, left=(0, 1, 7))
    if width is None or max(map(len, lines)) <= width:
        return lines
    lines = []
    for columns, left in (((4, 5, 7), (0, 3)), ((2, 3, 6), (0,))):
        part = aligned([[f" {cells[1]}", *(cells[i] for i in columns)] for cells in rows], left=left)
        lines += [""] if lines else []
        for cells, line in zip(rows, part, strict=True):
            lines += [cells[0], line] if cells[0] else [line]
    return lines


def _cells(entry: MetricDifference) -> list[str]:
    if math.isnan(entry.difference):
        return [cell(entry.theirs), cell(entry.ours), "-", "-", "-", ""]
    if math.isnan(entry.low):
        between, p = "-", "-"
    else:
        between, p = f"{entry.low:+.4f} to {entry.high:+.4f}", f"{entry.p:.3f}"
    return [cell(entry.theirs), cell(entry.ours), f"{entry.difference:+.4f}", between, p, entry.verdict]


def aligned(rows: Sequence[Sequence[str]], *, left: Container[int]) -> list[str]:
    """Rows of cells as lines of columns, two spaces apart, those of `left` to the left."""
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for place, (text, width) in enumerate(zip(row, widths, strict=True)):
            room = " " * (width - width_of(text))
            cells.append(text + room if place in left else room + text)
        lines.append("  ".join(cells).rstrip())
    return lines


def width_of(text: str) -> int:
    """The columns that a text takes: two for each wide character, such as a Chinese one."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def broken(text: str, most: int = WIDEST) -> list[str]:
    """Its lines, each broken between words where it has more than `most` characters; a word stays whole."""
    lines: list[str] = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        parts = wrap(line, most, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines += parts if len(line) > most else [line]
    return lines
