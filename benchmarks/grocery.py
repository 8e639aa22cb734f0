"""Small models trained from scratch with one loss after another on photographs of groceries.

    .venv/bin/python benchmarks/grocery.py --data ../shared/data/grocery [--epochs 8] [--only ...] [--write]

The table of the data set is an open-set split: no label of validation is trained on. Every row is the same
model (timm's test_resnet, 0.4 million weights drawn from one seed), the same images, augmentation, optimizer
and epochs; only loss, miner and, for losses that compare images, the form of a batch differ. Images are first
copied with 128 pixels on the short side, which spares every epoch the decoding. The last epoch is judged, so
that nothing is chosen on the images it is judged on. The first rows are what no training gives: the raw
pixels of thumbnails, and the model as it starts. Intervals are bootstrapped over labels. --write saves
results/grocery.txt and .png.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import metricli
from metricli.data.table import read_table
from metricli.reports import OVERALL, ValidateReport

HERE = Path(__file__).parent
SIZE = 64
COPIED = 128  # pixels on the short side
THUMBNAIL = 8
SHOWN = ("cmc@1", "map@r")
BALANCED = {"name": "balanced", "n_labels": 10, "n_instances": 6, "batches": 42}
PLAIN = {"sampler": None, "training": {"batch_size": 60}}
MINED: dict[str, Any] = {"sampler": BALANCED}
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "triplet, all": (
        {"name": "triplet", "margin": 0.2, "miner": "all_triplets", "reduction": "mean_active"},
        MINED,
    ),
    "triplet, semi-hard": ({"name": "triplet", "margin": 0.2, "miner": "semi_hard"}, MINED),
    "multi_similarity": ({"name": "multi_similarity"}, MINED),
    "supcon": ({"name": "supcon"}, MINED),
    "smooth_ap": ({"name": "smooth_ap"}, MINED),
    "arcface": ({"name": "arcface", "scale": 24.0, "margin": 0.3}, PLAIN),
    "proxy_anchor": ({"name": "proxy_anchor"}, PLAIN),
}


def spec_of(data: Path, loss: dict[str, Any], batches: dict[str, Any], epochs: int) -> dict[str, Any]:
    """The spec of one row, but for its run directory."""
    return {
        "name": "grocery",
        "seed": 0,
        "data": {"table": str(data / "df.csv")},
        "extractor": {
            "name": "timm",
            "model": "test_resnet",
            "model_args": {"output_stride": 16},
            "dim": 128,
        },
        "transforms": {
            "train": {"name": "augment", "size": SIZE, "scale": [0.3, 1.0]},
            "eval": {"name": "resize_normalize", "size": SIZE},
        },
        "loss": loss,
        "optimizer": {"name": "adamw", "lr": 1e-3, "head_lr": 3e-3, "weight_decay": 0.05},
        "scheduler": {"name": "cosine", "warmup_epochs": 1},
        "sampler": batches["sampler"],
        "training": {"epochs": epochs, "num_workers": 0, **batches.get("training", {})},
        "validation": {"every_n_epochs": epochs, "metrics": {"cmc": [1], "map_r": True}, "monitor": "map@r"},
    }


def shrunk(data: Path, target: Path) -> Path:
    """The data set with small images, in `target`."""
    shutil.copy(data / "df.csv", target / "df.csv")
    for path in read_table(data / "df.csv", root=data).strings("path"):
        with Image.open(data / path) as image:
            image.thumbnail((COPIED * max(image.size) // min(image.size),) * 2, Image.Resampling.LANCZOS)
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGB").save(target / path, quality=95)
    return target


def pixels(data: Path) -> ValidateReport:
    """The thumbnails themselves as embeddings."""
    rows = read_table(data / "df.csv", root=data).split("validation")
    found = []
    for path in rows.paths:
        with Image.open(data / str(path)) as image:
            small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        found.append(np.asarray(small, dtype=np.float32).ravel())
    validation = metricli.ValidationSpec.model_validate({"metrics": {"cmc": [1], "map_r": True}})
    return metricli.evaluate(np.stack(found), data / "df.csv", root=data, validation=validation)


def row(name: str, metrics: Any, intervals: Any, minutes: float | None) -> str:
    """A line of the table."""
    cells = []
    for metric in SHOWN:
        low, high = intervals[OVERALL][metric]
        cells.append(f"{metrics[OVERALL][metric]:.3f} [{low:.3f}, {high:.3f}]")
    return f"{name:22}" + "".join(f"{cell:>24}" for cell in cells) + (f"{minutes:>10.1f}" if minutes else "")


def untrained(spec: dict[str, Any]) -> ValidateReport:
    """The model as it starts, judged as the trained ones are."""
    kept = {key: spec[key] for key in ("seed", "data", "extractor", "transforms", "validation")}
    return metricli.validate(kept)


def trained(data: Path, name: str, epochs: int) -> tuple[Any, float]:
    """The report of a run on one thread, and its minutes."""
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = metricli.train(spec_of(data, *LOSSES[name], epochs), run_dir=Path(folder) / "run")
    return report, (time.monotonic() - start) / 60


def draw(rows: list[tuple[str, Any, Any]], target: Path) -> None:
    """Both metrics of every row as bars with their intervals."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panes = plt.subplots(1, 2, figsize=(10, 0.42 * len(rows) + 1.2), sharey=True)
    for pane, metric in zip(panes, SHOWN, strict=True):
        values = np.array([metrics[OVERALL][metric] for _, metrics, _ in rows])
        ends = np.array([intervals[OVERALL][metric] for _, _, intervals in rows])
        colours = ["#9a9a9a"] * 2 + ["#2f6f9f"] * (len(rows) - 2)
        errors = np.abs(ends.T - values)
        pane.barh(range(len(rows)), values, xerr=errors, color=colours, ecolor="#333333", capsize=3)
        pane.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        pane.set_xlabel(f"{metric}, with 95 % intervals by labels")
        pane.spines[["top", "right"]].set_visible(False)
    panes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(target, dpi=120)


def machine() -> str:
    """One line about where the figures come from."""
    place = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    versions = f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    return f"{place}, {versions}, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    """Train, judge, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="the folder with df.csv")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=list(LOSSES))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(shrunk(options.data.resolve(), Path(folder)), options)


def compare(data: Path, options: argparse.Namespace) -> None:
    """Every row, printed as it is found, and saved if asked to."""
    first = spec_of(data, *LOSSES["triplet, all"], options.epochs)
    rows: list[tuple[str, Any, Any]] = []
    lines = [
        machine(),
        f"python benchmarks/grocery.py --epochs {options.epochs} --jobs {options.jobs}; a run has one thread",
        f"test_resnet (0.4 M weights) from scratch, {SIZE} pixels, dim 128, batches of 60, adamw; "
        "2535 training images of 40 labels, 2886 of 41 others to judge",
        "",
        f"{'':22}" + "".join(f"{metric:>24}" for metric in SHOWN) + f"{'minutes':>10}",
    ]

    def add(name: str, report: Any, minutes: float | None = None) -> None:
        rows.append((name, report.metrics, report.intervals))
        lines.append(row(name, report.metrics, report.intervals, minutes))
        print(lines[-1], flush=True)

    print("\n".join(lines))
    add(f"pixels, {THUMBNAIL} x {THUMBNAIL}", pixels(data))
    add("untrained", untrained(first))
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        asked = [pool.submit(trained, data, name, options.epochs) for name in options.only]
        for name, job in zip(options.only, asked, strict=True):
            add(name, *job.result())
    if options.write:
        (HERE / "results" / "grocery.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        draw(rows, HERE / "results" / "grocery.png")


if __name__ == "__main__":
    main()
