"""Triplet losses, forward and backward: metricli, open-metric-learning and pytorch-metric-learning.

    .venv/bin/python benchmarks/losses.py [--quick] [--write] [--dim 128]

The yardstick is the bare product of a batch with itself, x @ x.T, and its backward. Contenders take turns in
one process; a ratio is the median over the turns of a contender's time by that of the yardstick. Peak memory
is what a call adds to the resident memory of a process that runs only this contender, the sizes one after
another. "differs by" is the relative difference from metricli's loss. --write saves results/losses.txt and
.png.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from losses_picture import draw

HERE = Path(__file__).parent
THREADS, MARGIN = 2, 0.2
SLOW_SECONDS, TOO_MUCH_GB = 0.5, 4
SIZES = [(128, 4), (128, 32), (256, 4), (256, 32), (1024, 4), (1024, 32)]
QUICK = [(64, 4), (128, 4)]
WITH_MEMORY = [(256, 4), (256, 32), (1024, 4), (1024, 32), (4096, 4)]
BARE, OURS = "x @ x.T", "metricli"

Call = Callable[[], torch.Tensor]
Found = dict[str, dict[str, Any]]


def batch(size: int, instances: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows (size, dim) that ask for a gradient, around centres, and their labels (size,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) // instances
    centres = torch.randn(size // instances, dim, generator=generator)
    rows = centres[labels] + 1.2 * torch.randn(size, dim, generator=generator)
    return torch.nn.functional.normalize(rows).requires_grad_(), labels


def bare(x: torch.Tensor, labels: torch.Tensor) -> Call:
    """The matrix product that every loss over pairs needs."""
    gradient = torch.ones(len(x), len(x))

    def call() -> torch.Tensor:
        products = x @ x.T
        products.backward(gradient)
        return products.detach()[0, 0]

    del labels
    return call


def of_module(loss: Callable[..., torch.Tensor], *given: Any) -> Call:
    """Forward and backward of a loss."""

    def call() -> torch.Tensor:
        value = loss(*given)
        value.backward()
        return value.detach()

    return call


def ours(x: torch.Tensor, labels: torch.Tensor, miner: str, margin: float | None = MARGIN) -> Call:
    """metricli's triplet loss with a miner."""
    from metricli.components import miners
    from metricli.components.losses import TripletLoss

    return of_module(TripletLoss(margin=margin, miner=getattr(miners, miner)()), x, labels)


def oml(x: torch.Tensor, labels: torch.Tensor, miner: str) -> Call:
    """open-metric-learning's triplet loss with a miner, which lists triplets and gathers their rows."""
    from oml.losses import TripletLossWithMiner
    from oml.miners import AllTripletsMiner, HardTripletsMiner

    made = {"AllTriplets": AllTripletsMiner, "HardTriplets": HardTripletsMiner}[miner]()
    return of_module(TripletLossWithMiner(margin=MARGIN, miner=made, reduction="mean"), x, labels)


def pml(x: torch.Tensor, labels: torch.Tensor, miner: str) -> Call:
    """pytorch-metric-learning's triplet loss, over all its triplets or those of BatchHardMiner."""
    from pytorch_metric_learning import losses, miners, reducers

    loss = losses.TripletMarginLoss(margin=MARGIN, reducer=reducers.MeanReducer())
    if miner == "AllTriplets":
        return of_module(loss, x, labels)
    hard = miners.BatchHardMiner()
    return of_module(lambda x, labels: loss(x, labels, hard(x, labels)), x, labels)


ALL: dict[str, Callable[[torch.Tensor, torch.Tensor], Call]] = {
    BARE: bare,
    OURS: lambda x, labels: ours(x, labels, "AllTriplets"),
    "metricli, soft margin": lambda x, labels: ours(x, labels, "AllTriplets", None),
    "OML": lambda x, labels: oml(x, labels, "AllTriplets"),
    "PML": lambda x, labels: pml(x, labels, "AllTriplets"),
}
HARD: dict[str, Callable[[torch.Tensor, torch.Tensor], Call]] = {
    BARE: bare,
    OURS: lambda x, labels: ours(x, labels, "HardTriplets"),
    "OML": lambda x, labels: oml(x, labels, "HardTriplets"),
    "PML": lambda x, labels: pml(x, labels, "HardTriplets"),
}
SECTIONS = {"all triplets": ALL, "hard mining": HARD}
"""Title -> contenders; each section is a table, and the first of its contenders the yardstick."""


def too_large(section: str, name: str, size: int, instances: int, dim: int) -> str:
    """Why a contender that lists all triplets does not run, by what its tensors alone would take."""
    if section != "all triplets" or name not in ("OML", "PML"):
        return ""
    triplets = size * (instances - 1) * (size - instances)
    # OML gathers three rows of each triplet, and their differences; PML holds three indices and some floats
    gigabytes = triplets * (dim * 4 * 6 if name == "OML" else 3 * 8 + 4 * 8) / 2**30
    return f"{gigabytes:.0f} GB" if gigabytes > TOO_MUCH_GB else ""


def timed(call: Call, x: torch.Tensor) -> tuple[float, float]:
    """Seconds of a call, and its loss."""
    x.grad = None
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, float(value)


def compare(section: str, size: int, instances: int, dim: int, turns: int) -> Found:
    """Seconds of every contender, in turns, and what it says the loss is."""
    x, labels = batch(size, instances, dim)
    calls, found = {}, {}
    for name, made in SECTIONS[section].items():
        found[name] = {"seconds": [], "why": too_large(section, name, size, instances, dim)}
        if not found[name]["why"]:
            made(*batch(64, 4, dim))()  # imports and first calls are not timed
            calls[name] = made(x, labels)
            seconds, found[name]["loss"] = timed(calls[name], x)
            found[name]["turns"] = turns if seconds < SLOW_SECONDS or name == BARE else 1
    for turn in range(turns):
        for name, call in calls.items():
            if turn < found[name]["turns"]:
                found[name]["seconds"].append(timed(call, x)[0])
    for name in calls:
        by = [a / b for a, b in zip(found[name]["seconds"], found[BARE]["seconds"], strict=False)]
        found[name]["ratio"] = statistics.median(by)
    return found


def memory_mb(what: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def only(section: str, name: str, sizes: list[tuple[int, int]], dim: int) -> None:
    """What a process of its own does: a small problem, then the memory of a call of each size, printed."""
    made = SECTIONS[section][name]
    made(*batch(64, 4, dim))()
    for size, instances in sizes:
        if too_large(section, name, size, instances, dim):
            continue
        call = made(*batch(size, instances, dim))
        ctypes.CDLL(None).malloc_trim(0)
        before = memory_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
        call()
        print(json.dumps([size, instances, memory_mb("VmHWM") - before]), flush=True)


def peaks(section: str, name: str, sizes: list[tuple[int, int]], dim: int) -> dict[tuple[int, int], float]:
    """Extra MB at the peak for each size, in a fresh process; those it did not end well on are missing."""
    words = [section, name, json.dumps(sizes)]
    threads = {f"{kind}_NUM_THREADS": str(THREADS) for kind in ("OMP", "MKL", "OPENBLAS")}
    done = subprocess.run(
        [sys.executable, __file__, "--dim", str(dim), "--only", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **threads},
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {(size, instances): mb for size, instances, mb in found}


def table(section: str, size: int, instances: int, found: Found) -> list[str]:
    """The lines of one size."""
    title = f"{section}, B = {size}, {instances} instances"
    lines = [f"{title:38}{'turns':>6}{'median ms':>11}{'best ms':>9}{'ratio':>8}{'peak MB':>9}  differs by"]
    for name, one in found.items():
        memory = f"{one['peak']:9.0f}" if one.get("peak") is not None else f"{'':9}"
        if not one["seconds"]:
            lines.append(
                f"{name:38}{'not run: ' + one['why'] if one['why'] else '':>25}{'':9}{memory}".rstrip()
            )
            continue
        middle, best = statistics.median(one["seconds"]) * 1e3, min(one["seconds"]) * 1e3
        wrong = ""
        if name in ("OML", "PML"):
            wrong = f"  {abs(one['loss'] / found[OURS]['loss'] - 1):.0e}"
        times = f"{len(one['seconds']):6}{middle:11.2f}{best:9.2f}{one['ratio']:8.2f}"
        lines.append(f"{name:38}{times}{memory}{wrong}")
    return lines


def about(dim: int) -> list[str]:
    """Where the figures come from."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    packages = ("metricli", "torch", "open-metric-learning", "pytorch-metric-learning")
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    place = f"{platform.system()} {platform.machine()}, {models[0] if models else platform.processor()}"
    return [
        f"{place}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}, {day}",
        ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        " ".join(["python benchmarks/losses.py", *sys.argv[1:]]),
        f"{THREADS} threads, float32 unit vectors, D = {dim}, euclidean, margin {MARGIN}, mean",
        "forward and backward to the embeddings; ratio: to x @ x.T and its backward",
    ]


def main() -> None:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--write", action="store_true", help="save benchmarks/results/losses.txt and .png")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.only:
        section, name, sizes = options.only
        return only(section, name, json.loads(sizes), options.dim)
    lines, drawn = about(options.dim), {}
    sizes, with_memory = (QUICK, QUICK[:1]) if options.quick else (SIZES, WITH_MEMORY)
    for section, contenders in SECTIONS.items():
        measured = with_memory if section == "all triplets" else with_memory[:1]
        times = {}
        for key in sizes:
            print(section, *key, file=sys.stderr, flush=True)
            times[key] = compare(section, *key, options.dim, 3 if options.quick else 15)
            print("\n".join(table(section, *key, times[key])), file=sys.stderr, flush=True)
        print(section, "memory", file=sys.stderr, flush=True)
        memory = {name: peaks(section, name, measured, options.dim) for name in contenders}
        for key in dict.fromkeys([*sizes, *measured]):
            found = times.get(key) or {
                name: {"seconds": [], "why": too_large(section, name, *key, options.dim)}
                for name in contenders
            }
            for name, one in found.items():
                one["peak"] = memory[name].get(key)
            lines += ["", *table(section, *key, found)]
            drawn[section, *key] = found
    text = "\n".join(lines)
    print(text)
    if options.write:
        (HERE / "results").mkdir(parents=True, exist_ok=True)
        (HERE / "results" / "losses.txt").write_text(text + "\n", encoding="utf-8")
        draw(drawn, HERE / "results" / "losses.png")


if __name__ == "__main__":
    main()
