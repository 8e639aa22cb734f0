"""Exact search and all ranking metrics: metricli, open-metric-learning, pytorch-metric-learning and faiss.

    .venv/bin/python benchmarks/retrieval.py [--quick] [--plan] [--write] [--sizes '10k self']

Every contender gets the same unit vectors, k and two threads, has a process of its own, and takes turns with
the others. A ratio is the median over the turns of its time by that of faiss's IndexFlatIP search, which
computes no metric and leaves each query in its own result. Peak memory is what a call adds to the resident
memory of a process that has loaded the data and solved a small problem; the copy of the gallery in faiss's
index counts. Agreement is the largest difference from metricli's means, over metrics that both define alike.
--plan adds 1M x 1M x 128, worked out from smaller runs. --write saves results/retrieval.txt and .png.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from retrieval_contenders import CONTENDERS, THREADS
from retrieval_picture import draw

HERE = Path(__file__).parent
RESULTS = HERE / "results"
K = 10
TIMEOUT = 900
YARDSTICK, OURS, PAIRS, SLOW = "faiss search", "metricli", "metricli + pairs", ("OML", "PML")
# queries, gallery (0: every row searches all others), turns, turns of the slow ones
SIZES = {
    "10k self": (10_000, 0, 9, 2),
    "12.6k x 14.2k": (12_600, 14_200, 9, 2),
    "60k self": (60_000, 0, 2, 1),
}
QUICK = {"2k self": (2_000, 0, 2, 2), "2k x 2.5k": (2_000, 2_500, 2, 1)}
PLAN_DIM, PLAN_ROWS = 128, 2048

NOTES = f"""\
CPU s: of all threads, also while they wait for each other.
peak MB: what the call adds to a process that holds the data. differs by: largest difference from metricli's
means. The values of both searches are those of a few lines of numpy from the indices found. OML:
precision@k is metricli's precision_capped@k, map@k its map_hits@k; averaged in float32, which alone makes
1e-7. PML: precision_at_1 is cmc@1, its mean_average_precision divides by n as map@{K} does where n is at
most {K}, and its mean_reciprocal_rank counts 0 where no match is among the first k = {K}: compared with the
same of metricli's ranks, "mrr, first {K}"; metricli's mrr knows the rank in the whole gallery. OML and PML
have no recall, ndcg, minp; PML has no other k. OML and faiss rank by float32 products, so near ties may
fall otherwise."""

Found = dict[str, Any]
"""Of one contender: lists of seconds, cpu and peak_mb; values; or failed, with the reason."""


def unit_rows(rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled unit vectors (rows, dim) of labels of 5 and 6 instances; a hundred labels make a cluster.

    Spreads differ from label to label (log-normal); they are such that cmc@1 is about 0.8.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(rows // 5 + 2), np.resize([5, 6], rows // 5 + 2))[:rows]
    labels[-4:] = labels[-5]  # the last label has up to 10: none is cut to a single row
    count = labels.max() + 1
    kinds = rng.standard_normal((count // 100 + 1, dim), dtype=np.float32)
    centres = rng.standard_normal((count, dim), dtype=np.float32) + kinds[rng.integers(0, len(kinds), count)]
    spread = (1.8 * (dim / 384) ** 0.25 * np.exp(0.3 * rng.standard_normal(count))).astype(np.float32)
    found = centres[labels] + spread[labels, None] * rng.standard_normal((rows, dim), dtype=np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    order = rng.permutation(rows)
    return found[order], labels[order].astype(np.int64)


def write_problem(folder: Path, queries: int, gallery: int, dim: int = 384, part: int = 0) -> None:
    """Files for the contenders; with `part` only so many rows search the whole gallery."""
    rows, labels = unit_rows(queries + gallery, dim)
    sides = {"queries": rows, "query_labels": labels}
    if gallery:  # the first row of each label is a query, the second is not: all queries have a match
        order = np.argsort(labels, kind="stable")
        firsts = np.flatnonzero(np.diff(labels[order], prepend=-1))
        free = np.setdiff1d(order, np.concatenate([order[firsts], order[firsts + 1]]))
        chosen = np.concatenate([order[firsts], free[: queries - len(firsts)]])
        others = np.setdiff1d(order, chosen)
        sides = {"queries": rows[chosen], "query_labels": labels[chosen]}
        sides |= {"gallery": rows[others], "gallery_labels": labels[others]}
    if part:
        sides |= {"queries": rows[:part], "query_labels": labels[:part]}
        sides |= {"gallery": rows, "gallery_labels": labels}
    for name, values in sides.items():
        np.save(folder / f"{name}.npy", values)
    (folder / "about.json").write_text(json.dumps({"k": K, "offset": -1 if gallery else 0}))


class Contender:
    """A process that has loaded the problem and waits for its turn."""

    def __init__(self, name: str, folder: Path) -> None:
        threads = {f"{kind}_NUM_THREADS": str(THREADS) for kind in ("OMP", "MKL", "OPENBLAS")}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "retrieval_worker.py"), name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **threads},
        )
        self.found: Found = {"seconds": [], "cpu": [], "peak_mb": [], "values": {}}
        self.answer()

    def answer(self) -> None:
        """Wait for a line, and keep what it says."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], TIMEOUT)[0]:
            return self.fail(f"more than {TIMEOUT // 60} minutes")
        line = self.process.stdout.readline()
        if not line:
            return self.fail(f"the process ended with {self.process.wait()}, for want of memory if -9")
        words = json.loads(line)
        if "failed" in words:
            return self.fail(words["failed"])
        if "seconds" in words:
            for what in ("seconds", "cpu", "peak_mb"):
                self.found[what].append(words[what])
            self.found["values"] = words["values"]

    def fail(self, why: str) -> None:
        """No more turns for this one."""
        self.found["failed"] = why
        self.process.kill()

    def turn(self) -> None:
        """Run once."""
        if "failed" in self.found:
            return
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died meanwhile: the answer says so
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        self.answer()

    def end(self) -> None:
        """Let the process go."""
        self.process.kill()
        self.process.communicate()


def compare(folder: Path, turns: dict[str, int]) -> dict[str, Found]:
    """Contenders by name, with their numbers of turns, on the problem in `folder`."""
    contenders = {name: Contender(name, folder) for name in turns}
    try:
        for turn in range(max(turns.values())):
            for name, contender in contenders.items():
                if turn < turns[name]:
                    contender.turn()
                    took = contender.found.get("failed") or f"{contender.found['seconds'][-1]:.2f} s"
                    print(f"  turn {turn + 1}, {name}: {took}", file=sys.stderr)
    finally:
        for contender in contenders.values():
            contender.end()
    return {name: contender.found for name, contender in contenders.items()}


def difference(found: Found, ours: Found) -> tuple[float, str]:
    """The largest difference of the values, and of which metric."""
    common = [name for name in found["values"] if name in ours["values"]]
    gaps = [(abs(found["values"][name] - ours["values"][name]), name) for name in common]
    return max(gaps, default=(float("nan"), "nothing in common"))


def ratio(one: Found, base: Found, what: str) -> float:
    """The median over the turns of one's seconds by those of the yardstick."""
    ratios = [took / other for took, other in zip(one[what], base[what], strict=False)]
    return statistics.median(ratios or [float("nan")])


def table(title: str, found: dict[str, Found]) -> list[str]:
    """The lines about one size; adds "ratio" to what was found."""
    heads = f"{'turns':>6}{'median s':>10}{'best s':>9}{'ratio':>8}{'CPU s':>9}{'ratio':>8}{'peak MB':>9}"
    lines = [f"{title:18}{heads}  differs by"]
    base, ours = found[YARDSTICK], found[OURS]
    for name, one in found.items():
        if "failed" in one or not one["seconds"]:
            lines.append(f"{name:18}not run: {one.get('failed', 'no turn')}")
            continue
        one["ratio"], cpu = ratio(one, base, "seconds"), ratio(one, base, "cpu")
        one["peak"] = max(one["peak_mb"])
        took, best = statistics.median(one["seconds"]), min(one["seconds"])
        times = f"{len(one['seconds']):6}{took:10.3f}{best:9.3f}{one['ratio']:8.2f}"
        times += f"{statistics.median(one['cpu']):9.3f}{cpu:8.2f}{one['peak']:9.0f}"
        gap, metric = difference(one, ours)
        lines.append(f"{name:18}{times}" + ("" if name == OURS else f"  {gap:.1e} ({metric})"))
    values = {**found.get(PAIRS, ours)["values"], **ours["values"]}
    shown = [f"{name} {value:.4f}" for name, value in values.items()]
    lines += ["  " + ", ".join(shown[start : start + 6]) for start in range(0, len(shown), 6)]
    return lines


def plan(root: Path, quick: bool) -> list[str]:
    """1M x 1M x 128 worked out from whole runs and from one row of blocks of a larger one."""
    small, large, wide = (1_000, 2_000, 8_000) if quick else (20_000, 40_000, 200_000)
    names = (YARDSTICK, OURS)
    lines = [f"{'D = 128, k = 10':34}{'s':>10}{'ns a pair':>11}{'peak MB':>9}"]
    spent: dict[tuple[str, int], tuple[float, float]] = {}
    for rows, part in ((small, 0), (large, 0), (wide, min(PLAN_ROWS, wide // 4))):
        folder = root / f"plan{rows}"
        folder.mkdir()
        write_problem(folder, rows, 0, PLAN_DIM, part)
        print(f"plan, {rows} rows", file=sys.stderr)
        for name, one in compare(folder, dict.fromkeys(names, 3 if part else 2)).items():
            what = f"{name}, {part or rows} x {rows}"
            if "failed" in one:
                return [*lines, f"{what:34}not run: {one['failed']}"]
            took, peak = statistics.median(one["seconds"]), max(one["peak_mb"])
            pairs = (part or rows) * rows
            spent[name, rows] = took / pairs, peak
            lines.append(f"{what:34}{took:10.3f}{1e9 * took / pairs:11.3f}{peak:9.0f}")
    million = 1_000_000
    for name in names:
        full, row = spent[name, large][0], spent[name, wide][0]
        slope = (spent[name, large][1] - spent[name, small][1]) / (large - small)
        peak = spent[name, large][1] + slope * (million - large)
        for what, each, rows in (
            (f"by the row, {wide} x {wide}", row, wide),
            ("by the row, 1M x 1M", row, million),
            (f"by {large} self, 1M x 1M", full, million),
        ):
            memory = f"{peak:9.0f}" if rows == million else f"{'':9}"
            minutes = each * rows**2 / 60
            lines.append(f"{name + ' ' + what:42}{minutes:9.1f} min{memory}, extrapolated")
    block = f"{min(PLAN_ROWS, wide // 4)} queries against all {wide} rows"
    return [
        *lines,
        f"The row of blocks is {block}: it has no use of the symmetry",
        "that a whole self-retrieval may have. Memory at 1M is the line through the two whole runs, beside",
        f"{million * PLAN_DIM * 4 / 2**20:.0f} MB of embeddings. No run of 1M was made.",
    ]


def about() -> list[str]:
    """Where the figures come from."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next(
        (line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), ""
    )
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("metricli", "torch", "numpy", "faiss-cpu", "open-metric-learning", "pytorch-metric-learning")
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    place = f"{platform.system()} {platform.machine()}, {model or platform.processor()}, {cores} cores"
    return [
        f"{place}, {memory:.0f} GB, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}, {day}",
        ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        " ".join(["python benchmarks/retrieval.py", *sys.argv[1:]]),
        f"{THREADS} threads, float32 unit vectors, D = 384 unless said, 5 or 6 instances a label, k = {K}",
        "",
    ]


def main() -> None:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--plan", action="store_true", help="work out 1M x 1M x 128 too")
    parser.add_argument("--write", action="store_true", help="save benchmarks/results/retrieval.txt and .png")
    parser.add_argument(
        "--sizes", nargs="*", choices=list(SIZES), help="these sizes only; none, for --plan alone"
    )
    options = parser.parse_args()
    sizes = QUICK if options.quick else SIZES
    wanted = {name: size for name, size in sizes.items() if options.sizes is None or name in options.sizes}
    lines, found = about(), {}
    with tempfile.TemporaryDirectory() as place:
        for title, (queries, gallery, turns, slow) in wanted.items():
            print(title, file=sys.stderr)
            folder = Path(place) / title.replace(" ", "_")
            folder.mkdir()
            write_problem(folder, queries, gallery)
            found[title] = compare(folder, {name: slow if name in SLOW else turns for name in CONTENDERS})
            lines += [*table(title, found[title]), ""]
        if options.plan:
            lines += plan(Path(place), options.quick)
    text = "\n".join([*lines, "", NOTES]).replace("\n\n\n", "\n\n")
    print(text)
    if options.write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "retrieval.txt").write_text(text + "\n", encoding="utf-8")
        if found:
            draw(found, RESULTS / "retrieval.png")


if __name__ == "__main__":
    main()
