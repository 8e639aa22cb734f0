"""Reading and checking a table of a million rows, as a ratio to pandas.read_csv with its defaults.

    .venv/bin/python benchmarks/table.py [--rows 1000000] [--repeats 15] [--out benchmarks/results/table.txt]

A row of the printed table is the median of repetitions that take turns with pandas in one run; a ratio
is the median of the ratios within each turn, of wall time and of the CPU time of all threads. Peak memory
is that of a fresh process doing only that work, less what the imports take. No image is touched
(`files=False`), and what a work returns (the table with its findings) is freed outside the clock.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from metricli.data.checks import check_table
from metricli.data.table import read_table


def write_table(file: Path, rows: int) -> None:
    """A sound table in no order: a tenth as many labels as rows, half of them for training.

    Paths are of 35 to 41 characters; every validation row has both flags; queries and gallery are apart.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, rows // 10, rows)
    train = labels < rows // 20
    query = rng.random(rows) < 0.2
    kinds = ["shoe", "chair", "bicycle", "sideboard", "coffee maker"]
    categories = [f"{kind} {i}" for i in range(10) for kind in kinds]
    frame = pd.DataFrame(
        {
            "label": [f"label_{label:06d}" for label in labels],
            "path": [
                f"images/{kinds[label % 5][: 3 + label % 7]}/label_{label:06d}/{i:07d}.jpg"
                for i, label in enumerate(labels)
            ],
            "split": np.where(train, "train", "validation"),
            "is_query": np.where(train, "", np.where(query, "True", "False")),
            "is_gallery": np.where(train, "", np.where(query, "False", "True")),
            "category": [categories[label % 50] for label in labels],
            "sequence": [f"s{label}-{i % 3}" for i, label in enumerate(labels)],
        }
    )
    frame.to_csv(file, index=False)


def work(file: Path) -> dict[str, Callable[[], object]]:
    """What is timed, pandas first."""
    return {
        "pandas.read_csv": lambda: pd.read_csv(file),
        "read_table": lambda: read_table(file),
        "read_table + check_table": lambda: read_and_check(file),
    }


def read_and_check(file: Path) -> object:
    """The table and its findings."""
    table = read_table(file)
    return table, check_table(table, files=False)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call; what it returns is freed outside the clock."""
    start, cpu = time.perf_counter(), time.process_time()
    result = run()
    seconds = time.perf_counter() - start, time.process_time() - cpu
    del result
    return seconds


def peak_mb(file: Path, name: str) -> float:
    """Peak memory of a fresh process that does this work once, above its peak after the imports."""
    command = [sys.executable, __file__, "--only", name, "--file", str(file)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def own_peak_kb() -> float:
    """Peak memory of this process; `ru_maxrss` would start from that of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)


def only(file: Path, name: str) -> None:
    """What `peak_mb` runs in a process of its own."""
    before = own_peak_kb()
    result = work(file)[name]()
    print((own_peak_kb() - before) / 1024)
    del result


def machine() -> str:
    """One line about where the figures come from."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("pandas", "pyarrow", "numpy")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    place = f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"
    return ", ".join([place, *versions, load])


def measure(file: Path, repeats: int) -> list[str]:
    """The lines of the printed table."""
    runs = work(file)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            took = timed(run)
            if turn:  # the first turn warms the file cache and the allocators
                seconds[name].append(took)
    lines = [f"{'':26}{'median s':>10}{'best s':>10}{'ratio':>8}{'CPU s':>8}{'ratio':>8}{'peak MB':>10}"]
    base = np.array(next(iter(seconds.values())))
    for name, pairs in seconds.items():
        took_all = np.array(pairs)
        (wall, cpu), (best, _) = np.median(took_all, axis=0), took_all.min(axis=0)
        wall_ratio, cpu_ratio = np.median(took_all / base, axis=0)
        times = f"{wall:10.3f}{best:10.3f}{wall_ratio:8.2f}{cpu:8.3f}{cpu_ratio:8.2f}"
        lines.append(f"{name:26}{times}{peak_mb(file, name):10.0f}")
    return lines


def main() -> None:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()
    if options.only:
        return only(options.file, options.only)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.csv"
        write_table(file, options.rows)
        size = file.stat().st_size / 1e6
        about = f"{options.rows} rows, {options.rows // 10} labels, {size:.0f} MB of CSV"
        text = "\n".join(
            [machine(), f"{about}, {options.repeats} turns", "", *measure(file, options.repeats)]
        )
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
