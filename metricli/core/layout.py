"""The order in which rows are compared, and the strips of it that are worked on one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metricli.core.exclusion import Exclusion
from metricli.core.ranking import Space

__all__ = ["Layout", "Strip"]

_SMALL = 256  # queries of small groups that are searched together


@dataclass(frozen=True)
class Strip:
    """Queries first..last of the order against gallery rows low..high of the order."""

    first: int
    last: int
    low: int
    high: int


@dataclass(frozen=True)
class Layout:
    """The order in which rows are taken, so that those of a group stand together; None: as they come."""

    queries: Tensor
    gallery: Tensor
    bounds: Tensor
    """(n, 4) int64 on the CPU: for each group its queries and its gallery rows in the orders."""
    reachable: int
    """Gallery rows of the largest group."""
    plain: bool
    """Whether all rows are taken as they come."""

    @property
    def positions(self) -> Tensor:
        """(G,) where each gallery row stands in the order."""
        places = torch.empty_like(self.gallery)
        places[self.gallery] = torch.arange(len(places), device=places.device)
        return places

    @staticmethod
    def of(space: Space, exclude: Exclusion, sorted_by: Tensor | None) -> Layout:
        """Groups of `exclude` apart, and within them queries of one code of `sorted_by` (Q,) together."""
        device = space.queries.device
        queries = torch.arange(len(space.queries), device=device)
        gallery = torch.arange(len(space.gallery), device=device)
        same = space.queries is space.gallery
        if sorted_by is not None:
            queries = sorted_by.argsort(stable=True)
            gallery = queries if same else gallery
        codes = exclude.both("groups")
        if codes is None:
            bounds = torch.tensor([[0, len(queries), 0, len(gallery)]])
            return Layout(queries, gallery, bounds, len(gallery), sorted_by is None)
        codes = torch.unique(codes, return_inverse=True)[1]
        of_queries, of_gallery = codes[: len(queries)], codes[len(queries) :]
        queries = queries[of_queries[queries].argsort(stable=True)]
        gallery = gallery[of_gallery[gallery].argsort(stable=True)]
        num = int(codes.max()) + 1 if len(codes) else 0
        sizes = [torch.bincount(x, minlength=num).cpu() for x in (of_queries, of_gallery)]
        ends = [x.cumsum(0) for x in sizes]
        bounds = torch.stack([ends[0] - sizes[0], ends[0], ends[1] - sizes[1], ends[1]], 1)
        bounds = bounds[(sizes[0] > 0) & (sizes[1] > 0)]
        reachable = int((bounds[:, 3] - bounds[:, 2]).amax()) if len(bounds) else 0
        return Layout(queries, gallery, bounds, reachable, plain=False)

    def strips(self, height: int) -> Iterator[Strip]:
        """Strips of at most `height` queries: parts of a large group, or several small groups together."""
        first = last = low = high = -1
        for start, end, left, right in self.bounds.tolist():
            if first >= 0 and (end - first > min(_SMALL, height)):
                yield Strip(first, last, low, high)
                first = -1
            if end - start > min(_SMALL, height):
                for at in range(start, end, height):
                    yield Strip(at, min(at + height, end), left, right)
                continue
            if first < 0:
                first, low = start, left
            last, high = end, right
        if first >= 0:
            yield Strip(first, last, low, high)
