"""The gallery ranked for every query, as postprocessors take it and give it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from metricli.core.distances import Distance
from metricli.core.exclusion import Exclusion
from metricli.core.results import SearchResult
from metricli.core.retrieval import search

__all__ = ["Images", "Rankings", "Searcher"]

Searcher = Callable[..., SearchResult]
"""`search`, or something with its arguments `(queries, gallery, *, k, distance, exclude)`."""

Images = Callable[[Tensor], Tensor]
"""Positions (n,) int64 of queries (or of gallery items) -> their images (n, 3, H, W), transformed."""


@dataclass(frozen=True)
class Rankings:
    """Queries, gallery, the rules of the search, and the ranking they give.

    A postprocessor is a callable from Rankings to Rankings. One that changes embeddings uses `moved`, and the
    search is done anew, when the ranking is asked for; one that changes the order uses `reordered`.
    """

    queries: Tensor
    """(Q, D)"""
    gallery: Tensor
    """(G, D); the same object as `queries` where every row is both."""
    distance: Distance
    exclude: Exclusion
    k: int
    """Columns of `result`."""
    found: SearchResult | None = None
    """The order that a postprocessor made; None: that of the distances."""
    searcher: Searcher = search
    query_images: Images | None = None
    """None where there are only embeddings, as with saved features."""
    gallery_images: Images | None = None
    _cache: dict[int, SearchResult] = field(default_factory=dict, repr=False, compare=False)

    @property
    def result(self) -> SearchResult:
        """The ranking (Q, k), searched when first asked for."""
        return self.found if self.found is not None else self.neighbours(self.k)

    @property
    def untouched(self) -> bool:
        """Whether nobody has asked for a ranking or made one."""
        return self.found is None and not self._cache

    def neighbours(self, k: int) -> SearchResult:
        """The `k` nearest items (Q, k) by the distances of the embeddings, whatever order was made since."""
        deepest = max(self._cache, default=0)
        if deepest < k:
            self._cache[k] = self.searcher(
                self.queries, self.gallery, k=k, distance=self.distance, exclude=self.exclude
            )
            deepest = k
        found = self._cache[deepest]
        return SearchResult(found.indices[:, :k], found.distances[:, :k])

    def moved(self, *, queries: Tensor | None = None, gallery: Tensor | None = None) -> Rankings:
        """With other embeddings, to be searched anew; the order that was made is forgotten."""
        return replace(
            self,
            queries=self.queries if queries is None else queries,
            gallery=self.gallery if gallery is None else gallery,
            found=None,
            _cache={},
        )

    def reordered(self, result: SearchResult) -> Rankings:
        """With another order (Q, k) of the items that were retrieved."""
        return replace(self, found=result)
