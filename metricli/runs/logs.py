"""metrics.jsonl always, and the loggers of the spec; one that fails is left behind, not the run."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from metricli.reporter import Reporter
from metricli.reports import OVERALL
from metricli.runs.calling import Caller, CallFailed
from metricli.runs.directory import RunDirectory, append_text
from metricli.specs.kinds import Logger, LoggerSpec
from metricli.tables import printable, shortened

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LIMITS = {"build": 60.0, "start": 120.0, "log": 60.0, "log_figure": 60.0, "close": 60.0}
"""Seconds that a run waits for a call of a logger."""
_MOST = 200


class Transcript:
    """A reporter that passes everything on, says each warning once, and keeps the lines for log.txt."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.begin, self.advance, self.end = reporter.begin, reporter.advance, reporter.end
        self._warned: set[str] = set()
        self._lines: list[str] = []
        self._path: Path | None = None

    def write_to(self, path: Path) -> None:
        """Append what was said so far, and from now on, to a file."""
        self._path = path
        self._keep(*self._lines)

    def _keep(self, *lines: str) -> None:
        if self._path is None:
            self._lines += lines
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        append_text(self._path, "".join(f"{now} {printable(line)}\n" for line in lines))

    def note(self, message: str) -> None:
        """Keep, without passing on."""
        self._keep(message)

    def say(self, message: str) -> None:
        """Pass on and keep."""
        self._keep(message)
        self.reporter.say(message)

    def warn(self, message: str) -> None:
        """Pass on and keep, once."""
        if message not in self._warned:
            self._warned.add(message)
            self._keep(f"warning: {message}")
            self.reporter.warn(message)

    def end_with(self, words: str) -> None:
        """Keep the error that ended the run, which is said elsewhere; nothing of a run not opened."""
        self._keep(*f"error: {words}".splitlines())

    def epoch(self, row: Mapping[str, float | int | str]) -> None:
        """Pass on and keep."""
        self._keep("  ".join(f"{name} {value}" for name, value in row.items()))
        self.reporter.epoch(row)


@dataclass
class _Open:
    """A logger in use."""

    name: str
    call: Caller
    logger: Logger


class Logs:
    """Opens the loggers, sends every row to all of them, and closes them; without a run, keeps nothing.

    A logger gets `start` (if it has it), then `log` and `log_figure` in the order of the run, then `close`.
    One that fails, whenever and however, is left out from there on, with one warning.
    """

    def __init__(
        self,
        run: RunDirectory | None,
        specs: Sequence[LoggerSpec],
        reporter: Reporter,
        *,
        step: int = 0,
        resolved: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.specs, self.reporter = run, specs, reporter
        self.step, self.resolved = step, resolved or {}
        self.loggers: list[_Open] = []
        self._epoch_at = -1
        self._images, self._since = 0, 0.0

    def __enter__(self) -> Self:
        for spec in self.specs if self.run is not None else []:
            self._open(spec)
        return self

    def __exit__(self, *exc: object) -> None:
        for opened in list(self.loggers):
            self._try(opened, "close")
            opened.call.end()
        self.loggers = []

    def _open(self, spec: LoggerSpec) -> None:
        name = str(getattr(spec, "name", type(spec).__name__))
        assert self.run is not None
        opened = _Open(name, Caller(name), _NoLogger())
        self.loggers.append(opened)
        built = self._ask(opened, partial(spec.build, run_dir=self.run.path), LIMITS["build"])
        if opened not in self.loggers:
            return
        opened.logger = built
        if callable(getattr(built, "start", None)):
            self._try(opened, "start", self.resolved, step=self.step)
        for note in getattr(built, "notes", []):
            self.reporter.say(f"the logger {name!r}: {note}")

    def count(self, images: int) -> None:
        """A step is done with so many images; the first after a pause only starts the clock."""
        if self._since:
            self._images += images
        else:
            self._since = time.monotonic()

    def row(self, step: int, epoch: int, split: str, values: Mapping[str, float], category: str = "") -> None:
        """One flat line, and scalars named `split/name` or `split/category/name`.

        Loggers also get the epoch, once a step, and with the steps the images a second since the last ones;
        no time stands in metrics.jsonl, which a resume repeats.
        """
        if self.run is None:
            return
        place = {"category": category} if category else {}
        self.run.append({"step": step, "epoch": epoch, "split": split, **place, **values})
        prefix = f"{split}/" if category in ("", OVERALL) else f"{split}/{segment(category)}/"
        scalars = {prefix + name: float(value) for name, value in values.items()}
        if split == "train" and self._images:
            scalars["train/images_per_second"] = self._images / (time.monotonic() - self._since)
        self._images, self._since = 0, time.monotonic() if split == "train" else 0.0
        if step != self._epoch_at:
            scalars["epoch"], self._epoch_at = float(epoch), step
        for opened in list(self.loggers):
            self._try(opened, "log", scalars, step=step)

    def figure(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """A picture (H, W, 3) under a name such as `validation/worst` or `validation/CATEGORY/worst`."""
        path = "/".join(map(segment, name.split("/")))
        for opened in list(self.loggers):
            self._try(opened, "log_figure", path, image, step=step)

    def _try(self, opened: _Open, call: str, *args: Any, **kwargs: Any) -> None:
        self._ask(opened, lambda: getattr(opened.logger, call)(*args, **kwargs), LIMITS[call])

    def _ask(self, opened: _Open, function: Callable[[], Any], seconds: float) -> Any:
        try:
            return opened.call(function, seconds=seconds)
        except CallFailed as failure:
            self.loggers.remove(opened)
            opened.call.end()
            what = f"the logger {opened.name!r} failed and is left out from now on"
            self.reporter.warn(shortened(f"{what}: {printable(str(failure))}", _MOST))
        finally:
            if isinstance(self.reporter, Transcript):
                for line in opened.call.printed:
                    self.reporter.note(f"{opened.name}: {line}")
            opened.call.printed.clear()


class _NoLogger:
    """Stands where a logger is not built yet."""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Nothing."""

    def log_figure(self, name: str, figure: Any, *, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def segment(text: str) -> str:
    """A user's word as one part of a name with slashes: no path, no control character, no other word's."""
    plain = re.sub(r"[/\\\x00-\x1f\x7f]", "_", printable(text)).strip()
    plain = plain if plain.strip(".") else plain.replace(".", "_") or "_"
    return plain if plain == text else f"{plain}-{zlib.crc32(text.encode(errors='replace')):08x}"
