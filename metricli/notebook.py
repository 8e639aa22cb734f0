"""Reports as HTML for a notebook, and their metrics as a pandas frame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from metricli.tables import cell, printable, shortened

if TYPE_CHECKING:
    import pandas as pd

    from metricli.reports import Comparison, Intervals, Metrics

__all__ = ["comparison_page", "facts_page", "frame", "metrics_page"]

_MOST = 20
"""Categories or labels of a table, and items of a list; the report itself has all."""
_LONGEST = 300


def frame(metrics: Metrics, intervals: Intervals | None = None) -> pd.DataFrame:
    """A row for OVERALL and each category, a column for each metric.

    Of a metric with an interval there are two columns more, such as `cmc@1 low` and `cmc@1 high`.
    """
    import pandas as pd

    rows: dict[str, dict[str, float]] = {}
    for category, values in metrics.items():
        ends = (intervals or {}).get(category, {})
        row = rows[category] = {}
        for name, value in values.items():
            row[name] = value
            if name in ends:
                row[f"{name} low"], row[f"{name} high"] = ends[name]
    found = pd.DataFrame.from_dict(rows, orient="index")
    found.index.name = "category"
    return found


def metrics_page(title: str, metrics: Metrics, intervals: Intervals, facts: Mapping[str, Any]) -> str:
    """A title, a table of the metrics with their intervals below, and what else there is to say."""
    names = list(dict.fromkeys(name for row in metrics.values() for name in row))
    lines = []
    for category, values in list(metrics.items())[: _MOST + 1]:
        ends = intervals.get(category, {})
        lines.append([category, *(_value(values.get(name, math.nan), ends.get(name)) for name in names)])
    more = max(0, len(metrics) - _MOST - 1)
    rest = [f"and {more} more categories: see to_frame()"] if more else []
    return _page(title, ["", *names], lines, facts, rest)


def comparison_page(found: Comparison) -> str:
    """The differences of a comparison, OVERALL and for each category."""
    head = ["", "metric", "A", "B", "B - A", f"{100 * found.confidence:g} % interval", ""]
    lines = [
        [
            category,
            name,
            cell(one.theirs),
            cell(one.ours),
            cell(one.difference),
            _range(one.low, one.high),
            one.verdict,
        ]
        for category, row in list(found.differences.items())[: _MOST + 1]
        for name, one in row.items()
    ]
    return _page(
        "Comparison", head, lines, {"A": found.theirs, "B": found.ours, "queries": found.queries}, found.notes
    )


def facts_page(title: str, facts: Mapping[str, Any]) -> str:
    """A report of plain facts, one a line."""
    return _page(title, [], [], facts, [])


def _value(value: float, ends: tuple[float, float] | None) -> str:
    return cell(value) if ends is None else f"{cell(value)} {_range(*ends)}".rstrip()


def _range(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"({low:.3f}..{high:.3f})"


def _page(
    title: str,
    head: Sequence[str],
    lines: Iterable[Sequence[str]],
    facts: Mapping[str, Any],
    notes: Sequence[str],
) -> str:
    parts = [f"<strong>{_safe(title)}</strong>"]
    body = "".join(_row("td", line) for line in lines)
    if body:
        parts.append(f"<table><thead>{_row('th', head)}</thead><tbody>{body}</tbody></table>")
    told = "".join(f"<dt>{_safe(name)}</dt><dd>{_safe(_text(value))}</dd>" for name, value in facts.items())
    parts += [f"<dl>{told}</dl>"] if told else []
    parts += [f"<p>{_safe(note)}</p>" for note in notes]
    return f'<div class="metricli-report">{"".join(parts)}</div>'


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_safe(one)}</{tag}>' for one in cells)}</tr>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in list(value.items())[:_MOST])
    if isinstance(value, (list, tuple)):
        more = f", and {len(value) - _MOST} more" if len(value) > _MOST else ""
        return "; ".join(map(_text, value[:_MOST])) + more
    return str(value)


def _safe(text: Any) -> str:
    """A user's word: control characters made visible, nothing of it HTML."""
    return escape(shortened(printable(str(text)), _LONGEST))
