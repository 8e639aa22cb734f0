"""The reporter of the terminal: live bars on a TTY, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from metricli.placement import placement
from metricli.tables import WIDEST, broken, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

LIVE = (
    "loss",
    "lr",
    "active",
    "positive_distance",
    "negative_distance",
    "accuracy",
    "effective_rank",
    "embedding_norm",
    "alignment",
    "uniformity",
    "memory_drift",
)
"""What stands beside the bar, as far as there is room for it."""
_SHORT = {
    "positive_distance": "d+",
    "negative_distance": "d-",
    "accuracy": "acc",
    "effective_rank": "rank",
    "embedding_norm": "norm",
    "alignment": "align",
    "uniformity": "unif",
    "memory_drift": "drift",
}
PLAIN_EVERY = 30.0
"""Seconds between two progress lines off a TTY."""
WIDE = 100
"""Columns of a terminal from which on the bar is long."""


def reporter(*, quiet: bool = False) -> PlainReporter:
    """The reporter that fits stderr; of several processes only the main one speaks."""
    if not placement().is_main:
        return MuteReporter()
    if quiet or not sys.stderr.isatty():
        return PlainReporter(quiet=quiet)
    return LiveReporter()


class PlainReporter:
    """One line for each thing said, a progress line every half minute; no colour, no control characters."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.name, self.total, self.unit = "", 0, ""
        self.done, self.images, self.started, self.said = 0, 0, 0.0, 0.0

    def line(self, text: str) -> None:
        """Write one line to stderr; a long one goes on below, indented."""
        print("\n".join(broken(printable(text))), file=sys.stderr, flush=True)  # noqa: T201

    def say(self, message: str) -> None:
        """One line a person wants to know."""
        if not self.quiet:
            self.line(message)

    def warn(self, message: str) -> None:
        """One line about something doubtful; said even when quiet."""
        self.line(f"warning: {message}")

    def begin(self, name: str, total: int | None, unit: str) -> None:
        """A countable piece of work starts."""
        self.name, self.total, self.unit = name, total or 0, unit
        self.done = self.images = 0
        self.started = self.said = time.monotonic()

    def advance(self, amount: int, values: Mapping[str, float] | None = None) -> None:
        """Some of it is done."""
        self.count(amount, values or {})
        now = time.monotonic()
        if now - self.said >= PLAIN_EVERY and not self.quiet:
            self.said = now
            rest = (now - self.started) / max(1, self.done) * max(0, self.total - self.done)
            head = f"{self.name}: {self.done}/{self.total} {plural(self.unit)}"
            tail = f"{span(rest)} left"
            numbers = describe(values or {}, self.rate(), WIDEST - len(head) - len(tail) - 4)
            self.line(", ".join(filter(None, [head, numbers, tail])))

    def count(self, amount: int, values: Mapping[str, float]) -> None:
        """Take note of what is done, for the rate."""
        self.done += amount
        self.images += int(values.get("images", amount))

    def rate(self) -> str:
        """Images (or whatever is counted) a second since the work began."""
        each = "images" if self.unit == "step" else plural(self.unit)
        return f"{self.images / max(1e-9, time.monotonic() - self.started):.0f} {each}/s"

    def end(self) -> None:
        """The work is over."""

    def epoch(self, row: Mapping[str, float | int | str]) -> None:
        """One line for an epoch."""
        if not self.quiet:
            self.line(describe_epoch(row))


class MuteReporter(PlainReporter):
    """Says nothing."""

    def line(self, text: str) -> None:
        """Nothing."""


class LiveReporter(PlainReporter):
    """A rich progress bar with the live numbers beside it; finished epochs scroll above it."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self.console: Console = Console(stderr=True, highlight=False, emoji=False)
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.room = 0

    def line(self, text: str) -> None:
        """Write above the bar."""
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """A yellow line."""
        from rich.text import Text

        self.console.print(Text("warning: ", style="yellow") + Text(printable(message)), soft_wrap=True)

    def begin(self, name: str, total: int | None, unit: str) -> None:
        """Open a bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.end()
        super().begin(name, total, unit)
        bar = 20 if self.console.width >= WIDE else 10
        taken = len(name) + bar + 2 * len(str(total or "?")) + 1 + len("0:00:00") + 4
        self.room = max(0, self.console.width - taken)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=bar),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[live]}", markup=False),
            console=self.console,
            transient=True,
        )
        self.progress.start()
        self.task = self.progress.add_task(name, total=total, live="")

    def advance(self, amount: int, values: Mapping[str, float] | None = None) -> None:
        """Move the bar."""
        self.count(amount, values or {})
        if self.progress is not None and self.task is not None:
            live = describe(values or {}, self.rate(), self.room)
            self.progress.update(self.task, advance=amount, live=live)

    def end(self) -> None:
        """Close the bar."""
        if self.progress is not None:
            self.progress.stop()
        self.progress = self.task = None

    def epoch(self, row: Mapping[str, float | int | str]) -> None:
        """One line for an epoch, the best one green."""
        from rich.text import Text

        style = "green" if row.get("best") else ""
        self.console.print(Text(describe_epoch(row, self.console.width), style=style), soft_wrap=True)


def describe(values: Mapping[str, float], rate: str, room: int | None = None) -> str:
    """The live numbers in a few words, no more of them than there is room for."""
    parts = [f"{_SHORT.get(name, name)} {number(values[name], name)}" for name in LIVE if name in values]
    while room is not None and parts and len(", ".join([*parts, rate])) > room:
        parts.pop()
    text = ", ".join([*parts, rate])
    return text if room is None or len(text) <= room else ""


def describe_epoch(row: Mapping[str, float | int | str], room: int | None = None) -> str:
    """A finished epoch in one line; where it does not fit, the last metrics are left for the report."""
    head = f"epoch {row['epoch']}/{row['epochs']}"
    shown = {k: v for k, v in row.items() if k not in ("epoch", "epochs", "best", "seconds")}
    parts = [
        f"{name} {number(value, name)}" for name, value in shown.items() if isinstance(value, (int, float))
    ]
    tail = [f"{row['seconds']:.1f} s", *(["best"] if row.get("best") else [])]
    while room is not None and parts and len("  ".join([head, *parts, *tail])) > room:
        parts.pop()
    return "  ".join([head, *parts, *tail])


def number(value: float, name: str = "") -> str:
    """Four decimals, or three digits and an exponent, as learning rates always have."""
    if value == 0 or math.isnan(value):
        return "-" if value else "0"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 and name != "lr" else f"{value:.2e}"


def plural(unit: str) -> str:
    """More than one of it."""
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"


def span(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
