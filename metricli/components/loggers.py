"""What the loggers over Accelerate's trackers share: a memory in the run directory, and the spec."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from accelerate import PartialState
from accelerate.tracking import GeneralTracker

__all__ = ["Memory", "TrackerLogger", "flattened"]

_MOST_BYTES = 100_000
_ID = re.compile(r"[\w.:-]{1,200}")


class Memory:
    """What a resumed run has to know of its tracker: a small JSON file in the run directory.

    `id` is the tracker's own name of the run, `sent` the last step that it was told of each split. A file
    that is not of this shape is not believed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.id, self.sent = path, "", dict[str, int]()

    def load(self) -> bool:
        """Take over what the file says; False for a file that is there and not ours."""
        if not os.path.lexists(self.path):
            return True
        try:
            if self.path.is_symlink() or not self.path.is_file() or self.path.stat().st_size > _MOST_BYTES:
                return False
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        if not isinstance(found, dict):
            return False
        name, sent = found.get("id"), found.get("sent")
        if not isinstance(name, str) or not _ID.fullmatch(name) or not isinstance(sent, dict):
            return False
        if not all(type(step) is int and step >= 0 for step in sent.values()):
            return False
        self.id, self.sent = name, sent
        return True

    def save(self) -> None:
        """Write the file, by way of another name."""
        self.path.parent.mkdir(exist_ok=True)
        part = self.path.with_suffix(".part")
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        with part.open("x", encoding="utf-8") as file:
            json.dump({"id": self.id, "sent": self.sent}, file)
        part.replace(self.path)


class TrackerLogger:
    """A logger over one Accelerate tracker, which a subclass opens: scalars by name, figures as images.

    A resumed run goes on in the same run of the tracker, and what that has been told is not told again.
    `notes` is what the user should know.
    """

    name: ClassVar[str]
    purges: ClassVar[bool] = False
    """Whether the tracker forgets, on resume, the steps that will be made again."""
    nested: ClassVar[bool] = True
    """Whether it takes the spec as nested mappings; else as one flat one."""
    fixed: ClassVar[bool] = False
    """Whether the spec can be given to a run of the tracker but once."""
    environment: ClassVar[Mapping[str, str | None]] = {}
    """Variables as they are while it is open (None: not set): none sends, or decides, behind the spec."""

    def __init__(
        self,
        run_dir: Path,
        *,
        project: str | None = None,
        run_name: str | None = None,
        tags: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self.run_dir, self.tags, self.settings = run_dir.absolute(), list(tags), settings
        self.project, self.run_name = project or "metricli", run_name or self.run_dir.name
        self._names_project = project is None
        self.notes: list[str] = []
        self.behind = 0
        self.memory = Memory(self.run_dir / "loggers" / f"{self.name}.json")
        self._told: dict[str, int] = {}
        self._tracker: GeneralTracker | None = None
        self._before: dict[str, str | None] | None = None

    def open(self) -> GeneralTracker:
        """The tracker, not yet started, of the run `memory.id` or, if that is empty, of a new one."""
        raise NotImplementedError

    def identity(self) -> str:
        """The tracker's name of the run, by which `open` finds it again."""
        return self.run_name

    @property
    def tracker(self) -> Any:
        """The tracker, started."""
        if self._tracker is None:
            self.start({}, step=0)
        return self._tracker

    def start(self, spec: Mapping[str, Any], *, step: int) -> None:
        """Begin the tracker's run of a resolved spec, or go on with it after `step` steps."""
        if not PartialState._shared_state:  # a tracker of Accelerate asks it; a run has one
            PartialState()
        if self._names_project and isinstance(spec.get("name"), str):
            self.project = re.sub(r"[^\w .-]", "_", spec["name"])[:100]
        self.behind = step
        if step and not self.memory.load():
            place = self.memory.path.relative_to(self.run_dir)
            self.notes.append(f"{place} is not what was left there; a new run of the tracker is begun")
        resumed = bool(self.memory.id)
        cut = {split: min(last, step) for split, last in self.memory.sent.items()}
        self.memory.sent = cut if self.purges else self.memory.sent
        self._told = dict(self.memory.sent)
        if (latest := max(self._told.values(), default=0)) > step:
            self.notes.append(f"it knows the steps up to {latest} already; they are not sent again")
        self._before = {key: os.environ.get(key) for key in self.environment}
        set_variables(self.environment)
        tracker = self.open()
        tracker.start()
        self._tracker = tracker
        self.memory.id = re.sub(r"[^\w.:-]", "_", self.identity())[:200]
        self.memory.save()
        if not (resumed and self.fixed):
            self.describe(spec)

    def describe(self, spec: Mapping[str, Any]) -> None:
        """Give the tracker the resolved spec, and say where the run directory is."""
        known = {**spec, "run_dir": str(self.run_dir)}
        self.tracker.store_init_configuration(known if self.nested else flattened(known))

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Log scalars, named `split/...`, at a global step; what a resumed run repeats is passed over."""
        tracker, split = self.tracker, next(iter(values), "").partition("/")[0]
        if step > self._told.get(split, -1):
            self.send(tracker, {self.called(name): float(value) for name, value in values.items()}, step)
            self._remember(split, step)

    def _remember(self, split: str, step: int) -> None:
        if self.memory.sent.get(split) != step:
            self.memory.sent[split] = step
            self.memory.save()

    def called(self, name: str) -> str:
        """The tracker's name of a scalar or figure."""
        return name

    def send(self, tracker: Any, values: Mapping[str, float], step: int) -> None:
        """Log scalars under the tracker's names."""
        tracker.log(dict(values), step=step)

    def log_figure(self, name: str, figure: Any, *, step: int) -> None:
        """Log an image array (H, W, 3) of uint8."""
        tracker, split = self.tracker, f"figures {name.partition('/')[0]}"
        if step > self._told.get(split, -1):
            self.show(tracker, self.called(name), figure, step)
            self._remember(split, step)

    def show(self, tracker: Any, name: str, figure: Any, step: int) -> None:
        """Log an image under the tracker's name."""
        tracker.log_images({name: figure[None]}, step=step)

    def close(self) -> None:
        """Flush and end."""
        try:
            if self._tracker is not None:
                self._tracker.finish()
        finally:
            set_variables(self._before or {})


def set_variables(values: Mapping[str, str | None]) -> None:
    """Set variables of the environment; None removes one."""
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """A nested mapping as one of dotted keys to scalars; None and lists of scalars become JSON."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{name}.")
        elif isinstance(value, bool | int | float | str):
            found[name] = value
        else:
            found[name] = json.dumps(value, ensure_ascii=False)
    return found
