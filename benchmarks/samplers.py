"""Batch samplers: construction as a ratio to one np.argsort of the labels, and a whole epoch.

    .venv/bin/python benchmarks/samplers.py [--quick] [--write]

All take turns in one process; a ratio is the median of the ratios within each turn, to np.argsort with its
default sort. "arrays" is an epoch as one array (metricli alone has it), "lists" all batches, one by one, as a
DataLoader asks for them. Batches have 16 labels (for categories 4 of 4) of 4 images. The goals of 1M rows
(docs/design.md, section 10): construction at most 2x np.argsort, an epoch under 0.1 s. --write saves
results/samplers.txt.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from oml.samplers.balance import BalanceSampler
from pytorch_metric_learning.samplers import MPerClassSampler

from metricli.components.samplers import (
    BalancedSampler,
    CategoryBalancedSampler,
    DistinctCategoryBalancedSampler,
)

RESULTS = Path(__file__).parent / "results"
N_LABELS, N_INSTANCES, CATEGORIES = 16, 4, 100
LIMIT = 30
"""Seconds that a peer may take for one construction and one epoch."""
SIZES = {
    "100k rows, 10k labels, shuffled": (100_000, 10_000, 11, 3),
    "1M rows, 100k labels, shuffled": (1_000_000, 100_000, 11, 1),
    "1M rows, 100k labels, in label order": (1_000_000, 100_000, 11, 0),
}
QUICK = {"10k rows, 1k labels, shuffled": (10_000, 1_000, 2, 1)}
GROUPED: dict[str, Any] = {"n_categories": 4, "n_labels": N_LABELS // 4, "n_instances": N_INSTANCES}
OURS: dict[str, Callable[[np.ndarray], BalancedSampler]] = {
    "balanced": lambda labels: BalancedSampler(
        labels=labels, n_labels=N_LABELS, n_instances=N_INSTANCES, seed=0
    ),
    "category_balanced": lambda labels: CategoryBalancedSampler(
        labels=labels, categories=labels % CATEGORIES, seed=0, **GROUPED
    ),
    "distinct_category_balanced": lambda labels: DistinctCategoryBalancedSampler(
        labels=labels, categories=labels % CATEGORIES, seed=0, **GROUPED
    ),
}
PEERS: dict[str, Callable[[np.ndarray], Iterable[Any]]] = {
    "PML MPerClassSampler": lambda labels: MPerClassSampler(
        labels, N_INSTANCES, N_LABELS * N_INSTANCES, (labels.max() + 1) * N_INSTANCES
    ),
    "OML BalanceSampler": lambda labels: BalanceSampler(labels, N_LABELS, N_INSTANCES),
}

Times = dict[str, dict[str, list[float]]]
"""Of each contender the seconds of each part, a value a turn."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it gave."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def one_turn(labels: np.ndarray, turn: int, peers: bool, took: Times, slow: set[str]) -> None:
    """Everybody once."""
    for name, kind in (("np.argsort", None), ("np.argsort, stable", "stable")):
        took[name]["construct"].append(timed(lambda kind=kind: np.argsort(labels, kind=kind))[0])
    for name, build in OURS.items():
        seconds, sampler = timed(lambda build=build: build(labels))
        took[name]["construct"].append(seconds)
        took[name]["arrays"].append(timed(lambda sampler=sampler: sampler.epoch_batches(turn))[0])
        sampler.set_epoch(turn)
        took[name]["lists"].append(timed(lambda sampler=sampler: list(sampler))[0])
    for name, make in PEERS.items() if peers else ():
        if name in slow:
            continue
        signal.alarm(LIMIT)
        try:
            seconds, peer = timed(lambda make=make: make(labels))
            took[name]["construct"].append(seconds)
            took[name]["lists"].append(timed(lambda peer=peer: list(peer))[0])
        except TimeoutError:
            slow.add(name)
        finally:
            signal.alarm(0)


def out_of_time(_signum: int, _frame: Any) -> None:
    """The handler of the alarm."""
    raise TimeoutError


def table(title: str, rows: int, labels: int, turns: int, slow_turns: int) -> list[str]:
    """The lines of one size."""
    values = np.arange(rows) % labels
    values = np.sort(values) if "order" in title else np.random.default_rng(0).permutation(values)
    took: Times = defaultdict(lambda: defaultdict(list))
    slow: set[str] = set()
    for turn in range(-1, turns):
        if turn < 0:  # warms caches
            one_turn(values, 0, peers=False, took=defaultdict(lambda: defaultdict(list)), slow=slow)
        else:
            one_turn(values, turn, turn < slow_turns, took, slow)
    base = took["np.argsort"]["construct"]
    lines = [f"{title:40}{'construct':>12}{'ratio':>8}{'arrays':>10}{'lists':>10}   (median ms)"]
    for name in [*took, *(name for name in slow if name not in took)]:
        parts = took[name]
        line = f"{name:40}"
        built = parts["construct"]
        if built:
            ratio = statistics.median(one / other for one, other in zip(built, base, strict=False))
            line += f"{1e3 * statistics.median(built):12.1f}{ratio:8.2f}"
        for part in ("arrays", "lists"):
            line += f"{1e3 * statistics.median(parts[part]):10.1f}" if parts[part] else f"{'':10}"
        lines.append((line.rstrip() + (f"  stopped after {LIMIT} s" if name in slow else "")).rstrip())
    return [*lines, ""]


def about() -> list[str]:
    """Where the figures come from."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    packages = ("metricli", "numpy", "open-metric-learning", "pytorch-metric-learning")
    place = (
        f"{platform.system()} {platform.machine()}, {next(iter(models), platform.processor())}, {cores} cores"
    )
    return [
        f"{place}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}, {day}",
        ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        " ".join(["python benchmarks/samplers.py", *sys.argv[1:]]),
        f"{N_LABELS} labels x {N_INSTANCES} images a batch; {SIZES_NOTE}",
        "",
    ]


SIZES_NOTE = "11 turns; the peers 3 of them at 100k rows and 1 at 1M, none in label order"
NOTES = """\
goals at 1M rows: construct at most 2x np.argsort, an epoch under 100 ms
An epoch shows every label with 4 of its 10 images. "lists" of PML are single indices, as it gives them."""


def main() -> None:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--write", action="store_true", help="save benchmarks/results/samplers.txt")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, out_of_time)
    lines = about()
    for title, (rows, labels, turns, slow_turns) in (QUICK if options.quick else SIZES).items():
        print(title, file=sys.stderr)
        lines += table(title, rows, labels, turns, slow_turns)
    text = "\n".join([*lines, NOTES])
    print(text)
    if options.write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "samplers.txt").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
