"""Looking at many image files in threads: by their headers, or decoded unless they are known already."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from metricli.data.images import open_image, read_header
from metricli.data.known import Entry, Known, read_known
from metricli.data.opening import ImageError

_AHEAD = 64


@dataclass(frozen=True)
class Images:
    """How to look at images."""

    deep: bool
    max_pixels: int
    on_progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """An image: its upright size and format, or why it cannot be read."""

    width: int = 0
    height: int = 0
    format: str = ""
    digest: bytes = b""
    problem: str = ""


@dataclass
class Looked:
    """What was seen of images, by their place in a list of paths."""

    seen: dict[int, Seen] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Why nothing could be taken from, or added to, what is known."""


def look(root: Path, paths: Sequence[str], places: Iterable[int], how: Images) -> Looked:
    """Look at some of the `paths` below a root; of a deep look, what was found is kept for the next one."""
    chosen = list(places)
    if not how.deep:
        found = Looked()
        for place, (seen, _) in zip(chosen, _in_threads(root, paths, chosen, how, None), strict=True):
            found.seen[place] = seen
        return found
    known = read_known(root)
    found, fresh = Looked(notes=[known.note] if known.note else []), []
    try:
        for place, (seen, entry) in zip(chosen, _in_threads(root, paths, chosen, how, known), strict=True):
            found.seen[place] = seen
            if entry is not None:
                fresh.append(entry)
    finally:  # also of a look that is stopped: it may have taken an hour
        found.notes += filter(None, [known.keep(fresh)])
    return found


def is_unchanged(file: Path, entry: Entry) -> bool:
    """Whether a file is still the one that an entry tells of."""
    try:
        status = os.stat(file)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime)


def message_of(root: Path, entry: Entry) -> str:
    """What was said of an image when it was decoded, as if it were today; "" of a sound one."""
    return ImageError(root / entry.path, entry.problem).message if entry.problem else ""


def _in_threads(
    root: Path, paths: Sequence[str], places: list[int], how: Images, known: Known | None
) -> Iterator[tuple[Seen, Entry | None]]:
    """Each image as seen, in order, with what is new to be known of it."""
    at = known.at([paths[place] for place in places]).tolist() if known else [-1] * len(places)

    def work(item: tuple[int, int]) -> tuple[Seen, Entry | None]:
        path = paths[item[0]]
        if known is not None and item[1] >= 0:
            entry = known.entry(item[1])
            if entry.width * entry.height <= how.max_pixels and is_unchanged(root / path, entry):
                problem = message_of(root, entry)
                return Seen(entry.width, entry.height, entry.format, entry.digest, problem), None
        return _see(root, path, how)

    with ThreadPoolExecutor() as pool:
        waiting = zip(places, at, strict=True)
        running = [pool.submit(work, item) for item in islice(waiting, _AHEAD)]
        done = 0
        try:
            while running:
                result = running.pop(0).result()
                running += [pool.submit(work, item) for item in islice(waiting, 1)]
                done += 1
                if how.on_progress is not None:
                    how.on_progress(done, len(places))
                yield result
        finally:
            for future in running:
                future.cancel()


def _see(root: Path, path: str, how: Images) -> tuple[Seen, Entry | None]:
    """An image, and what of it will hold as long as its file is the same."""
    file = root / path
    try:
        status = os.stat(file)
        size, mtime = status.st_size, status.st_mtime_ns
        width, height, format_ = read_header(file, max_pixels=how.max_pixels)
        if not how.deep:
            return Seen(width, height, format_), None
        open_image(file, max_pixels=how.max_pixels)
        with open(file, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()
    except ImageError as error:
        kept = Entry(path, size, mtime, 0, 0, "", bytes(32), error.reason) if error.lasting else None
        return Seen(problem=error.message), kept
    except MemoryError:
        return Seen(problem=ImageError(file, "out of memory").message), None
    except OSError as error:
        return Seen(problem=ImageError(file, (error.strerror or str(error)).lower()).message), None
    return Seen(width, height, format_, digest), Entry(path, size, mtime, width, height, format_, digest, "")
