"""`OUT.part`: a features file in the making, which the same command goes on with after any end.

A folder that holds the rows (`data`), what they were asked of (`request.json`), and a journal for each
process that wrote (`done-*.jsonl`): a line for each block that is done, with the digest of its bytes, so that
a block is taken for done only if it is there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from metricli.data.disk import fsync, remedy
from metricli.errors import MetricliError, ResourceError, Terminated, UsageError, interruption
from metricli.reporter import Reporter
from metricli.reports import write_text
from metricli.runs.blocks import Blocks
from metricli.runs.features import Layout, beside, write_index, write_manifest, write_parquet

Done = dict[int, list[int]]
"""Blocks that are done, and the rows of each that were skipped."""

_OURS = ("data", "request.json", "index.csv", "manifest.json", "rows.parquet")
_PIECE = 1 << 20
_WORDS = {"ckpt_sha256": "checkpoint", "rows_sha256": "rows"}


class Unfinished:
    """The folder beside `out` in which it is made. The main process alone makes, replaces and removes it."""

    def __init__(self, out: Path, layout: Layout, blocks: Blocks) -> None:
        self.out = out
        self.layout = layout
        self.blocks = blocks
        self.folder = out.with_name(out.name + ".part")
        self.data = self.folder / "data"
        self.request = self.folder / "request.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other command from the folder, which is made if it is not there.

        Raises:
            UsageError: another command writes there, or the folder is not ours.
        """
        handle = self._open()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            busy = not _is_at(handle, self.folder)  # the other has just removed it
        except BlockingIOError:
            busy = True
        except OSError:  # a file system without locks
            busy = False
        try:
            if busy:
                what = f"another command is writing {str(self.out)!r}"
                raise UsageError(what, hint="wait for its end, or give another --out")
            foreign = [path.name for path in self.folder.iterdir() if not _is_ours(path.name)]
            if foreign:
                what = f"{str(self.folder)!r} holds {sorted(foreign)[0]!r}, which is no part of features"
                raise UsageError(what, hint="move it away, or give another --out")
            yield
        finally:
            os.close(handle)

    def _open(self) -> int:
        try:
            self.folder.mkdir(exist_ok=True)
        except FileExistsError:
            what = f"{str(self.folder)!r} is a file in the place of a folder of ours"
            raise UsageError(what, hint="remove it, or give another --out") from None
        return os.open(self.folder, os.O_RDONLY)

    @contextmanager
    def kept(self, *, is_main: bool) -> Iterator[None]:
        """What fails inside leaves the folder, and says so, if a block is done; else the folder goes.

        Raises:
            Interrupted: by SIGINT or SIGTERM.
        """
        try:
            yield
        except BaseException as error:
            told = error
            if isinstance(error, (KeyboardInterrupt, Terminated)):
                told = interruption(error)
            done = len({block for block, _, _ in self._journalled()})
            if done and isinstance(told, MetricliError):
                go_on = f"the same command goes on: {self._count(done)} in {str(self.folder)!r}"
                told.hint = f"{told.hint}; {go_on}" if told.hint else go_on
            elif not done and is_main:
                self.remove()
            if told is error:
                raise
            raise told from None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A failure of the system inside is one of writing.

        Raises:
            ResourceError: the disk is full or went away.
        """
        try:
            yield
        except OSError as error:
            what = f"cannot write {str(self.out)!r}: {error.strerror}"
            raise ResourceError(what, hint=remedy(error.errno)) from None

    def take_up(
        self, request: Mapping[str, Any], reporter: Reporter, *, take_skipped: bool
    ) -> tuple[str, Done]:
        """Go on with what is done of the same request, or begin; the name of the journal, and what is done.

        Blocks with skipped rows are done only where rows may be skipped.

        Raises:
            ResourceError: there is no room for the whole file.
        """
        asked = json.loads(json.dumps(request))
        token = secrets.token_hex(4)
        begun = self._read_request()
        done: Done = {}
        if begun == asked:
            self._take_back(take_skipped=take_skipped)
        if begun == asked and self.data.is_file() and self.data.stat().st_size == self.layout.size:
            done = self._rewrite_journals(token, take_skipped=take_skipped)
            if done:
                reporter.say(f"going on with {str(self.folder)!r}: {self._count(len(done))}")
        else:
            if begun:
                names = [key for key in asked if begun.get(key) != asked[key]]
                others = ", ".join(dict.fromkeys(_WORDS.get(name, name) for name in names)) or "data file"
                reporter.warn(f"starting anew: {str(self.folder)!r} was begun with another {others}")
            self.begin()
            self._journal(token).touch()
            write_text(self.request, json.dumps(asked) + "\n")
        return token, done

    def _take_back(self, *, take_skipped: bool) -> None:
        """Where the end came after the last move, the file is the data again: all is done but the tidying."""
        if self.data.exists() or not self.out.is_file() or self.out.stat().st_size != self.layout.size:
            return
        with self.out.open("rb") as file:
            whole = {
                block
                for block, digest, skipped in self._journalled()
                if 0 <= block < len(self.blocks)
                and (take_skipped or not skipped)
                and self._digest(file, block) == digest
            }
        if len(whole) == len(self.blocks):
            with suppress(OSError):  # a file system without hard links
                os.link(self.out, self.data)

    def _count(self, done: int) -> str:
        return f"{done} of {len(self.blocks)} blocks are done"

    def _read_request(self) -> dict[str, Any]:
        try:
            begun = json.loads(self.request.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return begun if isinstance(begun, dict) else {}

    def begin(self) -> None:
        """Make an empty data file with room for every row.

        A file that the disk has no room for is refused here, and not by a signal to whoever writes into it.

        Raises:
            ResourceError: there is no room.
        """
        self._clear()
        size = self.layout.size
        with self.data.open("xb") as file:
            try:
                if size:
                    os.posix_fallocate(file.fileno(), 0, size)
            except (AttributeError, OSError) as error:  # macOS has none
                number = getattr(error, "errno", errno.ENOSYS)
                if number not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
                    what = f"cannot write {str(self.out)!r}: {os.strerror(number)}"
                    raise ResourceError(what, hint=f"{remedy(number)}, it takes {size:,} bytes") from None
                os.ftruncate(file.fileno(), size)
            file.write(self.layout.head)

    def _journal(self, token: str, rank: int | None = None) -> Path:
        return self.folder / (f"done-{token}.jsonl" if rank is None else f"done-{token}-{rank}.jsonl")

    def journal(self, token: str, rank: int) -> Path:
        """Where a process notes the blocks it has done.

        Raises:
            UsageError: the folder that the main process made is not seen here.
        """
        if not self._journal(token).exists():
            what = f"process {rank} does not see {str(self.folder)!r}, which process 0 has made"
            raise UsageError(what, hint="hosts without a shared disk take a --shard each")
        return self._journal(token, rank)

    def _journalled(self) -> Iterator[tuple[int, str, list[int]]]:
        """Block, digest and skipped rows of every whole line."""
        for path in sorted(self.folder.glob("done-*.jsonl")):
            with path.open("rb") as file:
                for line in file:
                    with suppress(ValueError, KeyError, TypeError):  # torn by the end of who wrote it
                        entry = json.loads(line)
                        yield (
                            int(entry["block"]),
                            str(entry["sha256"]),
                            [int(row) for row in entry["skipped"]],
                        )

    def _rewrite_journals(self, token: str, *, take_skipped: bool) -> Done:
        """The blocks that are done, alone in one journal; the others go."""
        old = list(self.folder.glob("done-*"))
        done: Done = {}
        digests: dict[int, str] = {}
        lines: list[str] = []
        with self.data.open("rb") as file:
            for block, digest, skipped in self._journalled():
                if block in done or not 0 <= block < len(self.blocks) or (skipped and not take_skipped):
                    continue
                if block not in digests:
                    digests[block] = self._digest(file, block)
                if digests[block] == digest:
                    done[block] = skipped
                    lines.append(journal_line(block, digest, skipped))
        write_text(self._journal(token), "".join(lines))
        for path in old:
            path.unlink()
        return done

    def _digest(self, file: Any, block: int) -> str:
        span = self.blocks.span(block)
        file.seek(len(self.layout.head) + (span.start - self.blocks.start) * self.layout.row_bytes)
        left = len(span) * self.layout.row_bytes
        digest = hashlib.sha256()
        while left and (piece := file.read(min(left, _PIECE))):
            digest.update(piece)
            left -= len(piece)
        return digest.hexdigest()

    def put_in_place(
        self, chunks: Callable[[], Iterator[list[list[Any]]]], skipped: int, facts: Mapping[str, Any]
    ) -> None:
        """Write index and manifest, move all three files to their places, and remove the folder.

        Up to the last move the same command does this again.
        """
        index, manifest, made = self.folder / "index.csv", self.folder / "manifest.json", self.data
        if self.layout.suffix == ".parquet":
            made = self.folder / "rows.parquet"
            write_parquet(made, self.data, self.layout, chunks())
        write_index(index, chunks())
        write_manifest(manifest, self.out, self.layout, skipped, facts)
        for path in (made, index, manifest):
            fsync(path)
        for path, place in zip((index, manifest, made), (*beside(self.out), self.out), strict=True):
            path.replace(place)
        fsync(self.out.parent)
        self.remove()

    def _clear(self) -> None:
        """Remove our files, the request first: without it nothing is gone on with."""
        self.request.unlink(missing_ok=True)
        for path in self.folder.iterdir():
            path.unlink()

    def remove(self) -> None:
        """Remove the folder with our files in it."""
        with suppress(OSError):
            self._clear()
            self.folder.rmdir()


def journal_line(block: int, digest: str, skipped: list[int]) -> str:
    """One line of a journal."""
    return json.dumps({"block": block, "sha256": digest, "skipped": skipped}) + "\n"


def _is_ours(name: str) -> bool:
    return name.removesuffix(".part") in _OURS or (name.startswith("done-") and ".jsonl" in name)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open folder is still the one of that name."""
    return path.exists() and os.path.samestat(os.fstat(handle), path.stat())
