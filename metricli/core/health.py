"""Health of embeddings: how they fill their space, apart from any ranking; worked out in docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metricli.core.distances import at_least_float32, unit_rows
from metricli.core.metrics import asked_for

__all__ = ["alignment", "effective_rank", "health_metrics", "hubness", "pcf", "uniformity"]


def health_metrics(
    embeddings: Tensor,
    labels: Tensor,
    indices: Tensor | None = None,
    gallery_size: int = 0,
    *,
    codes: Tensor | None = None,
    query_codes: Tensor | None = None,
    num_categories: int = 0,
    budget_mb: float = 64,
    **asked: Any,
) -> dict[str, Tensor]:
    """The health metrics of all rows and of each category (1 + C,) float64, by printed name.

    A category's hubness counts the results of its own queries, over the whole gallery; its other metrics
    take its own rows. NaN where a metric is undefined. Keys of other families in `asked` are passed over.

    Args:
        embeddings: (N, D), each row once.
        labels: (N,).
        indices: for hubness, (Q, K) of a search, -1 for no item, K at least its largest k.
        gallery_size: for hubness, how many items `indices` are of.
        codes: (N,) int64 categories of the rows, -1 for none.
        query_codes: (Q,) int64 categories of the queries, -1 for none.
        num_categories: C.
        budget_mb: working memory.
        **asked: such as {"pcf": [0.9], "uniformity": True, "hubness": [10]}.

    Raises:
        TypeError: a key that is no metric.
        ValueError: wrong shapes, shares or k, hubness without `indices`, or an embedding that is not finite.
    """
    wanted = asked_for(asked, "health")
    row_groups = _groups(codes, embeddings, num_categories, "codes")
    query_groups: list[Tensor] = []
    if asked.get("hubness"):
        if indices is None:
            raise ValueError("hubness needs the `indices` of a search")
        query_groups = _groups(query_codes, indices, num_categories, "query_codes")
    columns: dict[str, list[float]] = {each.name: [] for each in wanted}
    for group, rows in enumerate(row_groups):
        spectrum = torch.zeros(0)
        if asked.get("pcf") or asked.get("effective_rank"):
            spectrum = _spectrum(embeddings, rows, budget_mb)
        for each in wanted:
            if each.key == "pcf":
                value = _components(spectrum, each.at) / embeddings.shape[1]
            elif each.key == "effective_rank":
                value = _rank(spectrum)
            elif each.key == "alignment":
                value = alignment(embeddings, labels, rows=rows, budget_mb=budget_mb)
            elif each.key == "uniformity":
                value = uniformity(embeddings, rows=rows, budget_mb=budget_mb)
            else:
                assert indices is not None, each.key
                value = hubness(indices, gallery_size, each.at, rows=query_groups[group])
            columns[each.name].append(value)
    return {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}


def pcf(embeddings: Tensor, shares: Sequence[float], *, budget_mb: float = 64) -> list[float]:
    """Principal components fraction: the fewest components with that share of the variance, / D, as in OML.

    Takes (N, D); NaN for fewer than two rows, and without any variance.

    Raises:
        ValueError: a share outside (0, 1), or an embedding that is not finite.
    """
    spectrum = _spectrum(embeddings, _all(embeddings), budget_mb)
    return [_components(spectrum, share) / embeddings.shape[1] for share in shares]


def effective_rank(embeddings: Tensor, *, budget_mb: float = 64) -> float:
    """exp of the entropy of the singular values over their sum (Roy and Vetterli 2007), in [1, D].

    Rows (N, D) are centred first, so it counts the directions that embeddings differ in. NaN as in `pcf`.

    Raises:
        ValueError: an embedding is not finite.
    """
    return _rank(_spectrum(embeddings, _all(embeddings), budget_mb))


def _spectrum(embeddings: Tensor, rows: Tensor, budget_mb: float) -> Tensor:
    """Eigenvalues (min(M, D),) of the scatter matrix of the centred `rows` (M,), float64; none for M < 2."""
    num, dim = len(rows), embeddings.shape[1]
    if num < 2 or dim == 0:
        return torch.zeros(0, dtype=torch.float64)
    size = _rows_within(budget_mb, dim)

    def moved() -> Iterator[Tensor]:
        origin: Tensor | None = None
        for block in _blocks(embeddings, rows, size):
            origin = block[0].double() if origin is None else origin
            yield block.double() - origin  # equal rows have a variance of exactly 0, which a mean would blur

    mean = sum((block.sum(0) for block in moved()), start=torch.zeros((), dtype=torch.float64)) / num
    if num < dim:
        centred = torch.cat([block - mean for block in moved()])
        scatter = centred @ centred.T
    else:
        scatter = torch.zeros(dim, dim, dtype=torch.float64, device=embeddings.device)
        for block in moved():
            centred = block.sub_(mean)
            scatter.addmm_(centred.T, centred)
    values: Tensor = torch.linalg.eigvalsh(scatter).flip(0)
    noise = values[0] * len(values) * torch.finfo(torch.float64).eps
    return torch.where(values > noise, values, 0.0)


def _components(spectrum: Tensor, share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"pcf needs shares between 0 and 1, got {share!r}")
    reached = spectrum.cumsum(0) / spectrum.sum()
    return float((reached < share - 1e-10).sum()) + 1 if bool(spectrum.any()) else math.nan


def _rank(spectrum: Tensor) -> float:
    sigma = spectrum.sqrt()
    shares = sigma / sigma.sum()
    return math.exp(-float(torch.xlogy(shares, shares).sum())) if bool(spectrum.any()) else math.nan


def alignment(
    embeddings: Tensor, labels: Tensor, *, rows: Tensor | None = None, budget_mb: float = 64
) -> float:
    """Mean squared distance of all pairs of one label, rows at unit norm (Wang and Isola 2020, alpha = 2).

    Of n rows with mean m the pairs sum to n * sum |x - m|², so no pair is listed. NaN without a pair.

    Args:
        embeddings: (N, D); a zero row stays zero.
        labels: (N,).
        rows: (M,) int64, the rows to take; all by default.
        budget_mb: working memory.

    Raises:
        ValueError: wrong shapes, or an embedding that is not finite.
    """
    if labels.shape != (len(embeddings),):
        raise ValueError(f"labels must have shape ({len(embeddings)},), got {tuple(labels.shape)}")
    rows = _all(embeddings) if rows is None else rows
    ordered, order = labels[rows].sort(stable=True)
    _, place, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    pairs = int((counts * (counts - 1)).sum()) // 2
    if pairs == 0:
        return math.nan
    size, ends, total = _rows_within(budget_mb, embeddings.shape[1]), counts.cumsum(0), 0.0
    for start in range(0, len(counts), size):  # so many labels at a time
        held = counts[start : start + size]
        span = slice(int(ends[start] - counts[start]), int(ends[start + len(held) - 1]))
        own, found = place[span] - start, rows[order[span]]
        means = torch.zeros(len(held), embeddings.shape[1], dtype=torch.float64, device=embeddings.device)
        for at, block in zip(torch.split(own, size), _blocks(embeddings, found, size), strict=True):
            means.index_add_(0, at, unit_rows(block.double()))
        means /= held[:, None]
        for at, block in zip(torch.split(own, size), _blocks(embeddings, found, size), strict=True):
            spread = unit_rows(block.double()).sub_(means[at]).square_().sum(1)
            total += float((spread * held[at]).sum())
    return total / pairs


def uniformity(
    embeddings: Tensor, *, t: float = 2, rows: Tensor | None = None, budget_mb: float = 64
) -> float:
    """log of the mean exp(-t |x - y|²) over pairs of two rows, rows at unit norm (Wang and Isola 2020).

    Each pair is taken once, block by block: half the products of a search of all rows in all. NaN for
    fewer than two rows.

    Args:
        embeddings: (N, D); a zero row stays zero.
        t: the kernel's sharpness.
        rows: (M,) int64, the rows to take; all by default.
        budget_mb: working memory.

    Raises:
        ValueError: an embedding is not finite.
    """
    rows = _all(embeddings) if rows is None else rows
    num, dim = len(rows), embeddings.shape[1]
    if num < 2:
        return math.nan
    size = min(num, _rows_within(budget_mb / 2, dim), max(1, int((budget_mb * 2**20 / 32) ** 0.5)))
    blocks, total = torch.split(rows, size), 0.0
    for i, first in enumerate(blocks):
        x = _units(embeddings, first)
        for j in range(i, len(blocks)):
            y = x if i == j else _units(embeddings, blocks[j])
            terms = torch.addmm(y.square().sum(1), x, y.T, beta=-t, alpha=2 * t)
            terms.sub_(t * x.square().sum(1, keepdim=True)).clamp_(max=0).exp_()
            if i == j:
                terms.triu_(1)
            total += float(terms.sum(1).double().sum())
    return math.log(total / (num * (num - 1) / 2)) if total > 0 else -math.inf


def hubness(indices: Tensor, gallery_size: int, k: int, *, rows: Tensor | None = None) -> float:
    """Skewness of how often each item is among the first k of a query (Radovanovic et al. 2010).

    m3 / m2^1.5 of the N_k of all items, also of those never found. NaN where all are found equally often.

    Args:
        indices: (Q, K), -1 for no item.
        gallery_size: the number of items.
        k: at most K.
        rows: (M,) int64, the queries to take; all by default.

    Raises:
        ValueError: k outside [1, K].
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k!r}")
    if k > indices.shape[1]:
        raise ValueError(f"hubness@{k} needs a search with k={k}, got k={indices.shape[1]}")
    counts = torch.zeros(gallery_size, dtype=torch.int64, device=indices.device)
    rows = _all(indices) if rows is None else rows
    for part in torch.split(rows, max(1, 2**20 // k)) if len(rows) else ():
        found = indices[part, :k].flatten()
        counts += torch.bincount(found[found >= 0], minlength=gallery_size)
    off = counts.double() - counts.double().mean()
    variance = float(off.square().mean()) if gallery_size else 0.0
    return float(off.pow(3).mean()) / variance**1.5 if variance > 0 else math.nan


def _rows_within(budget_mb: float, dim: int) -> int:
    """Rows of which four float64 copies fit."""
    return max(1, int(budget_mb * 2**20 / (32 * max(1, dim))))


def _all(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


def _groups(codes: Tensor | None, of: Tensor, num_categories: int, name: str) -> list[Tensor]:
    """All rows of `of`, and then the rows of each category."""
    if codes is None:
        codes = torch.full((len(of),), -1, device=of.device)
    if codes.shape != (len(of),):
        raise ValueError(f"{name} must have shape ({len(of)},), got {tuple(codes.shape)}")
    if len(of) and not -1 <= int(codes.min()) <= int(codes.max()) < num_categories:
        raise ValueError(f"{name} must lie in [-1, {num_categories - 1}]")
    counts = torch.bincount(codes + 1, minlength=1 + num_categories)
    return [_all(of), *torch.split(codes.argsort(stable=True), counts.tolist())[1:]]


def _blocks(embeddings: Tensor, rows: Tensor, size: int) -> Iterator[Tensor]:
    """The rows, `size` at a time, checked, in float32 at least."""
    for part in torch.split(rows, size):
        block = at_least_float32(embeddings[part])
        if not bool(block.isfinite().all()):
            raise ValueError("embeddings must be finite")
        yield block


def _units(embeddings: Tensor, rows: Tensor) -> Tensor:
    block = next(_blocks(embeddings, rows, len(rows)))
    return unit_rows(block.double()).to(block.dtype)
