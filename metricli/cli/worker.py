"""One of the processes that `metricli.runs.launch` starts: python -m metricli.cli.worker FOLDER AGENT.

FOLDER holds `request.json`: the `verb` of the api, its `arguments` as plain values, and how loud the main
process is (`voice`: "silent", "quiet" or "full").
"""

from __future__ import annotations

from metricli.stopping import STOPPING, leave_until_ready

if __name__ == "__main__":
    leave_until_ready(silently=True)  # the imports take a moment

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from metricli.cli.membership import become_member, leave, patience, wait_or_leave
from metricli.cli.signals import raised
from metricli.errors import MetricliError, Terminated, WorkerError, interruption
from metricli.placement import Placement, cores, placement
from metricli.reporter import SilentReporter
from metricli.runs.launch import Told, Wire, portable

GRACE = 3.0
"""Seconds from the death of one process to the end of the others, whatever they are at."""


def main(folder: str, agent: str) -> NoReturn:
    """Do what the request says, tell the agent how it ended, and leave with the exit code."""
    become_member(int(agent))
    here, wire = placement(), Wire(Path(folder))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // here.local_size)))
    if not here.is_main:
        _print_to(wire.log(here.rank))
    with raised(hears_one=True):  # what came to all comes again by the agent, which kills at a second one
        report, error = _outcome(wire, here)
        for each in STOPPING:  # the agent may end this process, for another has left: first its last word
            signal.signal(each, signal.SIG_IGN)
        wire.tell(Told(here.rank, time.time(), report if here.is_main else None, error))
    if error is None:
        sys.exit(0)
    code = error.exit_code if isinstance(error, MetricliError) else MetricliError.exit_code
    wait_or_leave(patience(error, here), code)
    leave(code)


def _outcome(wire: Wire, here: Placement) -> tuple[Any, BaseException | None]:
    """The report, or what stopped this process."""
    try:
        request = wire.begin(here.rank)
        threading.Thread(target=_watch_others, args=(wire, here), daemon=True).start()
        report = _call(request, here)
        return (portable(report, wire.folder / "written") if here.is_main else report), None
    except (KeyboardInterrupt, Terminated) as stopped:
        return None, interruption(stopped)
    except MetricliError as failure:
        return None, failure
    except SystemExit as wish:
        leave(wish.code if isinstance(wish.code, int) else 1)
    except BaseException as failure:
        failure.add_note("".join(traceback.format_exception(failure)).rstrip())
        return None, failure


def _call(request: dict[str, Any], here: Placement) -> Any:
    from metricli import api
    from metricli.cli.progress import reporter

    voice = request["voice"] if here.is_main else "silent"
    live = SilentReporter() if voice == "silent" else reporter(quiet=voice == "quiet")
    return getattr(api, request["verb"])(**request["arguments"], reporter=live)


def _print_to(log: Path) -> None:
    with log.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _watch_others(wire: Wire, here: Placement) -> None:
    """End this process soon after another has failed: it may wait for that one in a call that never ends."""
    others = [rank for rank in range(here.size) if rank != here.rank]
    while not any(_has_failed(wire, rank) for rank in others):
        time.sleep(0.2)
    time.sleep(GRACE)
    lost = WorkerError("another process failed")
    lost.lost = True
    if wire.told(here.rank) is None:
        wire.tell(Told(here.rank, time.time(), error=lost))
    leave(lost.exit_code)


def _has_failed(wire: Wire, rank: int) -> bool:
    pid = wire.pid(rank)
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
        gone = False
    except ProcessLookupError:
        gone = True
    told = wire.told(rank)
    return gone if told is None else told.is_cause


if __name__ == "__main__":
    main(*sys.argv[1:])
