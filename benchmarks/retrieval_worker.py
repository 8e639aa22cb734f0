"""One contender of benchmarks/retrieval.py in a process of its own: `retrieval_worker.py NAME FOLDER`.

Once the problem in FOLDER is loaded and a small one has been solved, the process says {"ready": true}, and
answers each line on its stdin with one line of JSON: seconds, extra memory at the peak in MiB, values.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from retrieval_contenders import CONTENDERS, THREADS, Made, Problem, load


def memory_mb(what: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def measured(made: Made, problem: Problem) -> dict[str, Any]:
    """Seconds, extra memory at the peak and values of one call."""
    work = made(problem)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    work.prepare()
    start, cpu = time.perf_counter(), time.process_time()
    outcome = work.call()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = memory_mb("VmHWM") - before
    return {"seconds": seconds, "cpu": cpu, "peak_mb": peak, "values": work.values(outcome)}


def main() -> None:
    """Answer the lines on stdin until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand between the replies
    limit = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.95)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # a refusal, where the system would kill

    def reply(words: dict[str, Any]) -> None:
        replies.write(json.dumps(words) + "\n")
        replies.flush()

    made = CONTENDERS[sys.argv[1]]
    try:
        import torch

        torch.set_num_threads(THREADS)
        problem = load(Path(sys.argv[2]))
        measured(made, problem.small())
        reply({"ready": True})
        for _ in sys.stdin:
            reply(measured(made, problem))
    except Exception as error:  # whatever it is, the others go on and the table says it
        reply({"failed": f"{type(error).__name__}: {error}".splitlines()[0][:90]})


if __name__ == "__main__":
    main()
