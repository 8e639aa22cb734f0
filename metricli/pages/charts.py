"""Charts as SVG text: lines, histograms, points. Colours are CSS classes, which light and dark fill in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from metricli.tables import printable, shortened

__all__ = ["COLOURS", "Line", "Mark", "Point", "bars", "columns", "lines", "points", "ticks"]

COLOURS = 8
"""Of series; more share the last one's."""
_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 34
_MOST = 400
"""Points of a line."""


@dataclass(frozen=True)
class Line:
    """A series of (x, y), ascending in x."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Mark:
    """A place on the x axis with words beside it."""

    name: str
    at: float


@dataclass(frozen=True)
class Point:
    """A place of the map, with the number of its colour (-1: none of them) and words for the pointer."""

    x: float
    y: float
    colour: int
    words: str


@dataclass(frozen=True)
class _Axes:
    low_x: float
    high_x: float
    low_y: float
    high_y: float
    height: int = _HEIGHT

    def x(self, value: float) -> str:
        share = (value - self.low_x) / (self.high_x - self.low_x)
        return f"{_LEFT + share * (_WIDTH - _LEFT - _RIGHT):.1f}"

    def y(self, value: float) -> str:
        share = (value - self.low_y) / (self.high_y - self.low_y)
        return f"{self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM):.1f}"


def _safe(text: str, most: int = 40) -> Markup:
    return escape(shortened(printable(text), most))


def _spread(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty; what differs by rounding alone is drawn as one value."""
    if high - low > 1e-5 * max(abs(low), abs(high)):
        return low, high
    return low - max(abs(low), 1.0) * 0.05, high + max(abs(high), 1.0) * 0.05


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within a range, at most `most` of them and a few more."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    text = f"{value:.6g}"
    return "0" if text in ("-0", "0") or abs(value) < 1e-12 else text


def _svg(title: str, body: Sequence[str], height: int = _HEIGHT) -> Markup:
    name = _safe(title, 200)
    head = f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{name}">'
    return Markup(head + f"<title>{name}</title>" + "".join(body) + "</svg>")  # all words are escaped


def _frame(axes: _Axes, label_x: str, *, whole_x: bool = False, with_y: bool = True) -> list[str]:
    """Grid lines, numbers and the name of the x axis."""
    body, bottom = [], axes.height - _BOTTOM
    for value in ticks(axes.low_y, axes.high_y, 5) if with_y else ():
        y = axes.y(value)
        body.append(f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        body.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y}" dy=".32em" text-anchor="end">{_number(value)}</text>'
        )
    for value in ticks(axes.low_x, axes.high_x):
        if whole_x and value != round(value):
            continue
        x = axes.x(value)
        body.append(f'<path class="grid" d="M{x} {_TOP}V{bottom}"/>')
        body.append(
            f'<text class="tick" x="{x}" y="{bottom + 15}" text-anchor="middle">{_number(value)}</text>'
        )
    body.append(
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{axes.height - 4}" text-anchor="middle">'
        f"{_safe(label_x)}</text>"
    )
    return body


def lines(title: str, series: Sequence[Line], label_x: str) -> Markup | None:
    """A chart of some lines; None if they have no finite value. Long ones are drawn by means of stretches."""
    thin = [_thinned(line) for line in series]
    values = [(x, y) for line in thin for x, y in line]
    if not values:
        return None
    low_x, high_x = _spread(min(x for x, _ in values), max(x for x, _ in values))
    low_y, high_y = _spread(min(y for _, y in values), max(y for _, y in values))
    axes = _Axes(low_x, high_x, low_y, high_y)
    body = _frame(axes, label_x, whole_x=True)
    for place, line in enumerate(thin):
        colour = f"c{min(place, COLOURS - 1)}"
        spots = " ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in line)
        body.append(f'<polyline class="line {colour}" points="{spots}"/>')
        if len(line) <= 40:
            body += [
                f'<circle class="dot {colour}" cx="{axes.x(x)}" cy="{axes.y(y)}" r="2.5"/>' for x, y in line
            ]
    return _svg(title, body)


def _thinned(line: Line) -> list[tuple[float, float]]:
    spots = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(spots) <= _MOST:
        return spots
    step = math.ceil(len(spots) / _MOST)
    parts = (spots[start : start + step] for start in range(0, len(spots), step))
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def bars(
    title: str,
    edges: Sequence[float],
    sides: Sequence[tuple[str, Sequence[int]]],
    marks: Sequence[Mark],
    label_x: str,
) -> Markup:
    """Histograms over the same bins, each drawn as the share of its own total, with marks on the x axis.

    `sides` are (CSS class, counts).
    """
    shares = [(kind, [count / max(1, sum(counts)) for count in counts]) for kind, counts in sides]
    top = max([share for _, some in shares for share in some] + [1e-9])
    height = _HEIGHT + 14 * len(marks)
    axes = _Axes(edges[0], edges[-1], 0.0, top * (1 + 0.08 * len(marks)), height)
    body = _frame(axes, label_x, with_y=False)
    for kind, some in shares:
        spots = [f"M{axes.x(edges[0])} {axes.y(0)}"]
        for left, right, share in zip(edges[:-1], edges[1:], some, strict=True):
            spots.append(f"L{axes.x(left)} {axes.y(share)}L{axes.x(right)} {axes.y(share)}")
        body.append(f'<path class="bars {kind}" d="{"".join(spots)}L{axes.x(edges[-1])} {axes.y(0)}Z"/>')
    for place, mark in enumerate(sorted(marks, key=lambda mark: mark.at)):
        if not edges[0] <= mark.at <= edges[-1]:
            continue
        x, y = axes.x(mark.at), _TOP + 12 + 14 * place
        body.append(f'<path class="mark" d="M{x} {y - 10}V{height - _BOTTOM}"/>')
        is_left = float(x) > _WIDTH * 0.7
        anchor, at = ("end", float(x) - 4) if is_left else ("start", float(x) + 4)
        words = _safe(f"{mark.name}: {mark.at:.4f}")
        body.append(f'<text class="marked" x="{at:.1f}" y="{y}" text-anchor="{anchor}">{words}</text>')
    return _svg(title, body, height)


def points(title: str, spots: Sequence[Point]) -> Markup:
    """A map, with the same scale on both axes."""
    size, pad = 460, 10
    xs, ys = [spot.x for spot in spots], [spot.y for spot in spots]
    span = max(max(xs) - min(xs), max(ys) - min(ys), 1e-9)
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    body = []
    for spot in sorted(spots, key=lambda spot: spot.colour):
        x = _WIDTH / 2 + (spot.x - middle[0]) / span * (size - 2 * pad)
        y = size / 2 - (spot.y - middle[1]) / span * (size - 2 * pad)
        colour = f"c{min(spot.colour, COLOURS - 1)}" if spot.colour >= 0 else "none"
        title_ = f"<title>{_safe(spot.words, 120)}</title>"
        body.append(f'<circle class="point {colour}" cx="{x:.1f}" cy="{y:.1f}" r="4">{title_}</circle>')
    return _svg(title, body, size)


def columns(title: str, counts: Sequence[tuple[str, int]]) -> Markup | None:
    """A column for each name, with its count above it; None without any."""
    if not counts:
        return None
    axes = _Axes(0, len(counts), 0, max(max(count for _, count in counts), 1) * 1.12)
    body, bottom = [], _HEIGHT - _BOTTOM
    for place, (name, count) in enumerate(counts):
        left, right, y = float(axes.x(place + 0.12)), float(axes.x(place + 0.88)), axes.y(count)
        middle = f'x="{(left + right) / 2:.1f}" text-anchor="middle"'
        body.append(f'<path class="column" d="M{left} {bottom}V{y}H{right}V{bottom}Z"/>')
        body.append(f'<text class="marked" {middle} y="{float(y) - 5:.1f}">{count}</text>')
        body.append(f'<text class="tick" {middle} y="{bottom + 15}">{_safe(name, 16)}</text>')
    body.append(
        f'<text class="axis" x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">images of a label</text>'
    )
    return _svg(title, body)
