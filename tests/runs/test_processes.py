"""What processes of one run tell each other, and who they are by the launcher's variables."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from metricli.errors import Interrupted, Problem, SpecError, UsageError, WorkerError
from metricli.placement import Placement, placement
from metricli.runs.processes import joined
from tests.worlds import Worlds

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}


def test_a_process_knows_its_place() -> None:
    assert placement({}) == Placement(0, 1, 0, 1)
    assert placement(TORCHRUN) == Placement(3, 4, 1, 2)
    assert placement(SRUN) == Placement(5, 8, 1, 4)
    assert placement(SRUN | TORCHRUN) == Placement(3, 4, 1, 2), "torchrun within a step of srun"
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
    assert placement(batch_script).size == 1, "a batch script is no step of srun"
    assert placement(SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}).size == 1


@pytest.mark.parametrize("changed", [{"RANK": "4"}, {"RANK": "-1"}, {"WORLD_SIZE": "two"}])
def test_a_contradicting_place_is_refused(changed: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        placement(TORCHRUN | changed)


def _talk() -> dict[str, Any]:
    with joined("cpu") as world:
        made = world.once(lambda: f"made by {world.rank}")
        try:
            world.once(_refuse)
            refused = None
        except SpecError as error:
            refused = (str(error), error.problems)
        try:
            world.once(_break)
        except (ValueError, WorkerError) as error:
            broken = (type(error), str(error), getattr(error, "lost", False))
        world.wait()
        told = {"rank": world.rank, "all": world.gather(world.rank), "made": made, "refused": refused}
        return told | {"broken": broken}


def _refuse() -> None:
    raise SpecError("a spec", [Problem("loss.margin", "is wrong", line=3)], hint="mend it")


def _break() -> None:
    raise ValueError("a bug")


@pytest.mark.xdist_group("worlds")
def test_processes_tell_each_other(worlds: Worlds) -> None:
    told = worlds.run(3, _talk)
    assert [found["rank"] for found in told] == [0, 1, 2]
    error = SpecError("a spec", [Problem("loss.margin", "is wrong", line=3)], hint="mend it")
    for found in told:
        assert found["all"] == [0, 1, 2]
        assert found["made"] == "made by 0"
        assert found["refused"] == (str(error), error.problems)
    assert told[0]["broken"] == (ValueError, "a bug", False)
    for found in told[1:]:
        assert found["broken"] == (WorkerError, "process 0 failed: ValueError: a bug", True)


def test_errors_travel_whole() -> None:
    for error in (
        SpecError("a spec", [Problem("loss", "is wrong")], hint="mend it"),
        Interrupted("stopped", signum=15, hint="go on"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.exit_code) == (type(error), str(error), error.exit_code)
        assert vars(again) == vars(error)


def test_one_process_alone_starts_no_others() -> None:
    with pytest.raises(UsageError, match="2 processes are asked for"), joined("cpu", gpus=2):
        pass
    with joined("cpu") as world:
        assert (world.size, world.gather("x"), world.once(lambda: 7)) == (1, ["x"], 7)
