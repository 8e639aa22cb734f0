"""Everything that can be said about a table before training on it, as findings with stable codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metricli.data.files import check_files, check_paths
from metricli.data.relations import check_labels, check_paths_repeated, check_queries
from metricli.data.subject import Subject
from metricli.data.table import Need, Table
from metricli.data.values import (
    check_boxes,
    check_categories,
    check_columns,
    check_flags,
    check_splits,
    check_texts,
)
from metricli.errors import DataError
from metricli.reports import Finding

_CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    check_paths_repeated,
    check_labels,
    check_paths,
    check_texts,
    check_flags,
    check_queries,
    check_splits,
    check_categories,
    check_columns,
    check_boxes,
)
"""In the order in which they start: those that share an array are apart, so that none waits for it long."""
_OF_GALLERY = ("empty-gallery", "one-label-gallery", "query-finds-itself", "query-without-match")
"""Findings that do not concern a table whose queries search the gallery of another."""
_THREADS = 3
"""Numpy and arrow let go of the interpreter for most of this work."""


def check_table(
    table: Table,
    *,
    need: Need = "train",
    files: bool = True,
    allow_outside_root: bool = False,
    split: str = "validation",
    own_gallery: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> list[Finding]:
    """What is wrong with a table, errors first.

    Args:
        table: from `read_table` or `folder_table`.
        need: what it is for; predicting asks only for paths, evaluating judges one split.
        files: whether to look for the images; without it no file is touched.
        allow_outside_root: whether paths may leave `table.root`.
        split: the split whose queries and gallery will be judged; "all" for every row.
        own_gallery: whether its queries search its own gallery, not that of another table.
        on_progress: called with how many rows have had their files looked for since the last call.
    """
    subject = Subject(table, need, split)
    with ThreadPoolExecutor(_THREADS) as pool:
        done = pool.map(lambda check: list(check(subject)), _CHECKS)
        found = [finding for findings in done for finding in findings]
    if allow_outside_root:
        found = [finding for finding in found if finding.code != "path-outside-root"]
    if not own_gallery:
        found = [finding for finding in found if finding.code not in _OF_GALLERY]
    if files and not table.files_are_there:
        found += check_files(subject, allow_outside_root=allow_outside_root, on_progress=on_progress)
    return in_order(found)


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first; within a severity, by code and first row."""
    return sorted(findings, key=lambda finding: (finding.severity != "error", finding.code, finding.rows[:1]))


def require_sound(findings: Sequence[Finding], source: str | Path) -> list[Finding]:
    """The warnings among `findings`.

    Raises:
        DataError: there are errors; all of them, a line each.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return list(findings)
    hint = f"run `metricli inspect-dataset {source}` for all rows"
    if len(errors) == 1:
        raise DataError(f"{source}: {errors[0].message}", hint=hint)
    lines = [f"{len(errors)} errors in {source}", *(f"  {finding.message}" for finding in errors)]
    raise DataError("\n".join(lines), hint=hint)
