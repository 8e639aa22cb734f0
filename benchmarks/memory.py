"""Whether the memory of a run grows with its steps: the slope of the resident memory, in KB a step.

    .venv/bin/python benchmarks/memory.py [--steps 2000] [--cases plain,bank] [--limit 2] [--out FILE]

Each case trains a small model on the drawn figures in a process of its own, and looks at its resident memory
(and at that of the processes below it, which decode images) every 20 steps. The first part of the run is
left out, in which caches fill. A line through the rest gives the slope; its interval comes from a bootstrap
over blocks of neighbouring looks, for they are not independent. The exit code is 1 where even the low end of
the interval would, over a million steps, take more than --limit GB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "data" / "figures_mini" / "df.csv"
EVERY, WARM, BLOCK, DRAWS = 20, 0.3, 10, 1000

SPEC = {
    "name": "memory",
    "extractor": {"name": "timm", "model": "test_resnet", "dim": 16},
    "transforms": {
        "train": {"name": "augment", "size": 32},
        "eval": {"name": "resize_normalize", "size": 32},
    },
    "sampler": {"name": "balanced", "n_labels": 3, "n_instances": 2},
    "loss": {"name": "triplet", "margin": 0.2, "miner": "all_triplets"},
    "training": {"log_every_steps": 5, "num_workers": 0, "save_every_steps": 50},
    "validation": {"num_workers": 0, "bootstrap": {"samples": 0}},
}
CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "plain": (4, ()),
    "validation often": (40, ()),
    "bank": (4, ("loss={name: contrastive, memory: {size: 512}}",)),
    "ema": (4, ("training.ema={decay: 0.99}",)),
    "bad images": (4, ("data.on_bad_image=skip",)),
    "kept saves": (4, ("training.keep=3",)),
    "2 workers": (4, ("training.num_workers=2",)),
}
"""Epochs in which the steps are taken, and what differs from the spec above."""


def resident(pid: int | str) -> int:
    """Resident memory of a process in KB, without the pages of files, which the system drops as it likes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def below(pid: int) -> list[int]:
    """All processes that a process has started, and those that they have."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *below(int(child))]
    return found


def child(case: str, steps: int, folder: Path) -> None:
    """Train one case and print its looks as JSON: step, own KB, KB of the processes below."""
    from metricli import train
    from metricli.reporter import SilentReporter

    looks: list[tuple[int, int, int]] = []

    class Looking(SilentReporter):
        taken = 0

        def advance(self, _amount: int, values: Mapping[str, float] | None = None) -> None:
            if values is None:
                return
            self.taken += 1
            if self.taken % EVERY == 0:
                looks.append((self.taken, resident("self"), sum(map(resident, below(os.getpid())))))

    epochs, overrides = CASES[case]
    spec = SPEC | {"data": {"table": str(table_of(case, folder)), "root": str(folder)}}
    lengths = (f"training.epochs={epochs}", f"sampler.batches={steps // epochs}")
    train(spec, [*lengths, *overrides], run_dir=folder / "run", device="cpu", reporter=Looking())
    print(json.dumps(looks))


def table_of(case: str, folder: Path) -> Path:
    """The drawn table, with three images that cannot be read where the case is about them."""
    shutil.copytree(FIGURES.parent / "images", folder / "images")
    lines = FIGURES.read_text().splitlines()
    if case == "bad images":
        (folder / "torn.png").write_bytes(b"torn")
        trained = [at for at, line in enumerate(lines) if ",train," in line][:3]
        for at in trained:
            label, _, rest = lines[at].split(",", 2)
            lines[at] = f"{label},torn.png,{rest}"
    (folder / "df.csv").write_text("\n".join(lines) + "\n")
    return folder / "df.csv"


def slope_of(steps: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[float, float, float]:
    """KB a step by least squares, and the ends of its 95 % interval."""
    line = np.polynomial.Polynomial.fit(steps, sizes, 1).convert()
    found = float(line.coef[1]) if len(line.coef) > 1 else 0.0
    left = sizes - line(steps)
    count, draw = len(steps), np.random.default_rng(0)
    centred, drawn = steps - steps.mean(), []
    for _ in range(DRAWS):
        starts = draw.integers(0, count - BLOCK + 1, -(-count // BLOCK))
        noise = np.concatenate([left[start : start + BLOCK] for start in starts])[:count]
        drawn.append(found + float(centred @ (noise - noise.mean()) / (centred @ centred)))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return found, float(low), float(high)


def measure(case: str, steps: int) -> NDArray[np.float64]:
    """The looks (N, 3) of one case, made in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="metricli-memory-") as folder:
        words = [sys.executable, __file__, "--child", case, "--steps", str(steps), "--folder", folder]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case}: exit code {done.returncode}\n{done.stderr}")
    return np.array(json.loads(done.stdout.splitlines()[-1]), dtype=np.float64)


def main() -> int:
    """Measure, print and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--limit", type=float, default=2.0, help="GB that a million steps may take")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.steps, asked.folder)
        return 0
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {total:.0f} GB, "
        f"Python {platform.python_version()}, torch {_torch()}",
        f"{asked.steps} steps of 6 images of 32 px, a look every {EVERY} steps, "
        f"the first {WARM:.0%} of the steps left out",
        "",
        f"{'':17}{'':15}{'MB at first':>12}{'at the end':>12}{'KB a step':>11}{'95 %':>18}",
    ]
    print("\n".join(lines), flush=True)
    grown = []
    for case in asked.cases.split(","):
        looks = measure(case, asked.steps)
        looks = looks[looks[:, 0] > WARM * asked.steps]
        for column, who in ((1, "the run"), (2, "its processes")):
            sizes = looks[:, column]
            if not sizes.any():
                continue
            slope, low, high = slope_of(looks[:, 0], sizes)
            row = f"{case:17}{who:15}{sizes[0] / 1024:12.1f}{sizes[-1] / 1024:12.1f}{slope:11.3f}"
            lines.append(row + f"{f'{low:.3f} .. {high:.3f}':>18}")
            print(lines[-1], flush=True)
            if low * 1e6 > asked.limit * 2**20:
                grown.append(f"{case}, {who}")
    verdict = f"too much: {'; '.join(grown)}" if grown else "none of them"
    lines += ["", f"more than {asked.limit:g} GB over a million steps, at the low end: {verdict}"]
    print("\n".join(lines[-2:]))
    if asked.out:
        asked.out.write_text("\n".join(lines) + "\n")
    return 1 if grown else 0


def _torch() -> str:
    from importlib.metadata import version

    return version("torch")


if __name__ == "__main__":
    sys.exit(main())
