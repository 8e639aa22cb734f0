"""Postprocessors that change embeddings; the ranking is searched anew."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metricli.core.exclusion import Exclusion, count_matches
from metricli.core.expansion import expand
from metricli.core.rankings import Rankings
from metricli.core.whitening import Whitening

__all__ = ["DatabaseAugmentation", "PCAWhitening", "QueryExpansion"]


def _check(k: int, alpha: float) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k!r}")
    if not (alpha >= 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be at least 0, got {alpha!r}")


def _lost(rankings: Rankings, name: str) -> list[str]:
    if rankings.found is None:
        return []
    return [f"{name} searches anew: the order that was made before it is lost"]


class QueryExpansion:
    """A query becomes the weighted mean of itself and the `k` items nearest to it (see core.expansion).

    alpha = 0: average query expansion (Chum et al., ICCV 2007). alpha > 0: alpha-QE (Radenovic, Tolias and
    Chum, TPAMI 2018; they use 3). Items that a query may not find never enter it.

    Raises:
        ValueError: `k` below 1, or `alpha` negative or not finite.
    """

    def __init__(self, *, k: int, alpha: float = 3.0) -> None:
        _check(k, alpha)
        self.k, self.alpha = k, alpha
        self.notes: list[str] = []

    def __call__(self, rankings: Rankings) -> Rankings:
        """Move the queries; the gallery stays."""
        indices = rankings.neighbours(self.k).indices
        self.notes = _lost(rankings, "query_expansion")
        short = int((indices < 0).any(1).sum())
        if short:
            self.notes.append(
                f"{short} of {len(indices)} queries have fewer than k {self.k} items to be expanded with; "
                "they take what there is"
            )
        queries = expand(
            rankings.queries, rankings.gallery, indices, alpha=self.alpha, distance=rankings.distance
        )
        return rankings.moved(queries=queries)


class DatabaseAugmentation:
    """A gallery item becomes the weighted mean of itself and the `k` items nearest to it in the gallery.

    After Turcot and Lowe (ICCV Workshops 2009), with the weights of alpha-QE (see core.expansion); the rank
    weights of Gordo et al. (IJCV 2017) are not offered. Queries must be apart from the gallery: where a query
    is an item, it would be mixed into those around it, and find them for that.

    Raises:
        ValueError: `k` below 1, or `alpha` negative or not finite; in the call: a query is a gallery item.
    """

    def __init__(self, *, k: int, alpha: float = 3.0) -> None:
        _check(k, alpha)
        self.k, self.alpha = k, alpha
        self.notes: list[str] = []

    def __call__(self, rankings: Rankings) -> Rankings:
        """Move the gallery; the queries stay."""
        self.notes = _lost(rankings, "database_augmentation") + self._said(rankings)
        gallery = rankings.gallery
        rows = torch.arange(len(gallery), device=gallery.device)
        k = min(self.k, len(gallery) - 1)
        if k < self.k:
            self.notes.append(
                f"k {self.k} is more than the {k} other items of the gallery; it is clipped to them"
            )
        if k < 1:
            return rankings.moved()
        found = rankings.searcher(
            gallery, gallery, k=k, distance=rankings.distance, exclude=Exclusion(rows, rows)
        )
        return rankings.moved(
            gallery=expand(gallery, gallery, found.indices, alpha=self.alpha, distance=rankings.distance)
        )

    def _said(self, rankings: Rankings) -> list[str]:
        exclude, num = rankings.exclude, len(rankings.queries)
        both = num if rankings.queries is rankings.gallery else 0
        if exclude.query_ids is not None and exclude.gallery_ids is not None:
            both = int((count_matches(exclude.query_ids, exclude.gallery_ids) > 0).sum())
        if both:
            raise ValueError(
                "database_augmentation would mix queries into the gallery items that they are to find: "
                f"{both} of {num} queries are gallery items; keep the two apart, or use query_expansion"
            )
        if exclude.query_sequences is None or exclude.gallery_sequences is None:
            return []
        mates = count_matches(exclude.query_sequences, exclude.gallery_sequences) > 0
        mates &= exclude.query_sequences >= 0
        if not mates.any():
            return []
        return [
            f"{int(mates.sum())} of {num} queries have images of their own sequence in the gallery; they "
            "may not be found, but database_augmentation mixes them into items that may be"
        ]


class PCAWhitening:
    """Both sides projected to `dim` whitened principal components of the gallery (Jégou and Chum, ECCV 2012).

    For cosine, rows have norm 1 before and after. Each component is divided by sqrt(variance + eps * largest
    variance). It is fitted on the gallery that is judged (no label is used), which the notes say.

    Raises:
        ValueError: `dim` below 1 or `eps` negative; in the call: `dim` above that of the embeddings, or
            gallery items that are all equal.
    """

    def __init__(self, *, dim: int | None = None, eps: float = 1e-6) -> None:
        if dim is not None and dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim!r}")
        if not (eps >= 0 and math.isfinite(eps)):
            raise ValueError(f"eps must be at least 0, got {eps!r}")
        self.dim, self.eps = dim, eps
        self.notes: list[str] = []

    def __call__(self, rankings: Rankings) -> Rankings:
        """Move both sides."""
        gallery, width = rankings.gallery, rankings.gallery.shape[1]
        if self.dim is not None and self.dim > width:
            raise ValueError(f"dim {self.dim} is above the {width} dimensions of the embeddings")
        if len(gallery) < 2:
            raise ValueError(f"whitening needs two gallery items or more, got {len(gallery)}")
        dim = min(self.dim or width, len(gallery) - 1)
        self.notes = [
            *_lost(rankings, "pca_whitening"),
            f"pca_whitening is fitted on the gallery of {len(gallery)} items that is searched; another "
            "gallery would give other distances",
        ]
        if dim < (self.dim or width):
            self.notes.append(
                f"{len(gallery)} gallery items vary in {dim} directions at most; dim is clipped to that"
            )
        whitening = Whitening.fit(gallery, dim, eps=self.eps, distance=rankings.distance)
        moved: Tensor = whitening.apply(gallery)
        same = rankings.queries is gallery
        return rankings.moved(queries=moved if same else whitening.apply(rankings.queries), gallery=moved)
