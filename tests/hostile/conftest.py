"""What hostile inputs are tried on: images, a spec, a checkpoint; and what must hold of each try."""

from __future__ import annotations

import copy
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.cli.conftest import listing
from tests.conftest import TINY, Outcome
from tests.hostile.cases import Case
from tests.hostile.tables import IMAGES, SOUND

SECONDS = 20
MEMORY_MB = 900
"""By how much the memory may grow for one input."""


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory, trained: Any) -> dict[str, str]:
    """What the words of a case may name."""
    folder = tmp_path_factory.mktemp("ground")
    root = folder / "images"
    (root / "folder").mkdir(parents=True)
    for i, name in enumerate(IMAGES):
        Image.new("RGB", (8, 8), (30 * i, 99, 7)).save(root / name)
    (folder / "outside.png").write_bytes((root / "0.png").read_bytes())
    (root / "out.png").symlink_to(folder / "outside.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "dangling.png").symlink_to(root / "none.png")
    os.mkfifo(root / "pipe.png")
    (folder / "sound.csv").write_text(SOUND)
    np.save(folder / "features.npy", np.eye(4, 3, dtype=np.float32) + 0.1)
    spec = copy.deepcopy(TINY)
    spec["data"] = {"table": "sound.csv", "root": "images"}
    spec["sampler"] = {"name": "balanced", "n_labels": 2, "n_instances": 2}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return {
        "root": str(root),
        "spec": str(folder / "spec.yaml"),
        "table": str(folder / "sound.csv"),
        "features": str(folder / "features.npy"),
        "best": str(trained.best_ckpt),
    }


@pytest.fixture
def tried(cli: Any, ground: dict[str, str], tmp_path: Path) -> Any:
    """Run a case: bounded in time and memory, and if it fails, in words and without a trace."""

    def call(case: Case) -> Outcome:
        for name, data in case.files.items():
            (tmp_path / name).write_bytes(data)
        if case.make is not None:
            case.make(tmp_path)
        words = list(case.words)
        for key, value in {**ground, "here": str(tmp_path)}.items():
            words = [word.replace(f"{{{key}}}", value) for word in words]
        before, memory = listing(tmp_path), _memory(reset=True)
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(SECONDS)
        started = time.monotonic()
        try:
            outcome: Outcome = cli(*words)
        finally:
            signal.alarm(0)
        check(case, outcome)
        if outcome.code:
            assert listing(tmp_path) == before
        grown = _memory() - memory
        assert grown < MEMORY_MB, f"{grown:.0f} MB more"
        assert time.monotonic() - started < SECONDS
        return outcome

    return call


def check(case: Case, outcome: Outcome) -> None:
    """What holds of every outcome."""
    said = outcome.out + outcome.err
    assert "Traceback" not in said, said
    assert outcome.code in case.codes, (outcome.code, said[:2000])
    assert said.replace("\n", "").isprintable(), repr(said[:2000])
    if outcome.code and case.words[0] != "inspect-dataset":
        lines = [line for line in outcome.err.split("\n") if line.startswith("error: ")]
        assert len(lines) == 1, outcome.err
        assert len(outcome.err) < 20_000, len(outcome.err)
    if outcome.code == 0:
        assert "error: " not in outcome.err


class Hung(BaseException):
    """The time is over."""


def _too_long(_signum: int, _frame: Any) -> None:
    raise Hung


def _memory(*, reset: bool = False) -> float:
    """The most memory since the last reset, in MB; 0 where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
