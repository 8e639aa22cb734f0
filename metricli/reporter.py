"""Where a verb's live words go while it works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Reporter", "SilentReporter"]


class Reporter(Protocol):
    """Where a verb's live words go: the terminal, a log, or nowhere. Only rank 0 is given a real one."""

    def say(self, message: str) -> None:
        """One line a person wants to know."""

    def warn(self, message: str) -> None:
        """One line about something dropped, clipped, replaced or doubtful."""

    def begin(self, name: str, total: int | None, unit: str) -> None:
        """A countable piece of work starts; `total` None if its length is unknown."""

    def advance(self, amount: int, values: Mapping[str, float] | None = None) -> None:
        """`amount` units of the current work are done; `values` are its live numbers."""

    def end(self) -> None:
        """The current work is over."""

    def epoch(self, row: Mapping[str, float | int | str]) -> None:
        """One finished epoch, as a flat row."""


class SilentReporter:
    """Says nothing; the default of the Python verbs."""

    def say(self, message: str) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """Nothing."""

    def begin(self, name: str, total: int | None, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int, values: Mapping[str, float] | None = None) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

    def epoch(self, row: Mapping[str, float | int | str]) -> None:
        """Nothing."""
