"""The numbers behind pictures of embeddings: distances of pairs, a map by principal components, hubs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metricli.core.distances import Distance, at_least_float32, paired_distances, pairwise_distances
from metricli.core.exclusion import Exclusion

__all__ = ["PairDistances", "PrincipalMap", "Side", "distance_counts", "draw", "principal_map", "times_found"]

ALL_PAIRS = 4_000_000
"""Up to so many pairs each is counted."""
SAMPLE = 50_000
"""Beyond, so many genuine pairs are drawn, and as many impostor pairs."""
_CHUNK = 2**20  # numbers gathered at a time


@dataclass(frozen=True)
class Side:
    """Queries or a gallery: rows of a matrix that is not copied."""

    source: Tensor
    """(N, D)"""
    places: Tensor
    """(n,) int64 rows of the source."""
    labels: Tensor
    """(n,) int64"""

    def __len__(self) -> int:
        return len(self.places)

    def rows(self, which: Tensor | slice) -> Tensor:
        """The embeddings of some of them, (m, D)."""
        return self.source[self.places[which].to(self.source.device)]


@dataclass(frozen=True)
class PairDistances:
    """How many genuine and impostor pairs lie in B bins of equal width; the last one has its upper edge."""

    edges: Tensor
    """(B + 1,) float64, ascending."""
    genuine: Tensor
    """(B,) int64."""
    impostor: Tensor
    """(B,) int64."""
    is_exact: bool
    """Whether these are all pairs, not a sample."""


@torch.no_grad()
def distance_counts(
    queries: Side,
    gallery: Side,
    *,
    exclude: Exclusion,
    distance: Distance,
    bins: int = 60,
    all_pairs: int = ALL_PAIRS,
    sample: int = SAMPLE,
    seed: int = 0,
) -> PairDistances:
    """Distances of the pairs of a query and an item that it may find, counted by whether the labels agree.

    With more than `all_pairs` pairs, `sample` of each kind are drawn by `seed`, uniformly, with replacement.
    Pairs that `exclude` takes out do not count.
    """
    exact = len(queries) * len(gallery) <= all_pairs
    if exact:
        genuine, impostor = _every(queries, gallery, exclude, distance)
    else:
        labels = queries.labels.cpu(), gallery.labels.cpu()
        generator = torch.Generator().manual_seed(seed)
        kinds = _genuine_pairs(*labels, sample, generator), _impostor_pairs(*labels, sample, generator)
        genuine, impostor = (_apart(queries, gallery, *pairs, exclude, distance) for pairs in kinds)
    both = torch.cat([genuine, impostor])
    low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    high = high if high > low else low + max(abs(low), 1.0) * 1e-6
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    return PairDistances(edges, _counted(genuine, edges), _counted(impostor, edges), exact)


def _counted(found: Tensor, edges: Tensor) -> Tensor:
    places = torch.searchsorted(edges, found, right=True).sub_(1).clamp_(0, len(edges) - 2)
    return torch.bincount(places, minlength=len(edges) - 1)


def _every(queries: Side, gallery: Side, exclude: Exclusion, distance: Distance) -> tuple[Tensor, Tensor]:
    """The distances of all genuine and of all impostor pairs, float64 on the CPU."""
    kinds: tuple[list[Tensor], list[Tensor]] = ([], [])
    step, everything = max(1, _CHUNK // max(1, len(gallery))), slice(0, len(gallery))
    items = gallery.rows(everything)
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        block = pairwise_distances(queries.rows(part), items, distance)
        exclude.apply_(block, part, everything)
        same = queries.labels[part, None] == gallery.labels
        seen = torch.isfinite(block)
        for kind, chosen in zip(kinds, (same, ~same), strict=True):
            kind.append(block[chosen & seen].cpu())
    genuine, impostor = (torch.cat(kind).double().clamp_min_(0) for kind in kinds)
    return genuine, impostor


def _genuine_pairs(
    query_labels: Tensor, gallery_labels: Tensor, sample: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Places of queries and items (P,) of pairs of one label, each as likely as any other."""
    ordered, order = gallery_labels.sort()
    first = torch.searchsorted(ordered, query_labels)
    ends = (torch.searchsorted(ordered, query_labels, right=True) - first).cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    if total == 0:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    pair = torch.randint(total, (sample,), generator=generator)
    query = torch.searchsorted(ends, pair, right=True)
    before = torch.where(query > 0, ends[(query - 1).clamp_min(0)], 0)
    return query, order[first[query] + pair - before]


def _impostor_pairs(
    query_labels: Tensor, gallery_labels: Tensor, sample: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Places of queries and items (P,) of pairs of two labels, P at most `sample`."""
    query = torch.randint(len(query_labels), (sample,), generator=generator)
    item = torch.randint(len(gallery_labels), (sample,), generator=generator)
    differ = query_labels[query] != gallery_labels[item]
    return query[differ], item[differ]


def _apart(
    queries: Side, gallery: Side, query: Tensor, item: Tensor, exclude: Exclusion, distance: Distance
) -> Tensor:
    """The distances of pairs by place, without those that are excluded, float64 on the CPU."""
    device, step = queries.labels.device, max(1, _CHUNK // max(1, queries.source.shape[1]))
    found = [torch.zeros(0, dtype=torch.float64)]
    for start in range(0, len(query), step):
        some, items = query[start : start + step].to(device), item[start : start + step].to(device)
        allowed = ~exclude.hides(some, items[:, None])[:, 0]
        apart = paired_distances(queries.rows(some[allowed]), gallery.rows(items[allowed]), distance)
        found.append(apart.double().cpu().clamp_min_(0))
    return torch.cat(found)


@dataclass(frozen=True)
class PrincipalMap:
    """Rows in the coordinates of their first principal components."""

    scores: Tensor
    """(N, d) float32 on the CPU, by falling variance; d is at most what was asked for."""
    shares: Tensor
    """(d,) float64: the part of the variance that each holds; zeros where there is none."""


@torch.no_grad()
def principal_map(rows: Tensor, dims: int) -> PrincipalMap:
    """The first `dims` principal components of `rows` (N, D); of both signs the one with positive skew."""
    x = at_least_float32(rows.detach().cpu()).double()
    x = x - x.mean(0)
    is_wide = x.shape[1] > len(x)
    values, vectors = torch.linalg.eigh(x @ x.T if is_wide else x.T @ x)  # ascending
    values, kept = values.flip(0).clamp_min(0), min(dims, *x.shape)
    vectors = vectors.flip(1)[:, :kept]
    scores = vectors * values[:kept].sqrt() if is_wide else x @ vectors
    scores = scores * torch.where(scores.pow(3).sum(0) < 0, -1.0, 1.0)
    total = values.sum()
    shares = values[:kept] / total if total > 0 else torch.zeros(kept, dtype=torch.float64)
    return PrincipalMap(scores.float(), shares)


def times_found(indices: Tensor, num_gallery: int, relevant: Tensor) -> tuple[Tensor, Tensor]:
    """How often each gallery row is found, and how often by a query of another label, (G,) int64 each.

    `indices` (Q, k) are places, -1 for none; `relevant` (Q, k) is whether the labels agree.
    """
    there = indices >= 0
    found = torch.bincount(indices[there], minlength=num_gallery)
    return found, torch.bincount(indices[there & ~relevant], minlength=num_gallery)


def draw(count: int, most: int, seed: int = 0) -> Tensor:
    """At most `most` different places of `count`, ascending: all of them, or drawn by `seed`."""
    if count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values
