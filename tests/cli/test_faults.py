"""Whatever ends one process of a run ends all, soon, with its word and code, no orphan and no torn file."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import metricli
from metricli.components.tensorfile import read_tensor_file
from tests.cli import faults
from tests.cli.conftest import process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds orphans in /proc")

FAULTS = ("raise", "exit", "kill", "SIGINT", "SIGTERM", "parent")
CODES = {"raise": 1, "exit": 3, "kill": 6, "SIGINT": 130, "SIGTERM": 143, "parent": -signal.SIGKILL}
MESSAGES = {
    "raise": "error: rank 1: ValueError: a fault in the plugin; ",
    "exit": "error: rank 1 left with exit code 3 and said nothing; its output is in ",
    "kill": "error: rank 1 was killed by SIGKILL; the memory may not suffice; its output is in ",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package that goes wrong."""
    folder = tmp_path_factory.mktemp("faulty") / "site"
    faults.install(folder)
    return folder


@pytest.fixture(scope="module")
def ckpt(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the extractor that goes wrong."""
    folder = tmp_path_factory.mktemp("faulty-run") / "run"
    with plugins_of(site):
        return metricli.train(faults.SPEC, ["training.epochs=1"], run_dir=folder).best_ckpt


@contextmanager
def plugins_of(site: Path) -> Iterator[None]:
    """The package, installed in this process."""
    from metricli.specs import registry

    sys.path.insert(0, str(site))
    registry.refresh()
    try:
        yield
    finally:
        sys.path.remove(str(site))
        sys.modules.pop("faulty_plugins", None)
        registry.refresh()


def words_of(verb: str, folder: Path, ckpt: Path) -> list[str]:
    if verb == "train":
        return ["train", faults.write_spec(folder), "--run-dir", "run"]
    return ["predict", "--ckpt", str(ckpt), "prediction.batch_size=2", "--out", "f.npy"]


def meet(command: faults.Command, fault: str) -> None:
    """Send what comes from outside, once both ranks work."""
    if fault not in ("SIGINT", "SIGTERM", "parent"):
        return
    command.wait_for_calls(5)
    if fault == "SIGINT":
        os.killpg(command.process.pid, signal.SIGINT)  # as Ctrl-C does
    else:
        command.process.send_signal(signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)


IN_CI = {
    *(("agent", "train", fault) for fault in FAULTS),
    ("agent", "predict", "raise"),
    ("agent", "predict", "parent"),
    ("torchrun", "train", "raise"),
    ("torchrun", "predict", "kill"),
}
MATRIX = [
    pytest.param(*case, marks=() if case in IN_CI else pytest.mark.long)
    for case in product(["agent", "torchrun"], ["train", "predict"], FAULTS)
]


@pytest.mark.parametrize(("launcher", "verb", "fault"), MATRIX)
def test_a_fault_ends_all(
    launcher: str, verb: str, fault: str, site: Path, ckpt: Path, tmp_path: Path
) -> None:
    inside = f"1:5:{fault}" if fault in MESSAGES else ""
    words = words_of(verb, tmp_path, ckpt)
    if (launcher, verb) == ("agent", "train") and fault in ("SIGTERM", "parent"):
        words.append("training.num_workers=1")  # processes of its own, which must save or die with it
    pace = 0.3 if fault == "parent" else 0.05  # an orphan would work on for 20 seconds
    command = faults.start(words, cwd=tmp_path, site=site, launcher=launcher, fault=inside, pace=pace)
    try:
        meet(command, fault)
        command.process.wait(90)
    finally:
        ended, left = time.time(), command.orphans()
        out, err = command.process.communicate(timeout=30)
    assert left == [], f"{len(left)} processes live on\n{err}"
    assert ended - command.last_call() < 30, err
    assert out == ""
    code = command.process.returncode
    if launcher == "agent":
        assert code == CODES[fault], err
        assert_said_once(fault, verb, err)
    else:
        assert code != 0  # torchrun's own
        assert err.count("error: rank 1: ValueError: a fault in the plugin; ") == (fault == "raise"), err
    assert_nothing_torn(tmp_path)
    if verb == "train" and fault in ("SIGINT", "SIGTERM"):
        assert err.count("error: stopped by a signal after step ") == 1, err
        assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
        if launcher == "agent" and fault == "SIGINT":
            assert_resumes(tmp_path, site)


def test_a_death_ends_a_process_that_is_busy_elsewhere(site: Path, tmp_path: Path) -> None:
    """It hears of no collective that breaks, and of SIGTERM only after its step."""
    words = words_of("train", tmp_path, tmp_path)
    command = faults.start(words, cwd=tmp_path, site=site, fault="1:5:kill,0:5:hang")
    try:
        out, err = command.process.communicate(timeout=90)
    finally:
        ended, left = time.time(), command.orphans()
    assert (left, out, command.process.returncode) == ([], "", 6)
    assert ended - command.last_call() < 20, err
    assert_said_once("kill", "train", err)


def test_the_variables_of_srun_are_enough(site: Path, ckpt: Path, tmp_path: Path) -> None:
    """Two tasks of a step, as srun would start them; the rows are those of one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "PYTHONPATH": str(site)}
    words = ["predict", "--ckpt", ckpt, "--out", "two.npy"]
    tasks = [
        process(*words, cwd=tmp_path, env=place | step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in "01"
    ]
    said = [task.communicate(timeout=90) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert said[0][0].startswith("204 rows of 8 float32 in two.npy\n")
    assert said[1] == ("", "")
    with plugins_of(site):
        metricli.predict(ckpt=ckpt, out=tmp_path / "one.npy")
    np.testing.assert_allclose(np.load(tmp_path / "two.npy"), np.load(tmp_path / "one.npy"), atol=1e-6)


def assert_resumes(folder: Path, site: Path) -> None:
    """The run goes on where it was stopped, here in one process, to its end."""
    stopped = len((folder / "run/metrics.jsonl").read_text().splitlines())
    with plugins_of(site):
        report = metricli.train(folder / "spec.yaml", resume=folder / "run")
    assert report.steps == 80
    rows = [json.loads(row) for row in (folder / "run/metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert stopped < len(rows)
    assert sorted(set(steps)) == list(range(1, 81))


def assert_said_once(fault: str, verb: str, err: str) -> None:
    """One line of ours, none of torch's."""
    if fault == "parent":
        assert "error" not in err
        return
    assert err.count("error: ") == 1, err
    assert fault == "raise" or "torch" not in err, err  # a traceback names it
    assert "elastic" not in err, err
    *_, last = err.splitlines()
    if fault in MESSAGES:
        assert last.startswith(MESSAGES[fault])
    elif verb == "predict":
        assert last.startswith("error: interrupted" if fault == "SIGINT" else "error: terminated")


def assert_nothing_torn(folder: Path) -> None:
    """Every file under its final name is whole."""
    rows = folder / "run/metrics.jsonl"
    if rows.exists():
        for row in rows.read_text().splitlines():
            json.loads(row)
    for checkpoint in folder.glob("run/checkpoints/*.ckpt"):
        read_tensor_file(checkpoint)
    assert not (folder / "f.npy").exists()
    assert not (folder / "f.index.csv").exists()
