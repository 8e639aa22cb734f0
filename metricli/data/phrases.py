"""How findings are worded: rows are 1-based data rows, values stand by repr, all are counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metricli.reports import Finding


class Tally:
    """As much of many rows as a finding says: how many there are, and the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def add(self, rows: NDArray[np.int64]) -> None:
        """Further rows, ascending; calls may come in any order."""
        self.count += len(rows)
        self.first = np.sort(np.concatenate([self.first, rows[: Finding.MAX_ROWS]]))[: Finding.MAX_ROWS]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, shown: slice) -> NDArray[np.int64]:
        return self.first[shown]


Rows0 = NDArray[np.int64]
"""0-based rows of a table, ascending."""
Said = Rows0 | Tally
"""Rows that are counted and of which the first are named."""


def finding(
    severity: Literal["error", "warning"], code: str, rows: Said, message: str, *, count: int | None = None
) -> Finding:
    """A finding about 0-based `rows`; `count` is their number unless something else is counted."""
    first = [int(row) + 1 for row in rows[: Finding.MAX_ROWS]]
    return Finding(code, severity, len(rows) if count is None else count, first, message)


def counted(number: int, noun: str, verbs: tuple[str, str] | None = None) -> str:
    """`1 row has`, `2 rows have`; without `verbs` the number and the noun."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("x") else "s")
    words = f"{number} {noun if number == 1 else plural}"
    return words if verbs is None else f"{words} {verbs[number != 1]}"


def say_rows(rows: Said) -> str:
    """`row 4, 9, 12`, and how many more after the tenth."""
    first = rows[: Finding.MAX_ROWS]
    return f"row {', '.join(str(int(row) + 1) for row in first)}{_more(len(rows), 'more')}"


def say_values(rows: Said, values: Sequence[str]) -> str:
    """`'tset' (row 4, 9), 'val' (row 12)`; `values` belong to the first rows, in order."""
    of_value: dict[str, list[int]] = {}
    for row, value in zip(rows[: Finding.MAX_ROWS], values, strict=False):
        of_value.setdefault(value, []).append(int(row) + 1)
    parts = [f"{show(value)} (row {', '.join(map(str, places))})" for value, places in of_value.items()]
    return ", ".join(parts) + _more(len(rows), "more rows")


def show(value: Any, length: int = 200) -> str:
    """The repr of a value, its middle left out if it is very long."""
    text = repr(str(value))
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-length // 2 :]}"


def _more(count: int, noun: str) -> str:
    more = count - Finding.MAX_ROWS
    if more <= 0:
        return ""
    return f" and {more} {noun[:-1] if more == 1 and noun.endswith('s') else noun}"
