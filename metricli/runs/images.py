"""The images of the rows that a verb is about to use, looked at before it does any work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metricli.data.bad_rows import BadRows, known_to_be_bad, undecodable
from metricli.data.phrases import counted
from metricli.data.table import Rows, Table
from metricli.reporter import Reporter
from metricli.runs.processes import World
from metricli.specs.data import DataSpec


def check_images(
    table: Table, parts: Sequence[Rows], data: DataSpec, reporter: Reporter, warnings: list[str], world: World
) -> list[str]:
    """Paths of the images that cannot be read and will be skipped, as far as `data.check` finds them.

    The main process looks for all. What there is to warn of is said, and added to `warnings`.

    Raises:
        DataError: there are such images, and `data.on_bad_image` is "raise".
    """
    skipped, said = world.once(lambda: _checked(table, parts, data, reporter))
    warnings += said
    return skipped


def _checked(
    table: Table, parts: Sequence[Rows], data: DataSpec, reporter: Reporter
) -> tuple[list[str], list[str]]:
    if data.check == "files" and data.on_bad_image == "skip":
        return [], []

    def rows() -> NDArray[np.int64]:
        return np.unique(np.concatenate([part.index for part in parts]))

    bad = known_to_be_bad(table, rows) if data.check == "files" else _decoded(table, rows(), data, reporter)
    said = list(bad.notes)
    for note in said:
        reporter.warn(note)
    if not bad:
        return [], said
    if data.on_bad_image == "raise":
        raise bad.refusal(table)
    paths = list(dict.fromkeys(table.texts("path", np.array(list(bad.reasons)))[:].tolist()))
    first = "; ".join(list(bad.reasons.values())[:3]) + ("; ..." if len(bad) > 3 else "")
    said.append(f"{counted(len(paths), 'image', ('is', 'are'))} to be skipped: {first}")
    reporter.warn(said[-1])
    return paths, said


def _decoded(table: Table, rows: NDArray[np.int64], data: DataSpec, reporter: Reporter) -> BadRows:
    has_begun = False

    def advance(_done: int, total: int) -> None:
        nonlocal has_begun
        if not has_begun:  # only now it is known how many different images there are
            reporter.begin("decode images", total, "image")
            has_begun = True
        reporter.advance(1)

    try:
        return undecodable(table, rows, data.max_pixels, advance)
    finally:
        if has_begun:
            reporter.end()
