"""A package with an extractor that goes wrong when told to, and commands of two processes that use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import FIGURES

SOURCE = '''
from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Literal

from metricli.specs.kinds import ExtractorSpec


class Colours(ExtractorSpec):
    """The colours of a coarse image, times a matrix; FAULT=RANK:CALL:WHAT,... makes it fail."""

    name: Literal["colours"] = "colours"

    def build(self, *, load_weights):
        import torch

        class Net(torch.nn.Module):
            dim = 8

            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(48, 8)
                self.calls = 0

            def forward(self, images):
                self.calls += 1
                fail_if_told(self.calls)
                pooled = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
                return torch.nn.functional.normalize(self.linear(pooled))

        return Net()


def fail_if_told(call):
    mine = os.environ.get("RANK", "0")
    if "CALLS" in os.environ:
        part = Path(os.environ["CALLS"], f"rank{mine}.part")
        part.write_text(str(call))
        part.replace(part.with_suffix(""))
        time.sleep(float(os.environ["PACE"]))
    for told in filter(None, os.environ.get("FAULT", "").split(",")):
        rank, at, what = told.split(":")
        if (rank, int(at)) == (mine, call):
            fail(what)


def fail(what):
    if what == "raise":
        raise ValueError("a fault in the plugin")
    if what == "exit":
        os._exit(3)
    if what == "hang":
        time.sleep(120)
    os.kill(os.getpid(), signal.SIGKILL)
'''

SPEC: dict[str, Any] = {
    "name": "faulty",
    "data": {"table": str(FIGURES)},
    "extractor": "colours",
    "transforms": {
        "train": {"name": "resize_normalize", "size": 16},
        "eval": {"name": "resize_normalize", "size": 16},
    },
    "sampler": {"name": "balanced", "n_labels": 6, "n_instances": 2},
    "loss": {"name": "triplet", "margin": 0.2, "miner": "all_triplets"},
    "training": {"epochs": 40, "log_every_steps": 1},
    "validation": {
        "every_n_epochs": 40,
        "metrics": {"cmc": [1], "map": [], "precision": [], "map_r": False},
        "monitor": "cmc@1",
        "bootstrap": {"samples": 0},
    },
    "prediction": {"batch_size": 2},
}


def install(site: Path) -> None:
    """The package as `pip install --target` leaves it."""
    info = site / "faulty_plugins-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "faulty_plugins.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metricli.extractors]\ncolours = faulty_plugins:Colours\n")


@dataclass
class Command:
    """A command of one or two processes under way, whose every process carries `mark` in its environment."""

    process: subprocess.Popen[str]
    folder: Path
    mark: str
    ranks: tuple[int, ...] = (0, 1)

    def wait_for_calls(self, calls: int, timeout: float = 60) -> None:
        """Until every rank has called its extractor so often."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.process.poll() is None:
            if all(self.calls(rank) >= calls for rank in self.ranks):
                return
            time.sleep(0.02)
        _, err = self.process.communicate(timeout=30)
        raise AssertionError(f"it ended or hung before call {calls}:\n{err}")

    def calls(self, rank: int) -> int:
        """How often a rank has called its extractor."""
        file = self.folder / f"rank{rank}"
        return int(file.read_text()) if file.exists() else 0

    def last_call(self) -> float:
        """When any rank last called its extractor, in the system's time."""
        return max(file.stat().st_mtime for file in self.folder.iterdir())

    def alive(self) -> list[int]:
        """Processes that carry the mark."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    if self.mark.encode() in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def orphans(self, patience: float = 8) -> list[int]:
        """Processes that are still there a while after the command has ended; they are killed."""
        end = time.monotonic() + patience
        while (left := self.alive()) and time.monotonic() < end:
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return left


def start(
    words: list[str], *, cwd: Path, site: Path, launcher: str = "agent", fault: str = "", pace: float = 0.05
) -> Command:
    """`metricli WORDS` with two processes, by our own agent (`--gpus 2`) or torchrun, or "alone"; as a group.

    Each call of the extractor takes `pace` seconds more.
    """
    calls = cwd / "calls"
    calls.mkdir()
    mark = f"METRICLI_TEST_MARK={cwd}-{time.monotonic_ns()}"
    name, _, value = mark.partition("=")
    ours = {"METRICLI_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "TMPDIR": str(cwd)}
    ours |= {"CALLS": str(calls), "PACE": str(pace), "FAULT": fault, name: value}
    paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    if launcher in ("agent", "alone"):
        several = ["--gpus", "2"] if launcher == "agent" else []
        command = [sys.executable, "-m", "metricli", *words, *several]
    else:
        options = ["--standalone", "--nproc-per-node", "2", "--monitor-interval", "0.1"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "metricli", *words]
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **ours, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Command(process, calls, mark, (0,) if launcher == "alone" else (0, 1))


def write_spec(folder: Path) -> str:
    """The spec as a file; its name."""
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    return "spec.yaml"
