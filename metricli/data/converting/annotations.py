"""What the readers of published annotations share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from metricli.data.kind import named, not_a_file
from metricli.data.phrases import show
from metricli.errors import DataError

__all__ = ["Annotation", "find", "first_half", "judged_alike", "label_names", "numbered", "whole", "words_of"]


class Annotation(NamedTuple):
    """One image as annotated."""

    label: str
    path: str
    """Relative to the source."""
    split: str
    is_query: bool | None
    is_gallery: bool | None
    category: str = ""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom, the last two exclusive; not yet whole, and maybe reaching outside."""


def judged_alike(split: str) -> tuple[bool | None, bool | None]:
    """The flags of an image where each validation image asks all others."""
    return (True, True) if split == "validation" else (None, None)


def first_half(numbers: Iterable[int]) -> set[int]:
    """The first half of the label numbers, which train where labels are held apart (Oh Song et al. 2016)."""
    ordered = sorted(set(numbers))
    return set(ordered[: len(ordered) // 2])


def label_names(names: Mapping[int, str]) -> dict[int, str]:
    """The names of labels by number; with the number before each where two labels share one."""
    apart = len(set(names.values())) == len(names)
    return {number: name if apart else f"{number} {name}" for number, name in names.items()}


def find(root: Path, *places: str, layout: str) -> Path:
    """The first of some places that is there.

    Args:
        root: the folder of the data set.
        places: relative paths.
        layout: what should lie in `root`, for the message.

    Raises:
        DataError: none is.
    """
    for place in places:
        if (root / place).exists():
            return root / place
    name = Path(places[0]).name
    inner = next(
        (child for child in _folders(root) if any((child / place).exists() for place in places)), None
    )
    hint = f"did you mean {named(inner)!r}?" if inner else f"expected {layout}"
    raise DataError(f"no {name!r} in {named(root)!r}", hint=hint)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(child for child in root.iterdir() if child.is_dir())
    except OSError:
        return []


def words_of(path: Path, count: int, *, skip: int = 0) -> Iterator[tuple[str, list[str]]]:
    """The place of each line, for messages, and its words; the last takes what is left of the line.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or a line has fewer words.
    """
    if what := not_a_file(path):
        raise DataError(f"{named(path)!r} is {what}, expected a text file")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else (error.strerror or "").lower()
        raise DataError(f"cannot read {named(path)!r}: {reason}", hint="unpack it again") from None
    for number, line in enumerate(lines[skip:], skip + 1):
        words = line.split(maxsplit=count - 1)
        if not words:
            continue
        place = f"{named(path)!r} line {number}"
        if len(words) < count:
            raise DataError(f"{place} is {show(line)}, expected {count} words", hint="unpack it again")
        yield place, [word.rstrip() for word in words]


def whole(word: str, place: str) -> int:
    """A whole number.

    Raises:
        DataError: the word is none.
    """
    if not (word.isascii() and word.isdigit()):
        raise DataError(f"{place}: expected a whole number, got {show(word)}", hint="unpack it again")
    return int(word)


def numbered(path: Path) -> dict[int, str]:
    """A file of numbers, each followed by one value."""
    return {whole(number, place): value for place, (number, value) in words_of(path, 2)}
