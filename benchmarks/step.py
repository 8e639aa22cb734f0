"""A training step of metricli as a ratio to the same step in a hand-written loop.

    .venv/bin/python benchmarks/step.py [--turns 20] [--models test_resnet] [--out FILE]

Both have the same model, triplet loss, AdamW and a cosine schedule, and the batches are prepared before: what
is measured is what `Learner.step` adds, its seeding, the gradient's norm, the checks that loss and gradient
are finite, and the values for the log. The hand-written loop does none of that, but it reads its loss, as
every loop does to log it. Both take turns in one process; a ratio is the median of the ratios within each
turn. The goal (docs/design.md, section 10) is 1.05 or less.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from metricli.components.dataset import Batch
from metricli.components.extractors import timm_extractor
from metricli.components.losses import TripletLoss
from metricli.components.miners import HardTriplets
from metricli.reporter import SilentReporter
from metricli.runs.building import build_learner
from metricli.runs.context import open_context
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec

GOAL = 1.05
BATCH, SIDE, PREPARED, WARM = 32, 64, 4, 2
SPEC = {
    "data": {"table": "none.csv"},
    "sampler": {"name": "balanced", "n_labels": 8, "n_instances": 4},
    "loss": {"name": "triplet", "margin": 0.2, "miner": "hard_triplets"},
    "optimizer": {"name": "adamw", "lr": 1e-4},
}
Step = Callable[[int], float]


def batches() -> list[Batch]:
    """Random images of eight labels, four of each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat_interleave(4)
    return [
        Batch(torch.rand(BATCH, 3, SIDE, SIDE, generator=generator), labels, torch.arange(BATCH))
        for _ in range(PREPARED)
    ]


def ours(model: str, prepared: list[Batch], *overrides: str) -> Step:
    """A step of the learner."""
    spec = load_spec(SPEC | {"extractor": {"name": "timm", "model": model}}, TrainSpec, overrides).spec
    context = open_context(spec.compute, SilentReporter())
    learner = build_learner(spec, context, num_labels=8, label_to_category=None, steps_per_epoch=1000)
    learner.start_epoch(0)
    return lambda i: learner.step(prepared[i % PREPARED], i)["loss"]


def by_hand(model: str, prepared: list[Batch]) -> Step:
    """The same in plain torch."""
    torch.manual_seed(0)
    extractor = timm_extractor(model).train()
    loss = TripletLoss(margin=0.2, miner=HardTriplets())
    optimizer = torch.optim.AdamW(extractor.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20_000)

    def step(i: int) -> float:
        batch = prepared[i % PREPARED]
        optimizer.zero_grad()
        found = loss(extractor(batch.images), batch.labels)
        found.backward()
        optimizer.step()
        schedule.step()
        return float(found.detach())

    return step


def measure(model: str, turns: int) -> list[str]:
    """Rows of the table."""
    prepared = batches()
    steps = {
        "by hand": by_hand(model, prepared),
        "metricli": ours(model, prepared),
        "with ema": ours(model, prepared, "training.ema={decay: 0.999}"),
        "in micro-batches of 8": ours(model, prepared, "training.micro_batch=8"),
    }
    took: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + WARM):
        order = list(steps) if turn % 2 else list(steps)[::-1]
        for name in order:
            start = time.perf_counter()
            steps[name](turn)
            if turn >= WARM:
                took[name].append(time.perf_counter() - start)
    base = took["by hand"]
    rows = []
    for name, found in took.items():
        ratio = statistics.median(one / other for one, other in zip(found, base, strict=True))
        milliseconds = [1e3 * statistics.median(found), 1e3 * min(found)]
        rows.append(f"{model:14}{name:24}{milliseconds[0]:10.1f}{milliseconds[1]:10.1f}{ratio:8.2f}")
    return rows


def machine() -> str:
    """One line about where the figures come from."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    place = f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"
    return ", ".join([place, f"torch {torch.__version__}, {torch.get_num_threads()} threads", load])


def main() -> None:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--models", nargs="+", default=["test_resnet", "resnet18"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["METRICLI_DEVICE"] = "cpu"
    lines = [
        machine(),
        f"{options.turns} turns, {BATCH} images of {SIDE} px, triplet loss, hard triplets, AdamW, fp32, CPU",
        "",
        f"{'':38}{'median ms':>10}{'best ms':>10}{'ratio':>8}",
    ]
    for model in options.models:
        lines += measure(model, options.turns)
    lines += ["", f"goal: metricli at {GOAL} or less of by hand"]
    text = "\n".join(lines)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
