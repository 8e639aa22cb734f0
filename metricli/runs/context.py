"""Where a run computes: Accelerate's device and precision, the reporter, and signals turned into a flag."""

from __future__ import annotations

import errno
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from metricli.data.disk import remedy
from metricli.errors import Interrupted, ResourceError, UsageError, WorkerError
from metricli.reporter import Reporter, SilentReporter
from metricli.runs.processes import ALONE, World, cores
from metricli.specs.data import ComputeSpec
from metricli.stopping import STOPPING, came, counts_as

Precision = Literal["fp32", "fp16", "bf16", "fp64"]
SMALL_SET = 2000
_LOST = re.compile(r"[Cc]onnection (closed|reset|refused)|Broken pipe|Socket closed|gloo|NCCL")
"""What a collective says in whom another process has died; gloo gives it no type of its own."""
_SMALLER = "lower the batch size, the image size or the precision"
_NO_MEMORY = re.compile(r"tried to allocate (\d+) bytes|Storage size calculation overflowed")
"""What torch says on the CPU, without a type of its own, when there is no memory for a tensor."""


@dataclass(frozen=True)
class Context:
    """The accelerator and the reporter of one verb's run."""

    accelerator: Accelerator
    reporter: Reporter
    precision: Precision
    world: World = ALONE

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.accelerator.device
        return torch.device("cpu") if device.type == "cpu" else device  # of several, Accelerate says cpu:0

    @property
    def dtype(self) -> torch.dtype:
        """Type of parameters and images; half precision comes from autocast."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def workers(self, asked: int | None, images: int) -> int:
        """Processes that decode: as asked, or by the size of the set and the cores; of each process."""
        if asked is not None:
            return asked
        return 0 if images <= SMALL_SET else min(4, max(1, cores() // self.world.local_size))


def open_context(
    compute: ComputeSpec, reporter: Reporter, precision: Precision = "fp32", world: World = ALONE
) -> Context:
    """Take the device that the spec asks for; the context of a process that is not the main one is silent.

    Raises:
        UsageError: the device is not there, or cannot do the precision.
        WorkerError: Accelerate does not know the processes of this world.
    """
    device = choose_device(compute)
    if precision == "fp16" and device == "cpu":
        raise UsageError(
            "precision fp16 needs a GPU; this run is on the cpu", hint="use training.precision=bf16"
        )
    mixed = precision if precision in ("fp16", "bf16") else "no"
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # one process may run several verbs, on several devices
    GradientState._reset_state()
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed)
    if accelerator.device.type != device:
        raise UsageError(f"asked for {device}, and Accelerate gives {accelerator.device.type}")
    known_as = (accelerator.num_processes, accelerator.process_index)
    if world.size > 1 and known_as != (world.size, world.rank):
        known = f"process {accelerator.process_index} of {accelerator.num_processes}"
        raise WorkerError(
            f"this is process {world.rank} of {world.size}, and Accelerate takes it for {known}"
        )
    return Context(accelerator, reporter if world.is_main else SilentReporter(), precision, world)


def choose_device(compute: ComputeSpec) -> str:
    """`cpu`, `cuda` or `mps`: the spec's, else the best there is.

    Raises:
        UsageError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    asked = compute.device
    if asked == "auto":
        return next(device for device, is_there in there.items() if is_there)
    if not there[asked]:
        seen = ", ".join(device for device, is_there in there.items() if is_there)
        raise UsageError(f"the device {asked!r} is not visible here; visible: {seen}")
    return asked


class StopFlag:
    """Which signal asked the run to stop, if any."""

    signum: int | None = None

    def raise_if_set(self, message: str, hint: str) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.signum is not None:
            raise Interrupted(message, signum=self.signum, hint=hint)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """SIGINT, SIGTERM and SIGUSR1 set a flag that the loop looks at after each step.

    A second signal does what it would do outside, at once.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    if not came.is_of_command:
        came.begin()
    if came.first is not None:  # a library has swallowed it
        flag.signum = counts_as(came.first)
    before: dict[signal.Signals, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        heard = came.hear(signum)
        if heard == "first":
            flag.signum = counts_as(signum)
        if heard != "second":
            return
        for each, handler in before.items():
            signal.signal(each, handler)
        outside = before[signal.Signals(signum)]
        outside(signum, frame) if callable(outside) else signal.raise_signal(signum)

    for watched in STOPPING:
        before[watched] = signal.signal(watched, note)
    try:
        yield flag
    finally:
        for watched, handler in before.items():
            signal.signal(watched, handler)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Running out of memory or disk, and the death of another process, as our own errors.

    Raises:
        ResourceError: in place of torch's or the system's own error.
        WorkerError: a process that decodes images was killed, or the others of the run are gone.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        what = str(error).splitlines()[0] if str(error) else "out of memory"
        raise ResourceError(what, hint=_SMALLER) from None
    except RuntimeError as error:
        said = str(error).splitlines()[0] if str(error) else ""
        if wanted := _NO_MEMORY.search(said):
            size = f"of {int(wanted[1]) / 2**30:.1f} GB" if wanted[1] else "beyond any size"
            raise ResourceError(f"out of memory for a tensor {size}", hint=_SMALLER) from None
        if said.startswith("DataLoader worker"):
            raise WorkerError(
                f"a process that decodes images died: {said}",
                hint="the memory may not suffice; lower num_workers",
            ) from None
        if dist.is_initialized() and (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            lost = WorkerError(f"this process lost the others: {said}", hint="see what they say")
            lost.lost = True
            raise lost from None
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            what = f"cannot write{f' {str(error.filename)!r}' if error.filename else ''}: {error.strerror}"
            raise ResourceError(what, hint=remedy(error.errno)) from None
        raise
