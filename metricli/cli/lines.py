"""What stdout gets: lines and tables, rich on a terminal and plain in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from metricli.tables import aligned, broken, printable, printable_lines

if TYPE_CHECKING:
    from rich.table import Table


def out(text: str) -> None:
    """One or more lines on stdout."""
    print(printable_lines(text))  # noqa: T201


def said(text: str) -> None:
    """A long line on stdout, broken between words where a terminal ends; elsewhere it is one."""
    width = columns() if sys.stdout.isatty() else len(text) + 1
    for line in broken(printable(text), width):
        out(line)


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", numbers_from: int = 1
) -> None:
    """A table: rich where stdout is a terminal, else plain columns that are never cut."""
    head, body = list(map(printable, head)), [list(map(printable, row)) for row in rows]
    if not sys.stdout.isatty():
        if title:
            out(title)
        out(plain(head, body, numbers_from=numbers_from))
        return
    from rich.console import Console

    if title:
        styled([(printable(title), "bold")])
    console = Console(highlight=False, emoji=False)
    console.print(_rich(head, body, numbers_from), soft_wrap=False)


def plain(head: Sequence[str], body: Sequence[Sequence[str]], *, numbers_from: int = 1) -> str:
    """Columns apart by two spaces, those from `numbers_from` on to the right."""
    rows = [head, *body] if any(head) else body
    return "\n".join(aligned(rows, left=range(numbers_from)))


def _rich(head: Sequence[str], body: Sequence[Sequence[str]], numbers_from: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(head):
        made.add_column(Text(name), justify="right" if i >= numbers_from else "left", overflow="fold")
    for row in body:
        made.add_row(*map(Text, row))
    return made


def columns() -> int:
    """Of the terminal, or 80."""
    from shutil import get_terminal_size

    return get_terminal_size().columns


def styled(parts: Sequence[tuple[str, str]]) -> None:
    """One line of parts, in colour where stdout is a terminal that has it."""
    if not sys.stdout.isatty():
        out("".join(text for text, _ in parts).rstrip())
        return
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble(*parts)
    line.rstrip()
    Console(highlight=False, emoji=False).print(line, soft_wrap=True)


def shown(name: str) -> str:
    """A user's word, with control characters made visible."""
    return name if name.isprintable() else repr(name)
