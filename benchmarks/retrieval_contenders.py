"""What benchmarks/retrieval.py compares: each a function from a problem to the work that is timed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 2
WARM_ROWS = 512
RESOLUTION = 2048  # as runs/unranked.py has it
RANKING = {
    "cmc": [1, 5, 10],
    "precision": [5, 10],
    "precision_capped": [5, 10],
    "recall": [5, 10],
    "map": [5, 10],
    "map_hits": [5, 10],
    "ndcg": [5, 10],
    "map_r": True,
    "r_precision": True,
    "mrr": True,
    "minp": True,
}


@dataclass
class Problem:
    """Unit rows and labels of both sides; the gallery is the same object as the queries in self-retrieval."""

    queries: np.ndarray
    gallery: np.ndarray
    query_labels: np.ndarray
    gallery_labels: np.ndarray
    k: int
    offset: int = 0
    """Query i is gallery row offset + i; -1 where queries and gallery are apart."""

    @property
    def whole(self) -> bool:
        """Whether every gallery row is a query."""
        return self.gallery is self.queries

    def small(self) -> Problem:
        """A few rows, to warm up on."""
        queries = self.queries[:WARM_ROWS]
        gallery = queries if self.whole else self.gallery[:WARM_ROWS]
        return Problem(
            queries,
            gallery,
            self.query_labels[:WARM_ROWS],
            self.gallery_labels[:WARM_ROWS],
            self.k,
            self.offset,
        )


@dataclass
class Work:
    """`call` is timed; `values` reads its outcome; `prepare` counts as memory, not as time."""

    call: Callable[[], Any]
    values: Callable[[Any], dict[str, float]]
    prepare: Callable[[], None] = lambda: None


Made = Callable[[Problem], Work]


def load(folder: Path) -> Problem:
    """The problem that `benchmarks/retrieval.py` wrote to `folder`."""
    about = json.loads((folder / "about.json").read_text())
    queries, query_labels = np.load(folder / "queries.npy"), np.load(folder / "query_labels.npy")
    gallery, gallery_labels = queries, query_labels
    if (folder / "gallery.npy").exists():
        gallery, gallery_labels = np.load(folder / "gallery.npy"), np.load(folder / "gallery_labels.npy")
    return Problem(queries, gallery, query_labels, gallery_labels, about["k"], about["offset"])


def faiss_search(problem: Problem) -> Work:
    """The yardstick; the index is filled outside the clock, its copy of the gallery counts as memory."""
    import faiss

    faiss.omp_set_num_threads(THREADS)
    index: list[Any] = []

    def fill() -> None:
        index.append(faiss.IndexFlatIP(problem.gallery.shape[1]))
        index[0].add(problem.gallery)

    return Work(
        lambda: index[0].search(problem.queries, problem.k), lambda found: judged(problem, found[1]), fill
    )


def judged(problem: Problem, found: np.ndarray) -> dict[str, float]:
    """A few metrics of indices (Q, k), in numpy from their definitions, to check the others by."""
    itself = np.zeros(found.shape, dtype=bool)
    if problem.offset >= 0:  # the query itself is in there: moved to the end
        itself = found == np.arange(len(found))[:, None] + problem.offset
        order = np.argsort(itself, axis=1, kind="stable")
        found, itself = np.take_along_axis(found, order, 1), np.take_along_axis(itself, order, 1)
    hits = (problem.gallery_labels[found] == problem.query_labels[:, None]) & ~itself
    counts = np.bincount(problem.gallery_labels, minlength=problem.query_labels.max() + 1)
    relevant = counts[problem.query_labels] - (problem.offset >= 0)
    within = hits & (np.arange(found.shape[1]) < relevant[:, None])
    precisions = within.cumsum(1) / np.arange(1, found.shape[1] + 1)
    return {
        "cmc@1": float(hits[:, 0].mean()),
        "cmc@5": float(hits[:, :5].any(1).mean()),
        "precision_capped@5": float((hits[:, :5].sum(1) / np.minimum(5, relevant)).mean()),
        "r_precision": float((within.sum(1) / relevant).mean()),
        "map@r": float(((precisions * within).sum(1) / relevant).mean()),
    }


def metricli_search(problem: Problem) -> Work:
    """metricli's exact search alone."""
    from metricli.core.retrieval import search

    queries, gallery, _, _, excluded = _tensors(problem)
    return Work(
        lambda: search(queries, gallery, k=problem.k, distance="cosine", exclude=excluded),
        lambda found: judged(problem, found.indices.numpy()),
    )


def metricli_metrics(problem: Problem, resolution: int = 0) -> Work:
    """metricli's search and every ranking metric, with ranks over the whole gallery."""
    from metricli.core.metrics import retrieval_metrics, summarize
    from metricli.core.retrieval import count_relevant, survey

    queries, gallery, *labels, excluded = _tensors(problem)

    def call() -> Any:
        relevant = count_relevant(*labels, excluded)
        found = survey(
            queries,
            gallery,
            k=problem.k,
            distance="cosine",
            exclude=excluded,
            query_labels=labels[0],
            gallery_labels=labels[1],
            ranks=True,
            distances=False,
            resolution=resolution,
        )
        ranks = {"first": found.first, "last": found.last}
        return summarize(retrieval_metrics(found.result, *labels, relevant, **ranks, **RANKING)), found

    def values(outcome: Any) -> dict[str, float]:
        means, found = outcome
        deep = (found.first < 1) | (found.first > problem.k)
        within = (1 / found.first.double()).masked_fill(deep, 0).mean()
        return {**means["OVERALL"], f"mrr, first {problem.k}": float(within)}

    return Work(call, values)


def metricli_pairs(problem: Problem) -> Work:
    """The same and the verification metrics, from a histogram of all pairs."""
    from metricli.core.verification import verification_metrics

    ranking = metricli_metrics(problem, RESOLUTION)

    def call() -> Any:
        means, found = ranking.call()
        return means, found, verification_metrics(found.pairs, fnmr=[0.01], eer=True, roc_auc=True).values

    def values(outcome: Any) -> dict[str, float]:
        means, found, verified = outcome
        return ranking.values((means, found)) | {name: float(one[0]) for name, one in verified.items()}

    return Work(call, values)


def _tensors(problem: Problem) -> tuple[Any, Any, Any, Any, Any]:
    import torch

    from metricli.core.exclusion import NOTHING, Exclusion

    queries = torch.from_numpy(problem.queries)
    gallery = queries if problem.whole else torch.from_numpy(problem.gallery)
    labels = torch.from_numpy(problem.query_labels), torch.from_numpy(problem.gallery_labels)
    excluded = NOTHING
    if problem.offset >= 0:
        ids = torch.arange(len(gallery))
        own = ids if problem.whole else torch.arange(problem.offset, problem.offset + len(queries))
        excluded = Exclusion(own, ids)
    return queries, gallery, *labels, excluded


def oml(problem: Problem) -> Work:
    """open-metric-learning: RetrievalResults of the embeddings, then cmc, precision and map."""
    import torch
    from oml.interfaces.datasets import IQueryGalleryLabeledDataset
    from oml.metrics.embeddings import calc_retrieval_metrics_rr
    from oml.retrieval.retrieval_results import RetrievalResults

    num = len(problem.queries)
    if problem.whole:
        rows, labels = problem.queries, problem.query_labels
        query_ids = gallery_ids = torch.arange(num)
    else:
        rows = np.concatenate([problem.queries, problem.gallery])
        labels = np.concatenate([problem.query_labels, problem.gallery_labels])
        query_ids, gallery_ids = torch.arange(num), torch.arange(num, len(rows))
    embeddings, held = torch.from_numpy(rows), torch.from_numpy(labels)

    class Dataset(IQueryGalleryLabeledDataset):  # what from_embeddings asks of one
        extra_data: dict[str, Any] = {}  # noqa: RUF012

        def __getitem__(self, item: int) -> dict[str, Any]:
            raise NotImplementedError

        def __len__(self) -> int:
            return len(held)

        def get_labels(self) -> Any:
            return held

        def get_query_ids(self) -> Any:
            return query_ids

        def get_gallery_ids(self) -> Any:
            return gallery_ids

    dataset = Dataset()

    def call() -> Any:
        found = RetrievalResults.from_embeddings(embeddings, dataset, n_items=problem.k)
        tops = {"cmc_top_k": (1, 5, 10), "precision_top_k": (5, 10), "map_top_k": (5, 10)}
        return calc_retrieval_metrics_rr(found, **tops, verbose=False)

    names = {"cmc": "cmc", "precision": "precision_capped", "map": "map_hits"}
    pairs = list(names.items())
    return Work(
        call,
        lambda found: {
            f"{ours}@{k}": float(value) for name, ours in pairs for k, value in found[name].items()
        },
    )


def pml(problem: Problem) -> Work:
    """pytorch-metric-learning: AccuracyCalculator and its faiss search, metrics of clusters left out."""
    import faiss
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    faiss.omp_set_num_threads(THREADS)
    names = {
        "precision_at_1": "cmc@1",
        "mean_average_precision": f"map@{problem.k}",  # it divides by n, which is at most k here
        "mean_average_precision_at_r": "map@r",
        "r_precision": "r_precision",
        "mean_reciprocal_rank": f"mrr, first {problem.k}",
    }
    calculator = AccuracyCalculator(include=tuple(names), k=problem.k, device=torch.device("cpu"))
    queries, labels = torch.from_numpy(problem.queries), torch.from_numpy(problem.query_labels)
    sides: tuple[Any, ...] = (queries, labels)
    if not problem.whole:
        sides += (torch.from_numpy(problem.gallery), torch.from_numpy(problem.gallery_labels))
    return Work(
        lambda: calculator.get_accuracy(*sides),
        lambda found: {names[name]: value for name, value in found.items()},
    )


CONTENDERS: dict[str, Made] = {
    "faiss search": faiss_search,
    "metricli search": metricli_search,
    "metricli": metricli_metrics,
    "metricli + pairs": metricli_pairs,
    "OML": oml,
    "PML": pml,
}
