"""A few real `kill -9`; `python -m tests.long.kill_loop` makes many, of every form."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LOOP = [sys.executable, "-m", "tests.long.kill_loop"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds orphans in /proc")


def loop(*words: str) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*LOOP, *words], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_runs_that_are_killed_end_as_one_that_was_not() -> None:
    (said,) = loop("--kills", "5", "--workers", "0", "--commands", "0", "--gpus", "0", "--seed", "1")
    assert int(said.split()[1]) >= 5, said
    assert "all equal to one that was not killed" in said
    assert "; 0 processes outlived their run; " in said


@pytest.mark.long
def test_every_form_of_it() -> None:
    for said in loop("--kills", "30", "--workers", "5", "--commands", "3", "--gpus", "3", "--seed", "2"):
        assert "; 0 processes outlived their run; " in said
