"""The run directory: its names, what is written at its start, and metrics.jsonl."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from metricli.data.disk import checkpoint_in, fsync, remedy
from metricli.errors import CheckpointError, ResourceError, UsageError

RUNS = "runs"
_PACKAGES = (
    "metricli",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "pydantic",
    "pandas",
    "numpy",
    "pillow",
)
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "METRICLI_DEVICE", "OMP_NUM_THREADS", "WORLD_SIZE", "SLURM_JOB_ID")


class RunDirectory:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / "checkpoints" / "best.ckpt"
        self.last = path / "checkpoints" / "last.ckpt"
        self.spec = path / "spec.resolved.yaml"
        self.metrics = path / "metrics.jsonl"
        self.log = path / "log.txt"

    @property
    def holds_a_run(self) -> bool:
        """Whether a run was started here."""
        return self.spec.exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other run out of the directory, which is made if it is not there.

        Raises:
            UsageError: a run is going on in it.
            ResourceError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            hint = "wait for its end, or give another --run-dir"
            raise UsageError(f"a run is going on in {str(self.path)!r}", hint=hint) from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            os.close(handle)

    def _unwritable(self, error: OSError) -> ResourceError:
        what = f"cannot write the run directory {str(self.path)!r}: {error.strerror}"
        return ResourceError(what, hint="give another place with --run-dir")

    def start(self, resolved: Mapping[str, Any], *, again: bool = False) -> None:
        """Make the folders and write the resolved spec and env.json.

        `again` starts over in a directory whose run was stopped before its first last.ckpt.

        Raises:
            UsageError: the directory holds a run, or files with the names of a run's.
            ResourceError: the folder cannot be made or written.
        """
        self.refuse_taken(again=again)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_spec(resolved)  # the first: a kill from here on leaves a run that can start again
            self.best.parent.mkdir(exist_ok=True)
            if again:
                self.metrics.unlink(missing_ok=True)
                self.best.unlink(missing_ok=True)
            (self.path / "env.json").write_text(json.dumps(environment(), indent=2) + "\n")
            fsync(self.path)
        except OSError as error:
            self._undo_start()
            raise self._unwritable(error) from None

    def write_spec(self, resolved: Mapping[str, Any]) -> None:
        """Write spec.resolved.yaml, which makes the directory that of a run.

        Raises:
            OSError: the disk is full, or another failure of it.
        """
        part = self.spec.with_suffix(".part")
        text = yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True)
        part.write_text(text, encoding="utf-8")
        fsync(part)
        part.replace(self.spec)

    def refuse_taken(self, called: str | Path | None = None, *, again: bool = False) -> None:
        """Refuse a directory that holds a run (unless it is to start `again`) or another's files.

        `called` is the name that the user has for it.

        Raises:
            UsageError: it does.
        """
        name = str(called or self.path)
        if self.holds_a_run:
            if again:
                return
            go_on = f"--resume {name}" if self.last.is_file() else f"--run-dir {name} --resume auto"
            hint = f"go on with {go_on}, or give another --run-dir"
            raise UsageError(f"{name!r} holds a run already", hint=hint)
        ours = (self.path / "env.json", self.metrics, self.log, self.best.parent)
        taken = [file.name for file in ours if file.exists()]
        if taken:
            what = f"{name!r} is no run directory, and holds {', '.join(taken)}"
            raise UsageError(what, hint="give an empty --run-dir")

    def _undo_start(self) -> None:
        for file in (self.path / "env.json", self.spec, self.spec.with_suffix(".part")):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        for folder in (self.best.parent, self.path):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl.

        Raises:
            ResourceError: it cannot be written.
        """
        append_text(self.metrics, json.dumps({k: _finite(v) for k, v in row.items()}) + "\n")

    def sync(self) -> None:
        """Bring the lines of metrics.jsonl and log.txt to the disk.

        Raises:
            OSError: the disk is full, or another failure of it.
        """
        for file in (self.metrics, self.log, self.path):
            if file.exists():
                fsync(file)

    def forget_after(self, step: int, under_way: int | None = None) -> None:
        """Drop the lines of metrics.jsonl that will be made again.

        They are those behind `step`, and what the end of the epoch `under_way` added.
        """
        if not self.metrics.exists():
            return

        def stays(line: str) -> bool:
            try:
                row = json.loads(line)
            except ValueError:  # a kill has cut it off
                return False
            ends = row.get("epoch") == under_way and row.get("split") != "train"
            return bool(row.get("step", 0) <= step) and not ends

        kept = [line for line in self.metrics.read_text(encoding="utf-8").splitlines() if stays(line)]
        part = self.metrics.with_suffix(".part")
        part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        fsync(part)
        part.replace(self.metrics)
        fsync(self.path)


def append_text(file: Path, text: str) -> None:
    """Add to a text file of a run.

    Raises:
        ResourceError: naming the file, as an error of a write does not.
    """
    try:
        with file.open("a", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        what = f"cannot write {str(file)!r}: {error.strerror}"
        raise ResourceError(what, hint=f"{remedy(error.errno)}, and resume the run") from None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not (abs(value) < float("inf")) else value


def new_run_directory(name: str, at: str | Path | None) -> RunDirectory:
    """A directory for a new run: `at` itself, or `runs/<name>-<UTC>-<hex>`.

    Raises:
        UsageError: `at` is a file, holds a run already, or files that are no run's.
    """
    if at is None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        return RunDirectory(Path.cwd() / RUNS / f"{name}-{stamp}-{secrets.token_hex(2)}")
    run = RunDirectory(Path(at).absolute())
    if run.path.exists() and not run.path.is_dir():
        raise UsageError(f"the run directory {str(at)!r} is a file")
    run.refuse_taken(at)
    return run


def newest_run(folder: Path, *, name: str | None = None, file: str = "best") -> RunDirectory | None:
    """The run below `folder` whose best (or last) checkpoint is the newest, of that name if given."""
    pattern = f"{name}-????????T??????Z-????" if name else "*"
    runs = [RunDirectory(path) for path in folder.glob(pattern) if path.is_dir()]
    found = [
        (getattr(run, file).stat().st_mtime_ns, run.path) for run in runs if getattr(run, file).is_file()
    ]
    return RunDirectory(max(found)[1]) if found else None


def find_checkpoint(given: str | Path | None) -> Path:
    """The checkpoint that is meant: a file, that of a run or step directory, or the newest under ./runs.

    Raises:
        CheckpointError: there is none.
    """
    if given is not None:
        path = Path(given)
        if not path.is_dir():
            return path
        found = checkpoint_in(path)
        if found is None:
            has_last = RunDirectory(path).last.is_file()
            what = f"the folder {str(path)!r} holds no checkpoints/best.ckpt"
            hint = "give its checkpoints/last.ckpt" if has_last else "give a best.ckpt, or a run directory"
            raise CheckpointError(what, hint=hint)
        return found
    run = newest_run(Path.cwd() / RUNS)
    if run is None:
        raise CheckpointError(
            "no --ckpt is given, and there is no run with a best.ckpt under ./runs",
            hint="give --ckpt FILE, or train first: metricli train spec.yaml",
        )
    return run.best


def environment() -> dict[str, Any]:
    """Versions and a few harmless variables; no token, no user name, no path."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
