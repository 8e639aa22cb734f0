"""Prediction as a ratio to a hand-written loop, and its memory from a thousand to a hundred thousand rows.

    .venv/bin/python benchmarks/predict.py [--turns 5] [--rows 300] [--quick] [--write]

Speed: `metricli.predict` and a loop over a torch DataLoader with the same model, weights, decoder (Pillow),
transform, batch size and workers, which ends in `np.save`; the third is that loop with OML's way of saving, a
JSON file of lists. They take turns in one process over the same files and their files are compared. What is
timed is from the first image asked for, the start of the workers included, to the last byte written, in
metricli's case with its index, manifest and fsync: imports, the model and the table's checks are not. A ratio
is the median of the ratios within each turn.

Memory: the peak of a fresh process that predicts so many rows, which repeat a few tiny images, without
workers; what counts is how much more the larger number takes. The goals (docs/design.md, section 10): 0.95 of
the loop's images a second or more, and 50 MB or less.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

import metricli
from metricli.reporter import SilentReporter
from metricli.runs.checkpoints import read_best
from metricli.runs.context import open_context
from metricli.runs.parts import inference_extractor, load_inference
from metricli.specs.predict import PredictSpec

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "predict.txt"
SPEED_GOAL, MEMORY_GOAL = 0.95, 50.0
BATCH, WARM = 64, 1
SETTINGS = [("test_resnet", 64, 0), ("test_resnet", 64, 2), ("resnet18", 128, 0)]
"""Model, pixels, workers."""
FEW, MANY = 1_000, 100_000
CONTENDERS = ("metricli", "by hand", "OML saving")


class Clock(SilentReporter):
    """Knows when the first image was asked for."""

    started = 0.0

    def begin(self, name: str, total: int | None, unit: str) -> None:  # noqa: ARG002
        """Start the clock."""
        self.started = time.perf_counter()


class Files(Dataset[Any]):
    """What a hand-written loop reads."""

    def __init__(self, paths: list[Path], transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self.paths[row]) as image:
            return self.transform(pil_to_tensor(image.convert("RGB")))


def source() -> Path:
    """The folder of the photographs where they are at hand, else of the repository's drawings."""
    photographs = ROOT.parent / "shared" / "data" / "grocery_mini"
    return photographs if (photographs / "df.csv").is_file() else ROOT / "data" / "figures_mini"


def images() -> list[Path]:
    """Its images."""
    with (source() / "df.csv").open(newline="", encoding="utf-8") as file:
        return [source() / row["path"] for row in csv.DictReader(file)]


def write_table(file: Path, paths: list[Path], rows: int) -> Path:
    """A table of so many rows that repeat the images."""
    with file.open("w", encoding="utf-8") as out:
        out.write("path\n")
        out.writelines(f"{paths[row % len(paths)]}\n" for row in range(rows))
    return file


def checkpoint(folder: Path, model: str, side: int) -> Path:
    """A checkpoint of one training step."""
    places = [ROOT / "data" / "figures_mini" / "images" / f"arc_plain_{i}.png" for i in range(4)]
    table = folder / "train.csv"
    lines = [f"{i // 2},{place},train,," for i, place in enumerate(places)]
    table.write_text("\n".join(["label,path,split,is_query,is_gallery", *lines]) + "\n", encoding="utf-8")
    resize = {"name": "resize_normalize", "size": side}
    more = {"model_args": {"img_size": side}} if "vit" in model else {}
    spec = {
        "data": {"table": str(table), "allow_outside_root": True},
        "extractor": {"name": "timm", "model": model} | more,
        "transforms": {"train": resize, "eval": resize},
        "sampler": {"name": "balanced", "n_labels": 2, "n_instances": 2, "batches": 1},
        "loss": {"name": "triplet", "margin": 0.2, "miner": "hard_triplets"},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "training": {"epochs": 1, "num_workers": 0},
    }
    return metricli.train(spec, run_dir=folder / f"{model}-{side}").best_ckpt


def ours(ckpt: Path, table: Path, out: Path, workers: int) -> float:
    """Seconds of `metricli.predict` from the first image on."""
    clock = Clock()
    told = [f"prediction.batch_size={BATCH}", f"prediction.num_workers={workers}"]
    outside = "data.allow_outside_root=true"
    metricli.predict(overrides=[*told, outside], ckpt=ckpt, data=table, out=out, reporter=clock)
    return time.perf_counter() - clock.started


def by_hand(ckpt: Path, table: Path, out: Path, workers: int) -> float:
    """Seconds of the loop; the file is .npy, or JSON as OML's pipeline of prediction writes it."""
    best = read_best(ckpt)
    spec = load_inference(None, best, PredictSpec, {}, ()).spec
    extractor, _ = inference_extractor(spec, best, open_context(spec.compute, SilentReporter()))
    paths = [Path(line) for line in table.read_text(encoding="utf-8").splitlines()[1:]]
    loader = DataLoader(Files(paths, spec.transforms.eval.build()), batch_size=BATCH, num_workers=workers)
    start = time.perf_counter()
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        for batch in loader:
            found.append(extractor(batch))
    if out.suffix == ".json":
        # oml/lightning/pipelines/predict.py, whose Trainer also keeps the predictions until the end
        embeddings: list[list[float]] = []
        for part in found:
            embeddings.extend(part.tolist())
        with out.open("w") as file:
            json.dump(dict(zip(map(str, paths), embeddings, strict=True)), file)
    else:
        np.save(out, torch.cat(found).numpy())
    return time.perf_counter() - start


def run(name: str, ckpt: Path, table: Path, workers: int) -> float:
    """Seconds of a contender, its file in the table's folder."""
    out = table.parent / {"by hand": "hand.npy", "metricli": "ours.npy", "OML saving": "oml.json"}[name]
    with suppress(FileNotFoundError):
        out.unlink()
    return (ours if name == "metricli" else by_hand)(ckpt, table, out, workers)


def speed(folder: Path, model: str, side: int, workers: int, rows: int, turns: int) -> list[str]:
    """Rows of the table of speed."""
    ckpt = checkpoint(folder / f"w{workers}", model, side)
    table = write_table(folder / f"w{workers}" / "table.csv", images(), rows)
    took: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(turns + WARM):
        for name in CONTENDERS if turn % 2 else CONTENDERS[::-1]:
            seconds = run(name, ckpt, table, workers)
            if turn >= WARM:
                took[name].append(seconds)
    np.testing.assert_allclose(
        np.load(table.parent / "ours.npy"), np.load(table.parent / "hand.npy"), rtol=1e-4, atol=1e-5
    )
    lines = []
    for name, found in took.items():
        ratio = statistics.median(base / one for one, base in zip(found, took["by hand"], strict=True))
        shown = f"{model} {side} px, {workers} workers"
        lines.append(f"{shown:32}{name:14}{rows / statistics.median(found):12.1f}{ratio:8.2f}")
    return lines


def peak_mb() -> float:
    """Peak memory of this process; `ru_maxrss` would start from that of its parent."""
    status = Path("/proc/self/status").read_text()
    return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def memory(folder: Path, few: int, many: int) -> Iterator[str]:
    """Rows of the table of memory."""
    small = []
    for i in range(16):
        small.append(folder / f"{i}.png")
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(small[-1])
    ckpt = checkpoint(folder, "test_vit", 16)
    for name in CONTENDERS:
        peaks = []
        for rows in (few, many):
            table = write_table(folder / f"{rows}.csv", small, rows)
            words = [sys.executable, __file__, "--only", name, str(ckpt), str(table)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            peaks.append(float(done.stdout.splitlines()[-1]))
        more = peaks[1] - peaks[0]
        yield f"{name:14}{peaks[0]:14.0f}{peaks[1]:14.0f}{more:10.0f}"


def machine() -> str:
    """One line about where the figures come from."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    place = f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"
    return ", ".join([place, f"torch {torch.__version__}, {torch.get_num_threads()} threads", load])


def main() -> None:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="a few rows and one turn: whether it runs")
    parser.add_argument("--write", action="store_true", help=f"into {RESULT.relative_to(ROOT)}")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["METRICLI_DEVICE"] = "cpu"
    if options.only:
        name, ckpt, table = options.only
        run(name, Path(ckpt), Path(table), 0)
        return print(peak_mb())
    turns, rows, few, many = options.turns, options.rows, FEW, MANY
    if options.quick:
        turns, rows, few, many = 1, 70, 70, 300
    lines: list[str] = []

    def tell(*new: str) -> None:
        lines.extend(new)
        print(*new, sep="\n", flush=True)

    tell(
        machine(),
        f"{rows} images of {source().name}, {turns} turns, batches of {BATCH}, fp32, CPU",
        "",
        f"{'':46}{'images/s':>12}{'ratio':>8}",
    )
    with tempfile.TemporaryDirectory() as folder:
        for number, (model, side, workers) in enumerate(SETTINGS[: 1 if options.quick else None]):
            place = Path(folder) / str(number)
            (place / f"w{workers}").mkdir(parents=True)
            tell(*speed(place, model, side, workers, rows, turns))
        tell("", f"{'peak MB':14}{f'{few} rows':>14}{f'{many} rows':>14}{'more':>10}")
        for line in memory(Path(folder), few, many):
            tell(line)
    tell("", f"goals: metricli at {SPEED_GOAL} or more of by hand, and {MEMORY_GOAL:.0f} MB more or less")
    if options.write:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
