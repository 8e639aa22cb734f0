"""The nearest right word to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, ignoring case and `-` versus `_`; None if none is near."""
    by_folded = {_fold(name): name for name in known}
    found = difflib.get_close_matches(_fold(word), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` or nothing."""
    near = nearest(word, known)
    return f", did you mean {near!r}?" if near else ""


def _fold(word: str) -> str:
    return word.lower().replace("-", "_")
