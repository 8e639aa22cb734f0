"""What the processes of a training step tell each other: bytes, time, and the speed of 1 and 2 of them.

    .venv/bin/python benchmarks/processes.py [--turns 9] [--quick] [--out FILE]

Each part is timed in a world of two processes on this host (gloo, one thread each): the word about labels and
signals, the gather of embeddings with its gradient, the sum of gradients, and batch norm. A slope is the time
that another MB takes, by least squares over the sizes. Steps of a ResNet-18 are taken by one process with two
threads and by two with one thread each, on the same batches of 64 images.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from metricli.components.batch_norm import synchronise_batch_norm
from metricli.components.dataset import Batch
from metricli.core.gather import gather_rows, sum_gradients
from metricli.reporter import SilentReporter
from metricli.runs.building import build_learner
from metricli.runs.context import open_context
from metricli.runs.processes import World, joined
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec

DIM, IMAGES, SIDE = 384, 64, 64
BATCHES = (64, 256, 1024, 4096, 16384)
WEIGHTS = (2**18, 2**20, 2**22, 22_000_000)
SPEC = {
    "data": {"table": "none.csv"},
    "extractor": {"name": "timm", "model": "resnet18", "dim": 128},
    "sampler": {"name": "balanced", "n_labels": 16, "n_instances": 4},
    "loss": {"name": "triplet", "margin": 0.2, "miner": "hard_triplets"},
    "optimizer": {"name": "adamw", "lr": 1e-4},
}


def timed(world: World, turns: int, act: Callable[[], Any]) -> float:
    """Median seconds of a call that all processes begin together; of the slowest of them."""
    took = []
    for _ in range(turns + 1):
        world.wait()
        started = time.perf_counter()
        act()
        took.append(max(world.gather(time.perf_counter() - started)))
    return statistics.median(took[1:])


def parts(world: World, turns: int, quick: bool) -> dict[str, Any]:
    """Seconds of each part by its size in MB."""
    found: dict[str, Any] = {"word": timed(world, turns, lambda: world.gather((0, [])))}
    gathered, summed = [], []
    for batch in BATCHES[:2] if quick else BATCHES:
        rows = torch.randn(batch // world.size, DIM, requires_grad=True)
        sizes = [batch // world.size] * world.size
        took = timed(world, turns, lambda: gather_rows(rows, sizes).sum().backward())  # noqa: B023
        gathered.append((batch, batch * DIM * 4 / 1e6, took))
    for count in WEIGHTS[:2] if quick else WEIGHTS:
        weight = nn.Parameter(torch.zeros(count))
        weight.grad = torch.zeros(count)
        summed.append((count, count * 4 / 1e6, timed(world, turns, lambda: sum_gradients([weight]))))  # noqa: B023
    found |= {"gather": gathered, "sum": summed}
    images = torch.randn(IMAGES // world.size, 64, 16, 16)
    own, shared = nn.BatchNorm2d(64), nn.BatchNorm2d(64)
    synchronise_batch_norm(shared)
    found["norm"] = [timed(world, turns, lambda: norm(images).sum().backward()) for norm in (own, shared)]  # noqa: B023
    return found


def steps(world: World, turns: int, *overrides: str) -> float:
    """Seconds of a training step on this process's slice."""
    spec = load_spec(SPEC, TrainSpec, overrides).spec
    context = open_context(spec.compute, SilentReporter(), world=world)
    learner = build_learner(spec, context, num_labels=16, label_to_category=None, steps_per_epoch=1000)
    learner.start_epoch(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, 3, SIDE, SIDE, generator=generator)
    labels = torch.arange(16).repeat_interleave(4)
    own = slice(IMAGES * world.rank // world.size, IMAGES * (world.rank + 1) // world.size)
    batch = Batch(images[own], labels[own], torch.arange(IMAGES)[own])
    return timed(world, turns, lambda: learner.step(batch, 0))


def work(out: str, turns: int, quick: bool) -> None:
    """One process of the world that torchrun has started."""
    with joined("cpu") as world:
        found: dict[str, Any] = {} if world.size == 1 else {"parts": parts(world, turns, quick)}
        found["step"] = steps(world, turns)
        found["step, own norm"] = steps(world, turns, "training.sync_batchnorm=false")
        if world.is_main:
            Path(out).write_text(json.dumps(found))


def run(processes: int, turns: int, quick: bool) -> dict[str, Any]:
    """What `work` found in so many processes that share two threads."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/found.json"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        words = [f"--nproc-per-node={processes}", __file__, "--worker", out, "--turns", str(turns)]
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, 2 // processes)), "METRICLI_DEVICE": "cpu"}
        subprocess.run([*torchrun, *words, *(["--quick"] if quick else [])], check=True, env=environment)
        found: dict[str, Any] = json.loads(Path(out).read_text())
        return found


def slope(points: list[tuple[int, float, float]]) -> tuple[float, float]:
    """Seconds at no size at all, and of each MB more."""
    _, sizes, seconds = zip(*points, strict=True)
    per_mb, start = np.polyfit(sizes, seconds, 1)
    return float(start), float(per_mb)


def table(one: dict[str, Any], two: dict[str, Any], turns: int) -> str:
    """What was found, in words."""
    found = two["parts"]
    lines = [
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, "
        f"{time.strftime('%Y-%m-%d')}",
        f"python benchmarks/processes.py --turns {turns}; medians, of the slower of two processes (gloo)",
        "",
        f"word about labels, signals, bad images    {found['word'] * 1e3:8.2f} ms",
    ]
    for name, unit, points in (("gather", "rows of 384", found["gather"]), ("sum", "weights", found["sum"])):
        what = {"gather": "embeddings, there and back", "sum": "sum of gradients"}[name]
        lines += ["", f"{what:<28}{unit:>14}{'MB':>9}{'ms':>9}"]
        lines += [f"{'':<28}{size:>14,}{mb:>9.2f}{took * 1e3:>9.2f}" for size, mb, took in points]
        start, per_mb = slope(points)
        lines.append(f"  {start * 1e3:.2f} ms and {per_mb * 1e3:.2f} ms for each MB")
    own, shared = found["norm"]
    lines += [
        "",
        f"batch norm of 32 x 64 x 16 x 16, there and back: {own * 1e3:.2f} ms alone, "
        f"{shared * 1e3:.2f} ms shared",
        "",
        f"{'step of ResNet-18, 64 x 64 px':<32}{'seconds':>9}{'images/s':>10}{'ratio':>7}",
    ]
    base = one["step"]
    for name, seconds in (
        ("1 process, 2 threads", base),
        ("2 processes, 1 thread each", two["step"]),
        ("  the same, own batch norm", two["step, own norm"]),
    ):
        lines.append(f"{name:<32}{seconds:>9.3f}{IMAGES / seconds:>10.1f}{base / seconds:>7.2f}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run both worlds and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--out", type=Path, help="save the table here too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.worker:
        work(words.worker, words.turns, words.quick)
        return
    turns = 1 if words.quick else words.turns
    text = table(run(1, turns, words.quick), run(2, turns, words.quick), turns)
    print(text, end="")
    if words.out:
        words.out.write_text(text)


if __name__ == "__main__":
    main()
