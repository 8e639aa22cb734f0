"""Reading and checking a table of a million rows, as a ratio to pandas.read_csv with its defaults.

    .venv/bin/python benchmarks/table.py [--rows 1000000] [--repeats 9] [--out benchmarks/results/table.txt]

A row of the printed table is the median of repetitions that take turns with pandas in one run; the ratio
is the median of the ratios within each turn. Peak memory is that of a fresh process doing only that work,
less what the imports take. No image is touched (`files=False`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import resource
import statistics
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
    """A sound table: a tenth as many labels as rows, half of them for training, queries and gallery apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, rows // 10, rows)
    train = labels < rows // 20
    query = rng.random(rows) < 0.2
    frame = pd.DataFrame(
        {
            "label": [f"label-{label:06d}" for label in labels],
            "path": [f"images/label-{label:06d}/{i:07d}.jpg" for i, label in enumerate(labels)],
            "split": np.where(train, "train", "validation"),
            "is_query": np.where(train, "", np.where(query, "True", "False")),
            "is_gallery": np.where(train, "", np.where(query, "False", "True")),
            "category": [f"category-{label % 50}" for label in labels],
            "sequence": [f"s{label}-{i % 3}" for i, label in enumerate(labels)],
        }
    )
    frame.to_csv(file, index=False)


def work(file: Path) -> dict[str, Callable[[], object]]:
    """What is timed, pandas first."""
    return {
        "pandas.read_csv": lambda: pd.read_csv(file),
        "read_table": lambda: read_table(file),
        "read_table + check_table": lambda: check_table(read_table(file), files=False),
    }


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call; what it returns is freed outside the clock."""
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
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


def main() -> None:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()
    if options.only:
        return only(options.file, options.only)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.csv"
        write_table(file, options.rows)
        runs = work(file)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(options.repeats + 1):
            for name, run in runs.items():
                took = timed(run)
                if turn:  # the first turn warms the file cache and the allocators
                    seconds[name].append(took)
        peaks = {name: peak_mb(file, name) for name in runs}
        size = file.stat().st_size / 1e6
    base = next(iter(seconds.values()))
    lines = [
        machine(),
        f"{options.rows} rows, {options.rows // 10} labels, {size:.0f} MB of CSV, {options.repeats} turns",
        "",
        f"{'':26}{'median s':>10}{'best s':>10}{'ratio':>8}{'peak MB':>10}",
    ]
    for name, took in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(took, base, strict=True))
        times = f"{statistics.median(took):10.3f}{min(took):10.3f}"
        lines.append(f"{name:26}{times}{ratio:8.2f}{peaks[name]:10.0f}")
    text = "\n".join(lines)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
