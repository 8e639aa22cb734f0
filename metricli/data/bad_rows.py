"""The rows of a table whose images cannot be used: found by decoding them, or known from an earlier time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute

from metricli.data.known import read_known
from metricli.data.looking import Images, is_unchanged, look, message_of
from metricli.data.phrases import Rows0, counted
from metricli.data.table import Table
from metricli.errors import DataError
from metricli.reports import Finding


@dataclass
class BadRows:
    """Some rows, and why their images cannot be used."""

    reasons: dict[int, str] = field(default_factory=dict)
    """By 0-based row of the table, ascending."""
    notes: list[str] = field(default_factory=list)
    """What else there is to say."""

    def __len__(self) -> int:
        return len(self.reasons)

    def refusal(self, table: Table) -> DataError:
        """The error that names the first of them."""
        said = counted(len(self), "row", ("names an image", "name images"))
        what = f"{table.source}: {said} that cannot be read"
        first = list(self.reasons.items())[: Finding.MAX_ROWS]
        lines = [f"{reason} (row {row + 1})" for row, reason in first]
        if len(self) > len(lines):
            lines.append(f"and {len(self) - len(lines)} more")
        hint = "repair or remove them, or set data.on_bad_image=skip"
        if len(lines) == 1:
            return DataError(f"{what}: {lines[0]}", hint=hint)
        return DataError("\n  ".join([what, *lines]), hint=hint)


def undecodable(
    table: Table, rows: Rows0, max_pixels: int, on_progress: Callable[[int, int], None] | None = None
) -> BadRows:
    """Of some rows, ascending, those whose image cannot be decoded or does not hold their box."""
    if not len(rows):
        return BadRows()
    column = table.text["path"].take(pa.array(rows))
    coded = column.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    codes, words = coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()
    looked = look(table.root, words, range(len(words)), Images(True, max_pixels, on_progress))
    problems = np.array([bool(looked.seen[place].problem) for place in range(len(words))], dtype=bool)
    reasons = {int(rows[i]): looked.seen[int(codes[i])].problem for i in np.flatnonzero(problems[codes])}
    boxes = table.boxes.values
    if boxes is not None:
        sizes = np.array([(looked.seen[i].width, looked.seen[i].height) for i in range(len(words))])
        for i in np.flatnonzero((boxes[rows, 2:] > sizes[codes]).any(axis=1) & ~problems[codes]):
            size = " x ".join(map(str, sizes[codes[i]]))
            box = tuple(boxes[rows[i]].tolist())
            path = str(table.root / words[codes[i]])
            reasons[int(rows[i])] = f"box {box} reaches outside the {size} pixels of {path!r}"
    return BadRows(dict(sorted(reasons.items())), looked.notes)


def known_to_be_bad(table: Table, rows: Callable[[], Rows0]) -> BadRows:
    """Of some rows those whose image an earlier deep look could not decode, and which is still the same.

    Where there was none, this costs the question whether a file exists.
    """
    known = read_known(table.root, if_broken=True)
    notes = [known.note] if known.note else []
    broken = known.broken()
    if not broken:
        return BadRows(notes=notes)
    paths = table.text["path"]
    is_broken = pa_compute.is_in(paths, value_set=pa.array(list(broken), pa.string())).to_numpy()
    is_asked = np.zeros(len(table), dtype=bool)
    is_asked[rows()] = True
    chosen = np.flatnonzero(is_broken & is_asked)
    reasons, still = {}, {}
    for row, path in zip(chosen.tolist(), paths.take(pa.array(chosen)).to_pylist(), strict=True):
        if path not in still:
            still[path] = is_unchanged(table.root / path, broken[path])
        if still[path]:
            reasons[row] = message_of(table.root, broken[path])
    return BadRows(reasons, notes)
