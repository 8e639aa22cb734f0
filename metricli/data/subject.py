"""What the checks share: a table, what it is for, and the numbers that more than one check needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricli.data.phrases import Said
from metricli.data.strings import groups, hash_text, values_at
from metricli.data.table import Need, Table
from metricli.reports import Finding


@dataclass(frozen=True, eq=False)
class Subject:
    """A table under examination."""

    table: Table
    need: Need
    split: str
    """The split whose queries are judged against its gallery."""

    @cached_property
    def label_groups(self) -> tuple[NDArray[np.int64], int]:
        """A number for each row's label, and a bound above them."""
        return groups(hash_text(self.table.text["label"]))

    @cached_property
    def category_hashes(self) -> NDArray[np.uint64]:
        """A hash of each row's category."""
        return hash_text(self.table.text["category"])

    @cached_property
    def judged(self) -> NDArray[np.bool_]:
        """(N,) rows of the judged split, but for those to be ignored."""
        inside = self.table.in_split(self.split)
        return inside & ~self.table.ignored if self.has("ignore") else inside

    def first(self, name: str, rows: Said) -> list[str]:
        """The values of a column at the first of these rows, as many as are shown."""
        return values_at(self.table.text[name], rows[: Finding.MAX_ROWS])

    def has(self, *names: str) -> bool:
        """Whether the table has all these columns."""
        return all(name in self.table.text for name in names)

    def column(self, name: str) -> Any:
        """A column as chunked array of strings."""
        return self.table.text[name]
