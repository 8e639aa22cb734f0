"""`kill -9` at random moments, again and again: every run goes on, and ends as one that was never killed.

    .venv/bin/python -m tests.long.kill_loop [--kills 50] [--workers 10] [--commands 6] [--gpus 6] [--out F]

Most kills are of forked processes: this one has imported all that a run needs and computed nothing, so that a
run begins in a moment. `--workers` are kills of such runs with two processes that decode images, `--commands`
and `--gpus` those of `metricli train` from the shell, with one process and with two (of which the agent or a
rank dies). A run is killed and resumed until it finishes; then another begins.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"METRICLI_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}

from tests.conftest import FIGURES

PHASES = ("loading", "training", "saving", "validating", "over")
GRACE = 15.0
"""Seconds for a helper that is still loading libraries to notice that its run is gone."""
SPEC: dict[str, Any] = {
    "name": "killed",
    "data": {"table": str(FIGURES)},
    "extractor": {"name": "timm", "model": "test_resnet", "dim": 8},
    "transforms": {
        "train": {"name": "augment", "size": 32},
        "eval": {"name": "resize_normalize", "size": 32},
    },
    "sampler": {"name": "balanced", "n_labels": 3, "n_instances": 2, "batches": 6},
    "loss": {"name": "triplet", "margin": 0.2, "miner": "all_triplets", "memory": {"size": 16}},
    "training": {"epochs": 3, "log_every_steps": 1, "save_every_steps": 1, "keep": 2, "ema": {"decay": 0.9}},
    "validation": {"bootstrap": {"samples": 0}, "monitor": "cmc@1", "num_workers": 0},
}


@dataclass
class Tally:
    """What one form of the loop has met."""

    form: str
    kills: int = 0
    runs: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    unfinished: int = 0
    """Kills that left a half-written file behind."""
    orphans: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        phases = ", ".join(f"{self.phases[name]} {name}" for name in PHASES if self.phases[name])
        return (
            f"{self.form:22}{self.kills:4} kills ({phases}); {self.runs} runs finished, all equal to "
            f"one that was not killed; {self.unfinished} kills left a half-written file, which was removed; "
            f"{self.orphans} processes outlived their run; {self.seconds:.0f} s"
        )


def watched(phase: mmap.mmap) -> None:
    """Let the training of this process tell what it is doing."""
    from metricli.runs.training import Training

    def told(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            before, phase[0] = phase[0], PHASES.index(name)
            try:
                return method(*args, **options)
            finally:
                phase[0] = before

        return call

    training: Any = Training
    training.train_epoch = told("training", training.train_epoch)
    training.validate = told("validating", training.validate)
    training.save_last = told("saving", training.save_last)
    training.save_best = told("saving", training.save_best)


def forked(work: Callable[[], None], said: Path) -> int:
    """A process that does it; what goes wrong stands in `said` and makes its exit code 1."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        said.write_text(traceback.format_exc())
    os._exit(1)


def compare(one: Path, two: Path) -> None:
    """Two finished runs, to the bit."""
    from metricli import train
    from tests.runs.resuming import assert_same_run
    from tests.runs.snapshots import names_in

    spec = json.loads((one.parent / "spec.json").read_text())
    reports = [train(spec, resume=run) for run in (one, two)]
    assert_same_run(*reports)
    assert names_in(one) == names_in(two)


class Loop:
    """Kills of one form until there are enough of them."""

    def __init__(self, form: str, folder: Path, draw: random.Random, *, spec: dict[str, Any]) -> None:
        self.tally, self.folder, self.draw = Tally(form), folder, draw
        self.spec, self.phase, self.said = spec, mmap.mmap(-1, 1), folder / "said.txt"
        folder.mkdir()
        (folder / "spec.json").write_text(json.dumps(spec))

    def start(self, place: Path) -> int:
        """A process that trains in `place`, or goes on there; its id."""

        def work() -> None:
            from metricli import train

            watched(self.phase)
            train(self.spec, run_dir=place, resume="auto")
            self.phase[0] = PHASES.index("over")

        self.phase[0] = 0
        return forked(work, self.said)

    def kill(self, pid: int) -> None:
        """End it."""
        os.kill(pid, signal.SIGKILL)

    def wait(self, pid: int, seconds: float | None = None) -> int | None:
        """Its exit code, None if it is still there by then."""
        until = time.monotonic() + (seconds if seconds is not None else 600)
        while time.monotonic() < until:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        return None

    def finish(self, pid: int) -> None:
        """Wait for a process that must end well."""
        code = self.wait(pid)
        if code != 0:
            raise SystemExit(f"{self.tally.form}: exit code {code}\n{self.error()}")

    def error(self) -> str:
        """What the process that failed has said."""
        return self.said.read_text() if self.said.exists() else ""

    def run(self, kills: int) -> Tally:
        """Kill so often, and compare every run that finishes with one that was left alone."""
        began = time.monotonic()
        self.finish(self.start(self.folder / "whole"))
        life, tally = time.monotonic() - began, self.tally
        while tally.kills < kills:
            tally.runs += 1
            self.one_run(self.folder / f"run{tally.runs}", life)
        tally.seconds = time.monotonic() - began
        return tally

    def one_run(self, place: Path, life: float) -> None:
        """One run with as many kills as it takes."""
        tally = self.tally
        while True:
            pid = self.start(place)
            code = self.wait(pid, self.draw.uniform(0.0, 0.8 * life))
            life *= 1.1  # the machine may be slower than when it was measured
            if code is None:
                self.kill(pid)
                code = self.wait(pid)
            if code == 0:
                break
            if code != -signal.SIGKILL:
                raise SystemExit(f"{tally.form}: exit code {code} after {tally.kills} kills\n{self.error()}")
            tally.kills += 1
            tally.phases[PHASES[self.phase[0]]] += 1
            tally.unfinished += any(place.glob("checkpoints/.*")) or any(place.glob("*.part"))
            tally.orphans += orphans()
        self.finish(forked(lambda: compare(self.folder / "whole", place), self.said))


class Commands(Loop):
    """The same with `metricli train` from the shell."""

    gpus = 1
    process: subprocess.Popen[str]

    def start(self, place: Path) -> int:
        """The command."""
        words = ["train", str(self.folder / "spec.json"), "--run-dir", str(place), "--resume", "auto", "-q"]
        command = [sys.executable, "-m", "metricli", *words, "--gpus", str(self.gpus)]
        self.log = self.said.open("w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, text=True)
        self.place = place
        return self.process.pid

    def kill(self, pid: int) -> None:
        """The command, or one of its ranks."""
        ranks = ranks_of(pid) if self.draw.random() < 0.5 else []
        self.phase[0] = PHASES.index("training" if (self.place / "metrics.jsonl").exists() else "loading")
        if any(self.place.glob("checkpoints/.*")):
            self.phase[0] = PHASES.index("saving")
        os.kill(self.draw.choice(ranks) if ranks else pid, signal.SIGKILL)

    def wait(self, pid: int, seconds: float | None = None) -> int | None:
        """A rank that was killed makes the command end with code 6, which is as good."""
        if pid != getattr(getattr(self, "process", None), "pid", None):
            return super().wait(pid, seconds)
        try:
            code = self.process.wait(seconds if seconds is not None else 120)
        except subprocess.TimeoutExpired:
            return None
        self.log.close()
        return -signal.SIGKILL if code == 6 and self.gpus > 1 else code


class TwoProcesses(Commands):
    """The same with two processes."""

    gpus = 2


def ranks_of(pid: int) -> list[int]:
    """The processes that a command has started."""
    text = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in text.read_text().split()] if text.exists() else []


def orphans() -> int:
    """Processes of killed runs that are still there after a while; they are killed too."""
    until = time.monotonic() + GRACE
    while (left := _marked()) and time.monotonic() < until:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return len(left)


def _marked() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if MARK.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


MARK = f"METRICLI_KILL_LOOP=loop{os.getpid()}"
FORMS: dict[str, tuple[str, type[Loop], dict[str, Any]]] = {
    "kills": ("forked", Loop, {"num_workers": 0}),
    "workers": ("forked, 2 workers", Loop, {"num_workers": 2}),
    "commands": ("commands", Commands, {"num_workers": 0}),
    "gpus": ("commands, --gpus 2", TwoProcesses, {"num_workers": 0}),
}


def main() -> None:
    """Every form that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for form, kills in (("kills", 50), ("workers", 10), ("commands", 6), ("gpus", 6)):
        parser.add_argument(f"--{form}", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    name, _, value = MARK.partition("=")
    os.environ[name] = value
    import accelerate
    import timm
    import torchvision

    import metricli.runs.train
    from tests.runs import resuming

    assert all((accelerate, timm, torchvision, metricli.runs.train, resuming))
    lines = []
    with tempfile.TemporaryDirectory(prefix="metricli-kills-") as folder:
        for form, (title, kind, training) in FORMS.items():
            if getattr(asked, form):
                spec = SPEC | {"training": SPEC["training"] | training}
                draw = random.Random(f"{asked.seed}-{form}")
                lines.append(str(kind(title, Path(folder, form), draw, spec=spec).run(getattr(asked, form))))
                sys.stdout.write(f"{lines[-1]}\n")
                sys.stdout.flush()
    if asked.out:
        asked.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
