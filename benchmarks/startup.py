"""`metricli --help` as a ratio to `--help` of a Typer program of two commands that say hello.

    .venv/bin/python benchmarks/startup.py [--repeats 25] [--out benchmarks/results/startup.txt]

Both are fresh processes of the same interpreter that take turns in one run; a ratio is the median of the
ratios within each turn. The goal of `--help` (docs/design.md, section 10) is 1.5 or less. Typer's own help
pulls rich in and ours does not, so the hello without it stands beside; `--version` and `plugins` are there
to see what they cost.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL = 1.5
HELLO = '''\
import typer

app = typer.Typer({options})


@app.command()
def hello(name: str) -> None:
    """Say hello."""
    typer.echo(f"hello {name}")


@app.command()
def goodbye(name: str) -> None:
    """Say goodbye."""
    typer.echo(f"goodbye {name}")


if __name__ == "__main__":
    app()
'''


def seconds(command: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def machine() -> str:
    """One line about where the figures come from."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    place = f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"
    return ", ".join([place, f"typer {importlib.metadata.version('typer')}", load])


def main() -> None:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hello = Path(folder) / "hello.py"
        hello.write_text(HELLO.replace("{options}", ""), encoding="utf-8")
        bare = Path(folder) / "bare.py"
        bare.write_text(HELLO.replace("{options}", "rich_markup_mode=None"), encoding="utf-8")
        metricli = [sys.executable, "-m", "metricli"]
        commands = {
            "typer hello --help": [sys.executable, str(hello), "--help"],
            "the same without rich": [sys.executable, str(bare), "--help"],
            "metricli --help": [*metricli, "--help"],
            "metricli --version": [*metricli, "--version"],
            "metricli plugins": [*metricli, "plugins"],
        }
        took: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(options.repeats + 1):
            for name, command in commands.items():
                one = seconds(command)
                if turn:  # the first turn writes the .pyc files and warms the file cache
                    took[name].append(one)
    base = next(iter(took.values()))
    lines = [
        machine(),
        f"{options.repeats} turns",
        "",
        f"{'':24}{'median ms':>10}{'best ms':>10}{'ratio':>8}",
    ]
    for name, found in took.items():
        ratio = statistics.median(one / other for one, other in zip(found, base, strict=True))
        lines.append(f"{name:24}{1e3 * statistics.median(found):10.0f}{1e3 * min(found):10.0f}{ratio:8.2f}")
    lines += ["", f"goal: metricli --help at {GOAL} or less"]
    text = "\n".join(lines)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
