"""k-reciprocal re-ranking: ours on lists of neighbours against the usual dense formulation in numpy.

    .venv/bin/python benchmarks/reranking.py [--queries 2000] [--gallery 8000] [--repeats 5] [--threads 1]
        [--large 60000] [--out benchmarks/results/reranking.txt]

Each figure is of a fresh process that does only that work, the two taking turns: embeddings to the first
`top_n` of every ranking, the search included. Memory is the peak of the process above that before the work
(imports done, embeddings made). One thread: two that wait for each other say little on a busy machine. The
dense formulation is that of the published scripts: float32 matrices over queries and gallery together,
argpartition, loops over rows. Ranks are compared with the same in float64. `--large` also re-ranks so many
images, each against all others.
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
from pathlib import Path
from typing import Any

import numpy as np

K1, K2, LAMBDA, TOP_N = 20, 6, 0.3, 100


def embeddings(num: int, dim: int, seed: int) -> np.ndarray:
    """Unit rows (num, dim) float32 around centres with some 12 rows each of 10 000."""
    centres = np.random.default_rng(0).standard_normal((800, dim), dtype=np.float32)
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, 800, num)] + rng.standard_normal((num, dim), dtype=np.float32)
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def dense(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The first `TOP_N` (Q, n) of the nearest `TOP_N`, re-ranked with matrices over all pairs."""
    both = np.concatenate([queries, gallery])
    num, num_queries = len(both), len(queries)
    original = 2 - 2 * both @ both.T
    np.fill_diagonal(original, 0)
    original = original / original.max(1, keepdims=True)
    order = np.argpartition(original, range(1, K1 + 1), axis=1)[:, : K1 + 1]

    def reciprocal(i: int, k: int) -> np.ndarray:
        forward = order[i, : k + 1]
        return forward[(order[forward, : k + 1] == i).any(1)]

    weights = np.zeros_like(original)
    for i in range(num):
        own = reciprocal(i, K1)
        members = own
        for j in own:
            theirs = reciprocal(j, round(K1 / 2))
            if len(np.intersect1d(theirs, own)) > 2 / 3 * len(theirs):
                members = np.append(members, theirs)
        members = np.unique(members)
        near = np.exp(-original[i, members])
        weights[i, members] = near / near.sum()
    expanded = np.zeros_like(weights)
    for i in range(num):
        expanded[i] = weights[order[i, :K2]].mean(0)
    del weights
    holders = [np.nonzero(expanded[:, j])[0] for j in range(num)]
    final = np.zeros((num_queries, num), dtype=both.dtype)
    for i in range(num_queries):
        shared = np.zeros(num, dtype=both.dtype)
        for j in np.nonzero(expanded[i])[0]:
            shared[holders[j]] += np.minimum(expanded[i, j], expanded[holders[j], j])
        final[i] = (1 - LAMBDA) * (1 - shared / (2 - shared)) + LAMBDA * original[i]
    final, original = final[:, num_queries:], original[:num_queries, num_queries:]
    nearest = np.argsort(original, 1, kind="stable")[:, :TOP_N]
    ranked = np.argsort(np.take_along_axis(final, nearest, 1), 1, kind="stable")
    return np.take_along_axis(nearest, ranked, 1)


def sparse(queries: np.ndarray, gallery: np.ndarray, one_side: bool = False) -> np.ndarray:
    """The same by `KReciprocal`; with `one_side`, every row of the gallery is a query."""
    import torch

    from metricli.components.postprocessors import KReciprocal
    from metricli.core.exclusion import NOTHING, Exclusion
    from metricli.core.rankings import Rankings

    items = torch.from_numpy(gallery)
    asked, exclude = torch.from_numpy(queries), NOTHING
    if one_side:
        ids = torch.arange(len(items))
        asked, exclude = items, Exclusion(ids, ids)
    rerank = KReciprocal(k1=K1, k2=K2, lambda_value=LAMBDA, top_n=TOP_N)
    found: np.ndarray = rerank(Rankings(asked, items, "cosine", exclude, TOP_N)).result.indices.numpy()
    return found


def peak_mb() -> float:
    """Peak memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def only(name: str, options: argparse.Namespace) -> None:
    """What a process of its own does: one work, its seconds and memory printed; its ranks saved if asked."""
    import torch

    import metricli.components.postprocessors

    del torch
    assert metricli.components.postprocessors
    gallery = embeddings(options.gallery, options.dim, 2)
    queries = gallery[:1] if name == "large" else embeddings(options.queries, options.dim, 1)
    if name == "exact":
        queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    before, start, cpu = peak_mb(), time.perf_counter(), time.process_time()
    found = (
        dense(queries, gallery) if name in ("dense", "exact") else sparse(queries, gallery, name == "large")
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if options.save:
        np.save(options.save, found)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "mb": peak_mb() - before}))


def measured(name: str, options: argparse.Namespace, **changed: Any) -> dict[str, float]:
    """Seconds and MB of one fresh process."""
    values = {**vars(options), **changed}
    command = [sys.executable, __file__, "--only", name]
    for key in ("queries", "gallery", "dim", "save"):
        if values[key]:
            command += [f"--{key}", str(values[key])]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "OPENBLAS_NUM_THREADS": str(options.threads),
    }
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    taken: dict[str, float] = json.loads(done.stdout)
    return taken


def ranks(options: argparse.Namespace) -> str:
    """How many rankings are the same in ours and in the dense formulation in float64, and in float32."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("sparse", "exact", "dense"):
            file = Path(scratch) / f"{name}.npy"
            measured(name, options, save=str(file))
            found[name] = np.load(file)
    equal = {name: (found[name] == found["exact"]).all(1) for name in ("sparse", "dense")}
    num = len(found["exact"])
    return (
        f"rankings of {TOP_N} equal to the dense ones in float64: ours {int(equal['sparse'].sum())} of "
        f"{num}, dense in float32 {int(equal['dense'].sum())} of {num}"
    )


def machine(threads: int) -> str:
    """One line about where the figures come from."""
    import torch

    place = f"{platform.system()} {platform.machine()}, {threads} threads, Python {platform.python_version()}"
    load = f"load {os.getloadavg()[0]:.1f}"
    return f"{place}, torch {torch.__version__.split('+')[0]}, numpy {np.__version__}, {load}"


def main() -> None:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, value in (("queries", 2000), ("gallery", 8000), ("dim", 384), ("repeats", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--large", type=int, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--save")
    options = parser.parse_args()
    if options.only:
        return only(options.only, options)
    turns = [{name: measured(name, options) for name in ("dense", "sparse")} for _ in range(options.repeats)]
    lines = [
        machine(options.threads),
        f"{options.queries} queries, {options.gallery} items, D = {options.dim}, k1 {K1}, k2 {K2}, lambda "
        f"{LAMBDA}, top_n {TOP_N}, {options.repeats} turns",
        "",
        f"{'':24}{'median s':>10}{'best s':>10}{'ratio':>8}{'CPU s':>8}{'ratio':>8}"
        f"{'peak MB':>10}{'ratio':>8}",
    ]
    for name, label in (("dense", "dense (numpy, float32)"), ("sparse", "k_reciprocal")):
        keys = ("seconds", "cpu", "mb")
        wall, cpu, mb = (statistics.median(turn[name][key] for turn in turns) for key in keys)
        ratios = [statistics.median(turn[name][key] / turn["dense"][key] for turn in turns) for key in keys]
        best = min(turn[name]["seconds"] for turn in turns)
        lines.append(
            f"{label:24}{wall:10.2f}{best:10.2f}{ratios[0]:8.3f}{cpu:8.2f}{ratios[1]:8.3f}{mb:10.0f}{ratios[2]:8.3f}"
        )
    lines += ["", ranks(options)]
    for num in options.large:
        taken = measured("large", options, gallery=num)
        lines.append(f"{num} images, each against all others: {taken['seconds']:.0f} s, {taken['mb']:.0f} MB")
    text = "\n".join(lines)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
