"""One hostile input: the files it is made of, the command that meets them, and how that may end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REFUSED_DATA = frozenset({3})
REFUSED_SPEC = frozenset({2})
FINE = frozenset({0})
ANY = frozenset({0, 2, 3})
"""Of inputs drawn at random, some are in truth fine."""

Make = Callable[[Path], None]
HOSTILE = (
    "\x1b[2J",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
    "[red]no[/]",
    "[/]",
    ":boom:",
    "a\nerror: b",
    "a\tb",
    "a\rb",
    "\u202egpj.exe",
    "\u2066x\u2069",
    "\x9b31m",
    "\x7f\x08",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "\U0001f468\u200d\U0001f469",
    "\ufeffx",
    "x" * 10_000,
    "OVERALL",
    "%s%n{0}",
    "'; DROP",
    "NaN",
    " ",
)
"""Names that steer a terminal, a spreadsheet, a browser or a format string."""


@dataclass(frozen=True)
class Case:
    """A command line on files; words may have {here}, {root}, {spec}, {best} and {table} in them."""

    name: str
    words: Sequence[str]
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    make: Make | None = field(default=None, repr=False)
    codes: frozenset[int] = REFUSED_DATA


OF_VERB = {
    "inspect": ("inspect-dataset", "{T}", "--root", "{root}"),
    "train": ("train", "{spec}", "data.table={here}/{T}", "data.root={root}", "--dry-run"),
    "validate": ("validate", "--features", "{features}", "--data", "{T}", "--root", "{root}"),
    "predict": ("predict", "--ckpt", "{best}", "--data", "{T}", "--root", "{root}", "--out", "out.npy"),
}


def on_table(verb: str, name: str) -> list[str]:
    """The words of a verb on a table of this name."""
    return [word.replace("{T}", name) for word in OF_VERB[verb]]
