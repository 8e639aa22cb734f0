"""Which of how many processes this one is, as the launcher's environment says; no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from metricli.errors import UsageError

__all__ = ["Placement", "cores", "placement"]


@dataclass(frozen=True)
class Placement:
    """A process among those of a run; `local` counts those of its host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0


_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


def placement(environment: Mapping[str, str] | None = None) -> Placement:
    """What torchrun, accelerate launch or srun have set; else the only process there is.

    Of srun only its steps of several tasks count: a batch script has the variables of one too.

    Raises:
        UsageError: the variables contradict each other.
    """
    env = os.environ if environment is None else environment
    for names in (_TORCH, _SLURM):
        if names[0] in env and names[1] in env:
            rank, size = _number(env, names[0]), _number(env, names[1])
            local_size = _number(env, names[3], size)
            found = Placement(rank, size, _number(env, names[2], rank % max(1, local_size)), local_size)
            if not 0 <= found.rank < found.size or found.local_rank < 0:
                what = f"{names[0]}={rank} and {names[1]}={size} name no process of a run"
                raise UsageError(what, hint="unset them, or start with torchrun, srun or --gpus")
            if found.size > 1 or names is _TORCH:
                return found
    return Placement()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in env and default is not None:
        return default
    text = env[name].split("(")[0].split(",")[0]  # 4(x2),3: tasks of each host
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name}={env[name]!r} is no number; it should come from a launcher") from None
