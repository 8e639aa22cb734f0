"""What the tests share: the drawn data set, a tiny spec, one trained run, and the command line in-process."""

from __future__ import annotations

import atexit
import copy
import json
import os
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.worlds import worlds  # noqa: F401  (a fixture)

os.environ.setdefault("METRICLI_DEVICE", "cpu")
CACHE = os.path.join(tempfile.gettempdir(), "metricli-tests-")
if not os.environ.get("METRICLI_CACHE", "").startswith(CACHE):  # else this is a process of such a test
    os.environ["METRICLI_CACHE"] = f"{CACHE}{os.getpid()}"
    atexit.register(shutil.rmtree, os.environ["METRICLI_CACHE"], ignore_errors=True)
ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "data" / "figures_mini" / "df.csv"

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 0,
    "data": {"table": str(FIGURES)},
    "extractor": {"name": "timm", "model": "test_resnet", "dim": 16},
    "transforms": {
        "train": {"name": "augment", "size": 32},
        "eval": {"name": "resize_normalize", "size": 32},
    },
    "sampler": {"name": "balanced", "n_labels": 6, "n_instances": 2},
    "loss": {"name": "triplet", "margin": 0.2, "miner": "all_triplets"},
    "training": {"epochs": 2, "log_every_steps": 1},
    "validation": {"metrics": {"cmc": [1, 5], "map": [5], "map_r": True}, "monitor": "cmc@1"},
}
"""A run of two epochs of two steps each; a second or two on two cores."""


@dataclass(frozen=True)
class Outcome:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A fresh copy of the tiny spec."""
    return copy.deepcopy(TINY)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a command line in-process, in an empty folder of its own."""
    from metricli.cli.launch import run

    monkeypatch.chdir(tmp_path)

    def call(*words: Any) -> Outcome:
        capfd.readouterr()
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = run([str(word) for word in words])
        finally:
            signal.signal(signal.SIGTERM, before)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report of one tiny run, made once; its run directory must not be changed."""
    from metricli import train

    return train(copy.deepcopy(TINY), run_dir=tmp_path_factory.mktemp("trained") / "run")
