"""Writing a table: names of any kind survive exactly, and no file is overwritten."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from metricli.data.kind import named, not_a_file
from metricli.errors import ResourceError, UsageError

__all__ = ["Row", "path_prefix", "require_new", "require_page", "write_new", "write_table"]

_COLUMNS = ("label", "path", "split", "is_query", "is_gallery")
_BOX = ("x_1", "x_2", "y_1", "y_2")
_NEEDS_QUOTES = re.compile(r'[,"\r\n]|^\s|\s$')
_FLAGS = {None: "", True: "true", False: "false"}
_PIECE = 1 << 14
"""Lines that are written at a time."""
_PAGES = (".html", ".htm")
_DOCTYPE = b"<!doctype html"
_HEAD = 1024
"""Bytes in which a page says that it is one."""


class Row(NamedTuple):
    """One image."""

    label: str
    path: str
    split: str
    is_query: bool | None = None
    is_gallery: bool | None = None
    category: str = ""
    box: tuple[int, int, int, int] | None = None
    """Left, top, right, bottom; the last two exclusive."""


def write_table(target: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV; category and box columns only where a row has one.

    Raises:
        UsageError: the target exists, or its folder does not.
        ResourceError: it cannot be written.
    """
    with_category = any(row.category for row in rows)
    with_boxes = any(row.box for row in rows)
    head = (*_COLUMNS, *(("category",) if with_category else ()), *(_BOX if with_boxes else ()))
    body = (_cells(row, with_category, with_boxes) for row in rows)
    write_new(target, (",".join(map(_cell, cells)) + "\n" for cells in chain([head], body)))


def _cells(row: Row, with_category: bool, with_boxes: bool) -> Iterator[str]:
    yield from (row.label, row.path, row.split, _FLAGS[row.is_query], _FLAGS[row.is_gallery])
    if with_category:
        yield row.category
    if with_boxes:
        left, top, right, bottom = row.box or ("", "", "", "")
        yield from map(str, (left, right, top, bottom))


def _cell(text: str) -> str:
    """A value as CSV; csv.writer of Python 3.11 leaves a lone carriage return bare."""
    return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text


def require_new(target: Path, option: str) -> None:
    """Refuse a target before any work is done for it.

    Raises:
        UsageError: it exists, or its folder does not.
    """
    try:
        there = os.path.lexists(target)
    except (OSError, ValueError):
        there = False  # writing will say it
    if there:
        raise UsageError(f"{named(target)!r} exists already", hint=f"give another {option}")
    _require_folder(target, option)


def _require_folder(target: Path, option: str) -> None:
    if not target.parent.is_dir():
        raise UsageError(f"{option} {named(target)!r}: the folder {named(target.parent)!r} does not exist")


def require_page(target: Path, option: str) -> None:
    """Refuse a target for a page before any work is done for it; a page that is there may be replaced.

    Raises:
        UsageError: its name is not that of a page, its folder does not exist, or something else is there.
    """
    if target.suffix.lower() not in _PAGES:
        hint = f"such as {named(target.with_suffix('.html').name)!r}" if target.name else ""
        raise UsageError(f"{option} {named(target)!r} is no name of a page, which ends in .html", hint=hint)
    _require_folder(target, option)
    what = not_a_file(target) or ("another file, not a page" if not _is_page(target) else None)
    if what is not None:
        raise UsageError(f"{option} {named(target)!r} is {what}", hint=f"give another {option}")


def _is_page(target: Path) -> bool:
    """Whether a file is a page, or holds nothing, or is not there: whether nothing else would be lost."""
    try:
        with target.open("rb") as file:
            head = file.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    except FileNotFoundError:
        return not target.is_symlink()
    except (OSError, ValueError):
        return False
    return head == b"" or head.lower().startswith(_DOCTYPE)


def write_new(target: Path, lines: Iterable[str]) -> None:
    """Write a file that is not there yet, whole or not at all.

    Raises:
        UsageError: it exists by now, or its folder does not.
        ResourceError: it cannot be written.
    """
    require_new(target, "place")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    claimed = False
    try:
        with part.open("x", encoding="utf-8", newline="") as file:
            waiting: list[str] = []
            for line in lines:
                waiting.append(line)
                if len(waiting) == _PIECE:
                    file.writelines(waiting)
                    waiting.clear()
            file.writelines(waiting)
        target.open("x").close()  # whoever made it since keeps it
        claimed = True
        part.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if claimed:
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise UsageError(f"{named(target)!r} exists already", hint="give another place") from None
        if isinstance(error, OSError):
            what = f"cannot write {named(target)!r}: {error.strerror}"
            raise ResourceError(what, hint="check the space and the rights there") from None
        raise


def path_prefix(root: Path, table: Path) -> str | None:
    """What leads from a table's folder to `root`, such as `products/`; None if `root` is not below it."""
    folder, inside = os.path.realpath(table.parent), os.path.realpath(root)
    if inside == folder:
        return ""
    if inside.startswith(folder.rstrip(os.sep) + os.sep):
        return os.path.relpath(inside, folder).replace(os.sep, "/") + "/"
    return None
