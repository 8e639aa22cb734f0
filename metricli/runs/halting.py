"""Leaving a validation under way when a signal comes: between batches, where processes do not meet."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import torch.distributed as dist

from metricli.errors import Interrupted
from metricli.reporter import Reporter
from metricli.runs.context import StopFlag
from metricli.runs.processes import ALONE, World

__all__ = ["NEVER", "Halt", "Heeding", "stopped"]

_EVERY = 0.2
"""Seconds between two questions to the others' store."""


class Halt:
    """Whether any process of a run is asked to stop; each finds out for itself, and waits for none.

    Made by all processes together. Who finds out goes where they meet next, and there all of them raise.
    """

    def __init__(
        self, stop: StopFlag, world: World = ALONE, saying: Callable[[int], Interrupted] | None = None
    ) -> None:
        self.stop, self.world = stop, world
        self.saying = saying or (lambda signum: Interrupted("stopped", signum=signum))
        self.key = world.once(lambda: f"metricli/stop/{secrets.token_hex(8)}")
        self.told = 0
        self.asked_at = 0.0

    def signum(self) -> int:
        """The signal that came to this process or to another one; 0 if none did."""
        if self.told:
            return self.told
        if self.world.size == 1:
            self.told = self.stop.signum or 0
            return self.told
        if self.stop.signum is not None:
            self.told = self.stop.signum
            _store().set(self.key, str(self.told))
        elif time.monotonic() - self.asked_at > _EVERY:
            self.asked_at = time.monotonic()
            if _store().check([self.key]):
                self.told = int(_store().get(self.key))
        return self.told

    def heed(self) -> None:
        """Stop here, if a signal came.

        Raises:
            Interrupted: one did.
        """
        if signum := self.signum():
            raise self.saying(signum)

    def heed_all(self, signums: Sequence[int]) -> None:
        """Stop where the processes have met, if a signal came to any of them.

        Raises:
            Interrupted: one did.
        """
        if signum := max(signums):
            raise self.saying(signum)


class Heeding:
    """A reporter that stops what advances when a signal came."""

    def __init__(self, reporter: Reporter, halt: Halt) -> None:
        self.halt, self._advance = halt, reporter.advance
        self.say, self.warn, self.epoch = reporter.say, reporter.warn, reporter.epoch
        self.begin, self.end = reporter.begin, reporter.end

    def advance(self, amount: int, values: Mapping[str, float] | None = None) -> None:
        """Pass it on, or stop.

        Raises:
            Interrupted: a signal came.
        """
        self.halt.heed()
        self._advance(amount, values)


def stopped(run: Path, where: str, signum: int) -> Interrupted:
    """What to raise once a run is saved."""
    spec = quote(str(run / "spec.resolved.yaml"))
    return Interrupted(
        f"stopped by a signal {where}, saved in {run}",
        signum=signum,
        hint=f"go on with: metricli train {spec} --resume {quote(str(run))}",
    )


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


NEVER = Halt(StopFlag())
"""Of a verb that a signal stops by itself."""
