"""Distances of all pairs, counted in bins, from the bounds of a scan."""

from __future__ import annotations

import torch
from torch import Tensor

from metricli.core.exclusion import equal_pairs
from metricli.core.results import PairHistogram
from metricli.core.scan import Block, Scan

__all__ = ["PairCounter"]


class PairCounter:
    """Counts the allowed pairs of each block by distance, in `bins` of equal width.

    Bounds are below the squared gaps by less than the rounding of the product, which is many times finer
    than a useful bin. `groups` (Q,) int64 are rows of the histogram, -1 for a query in none.
    """

    def __init__(
        self, scan: Scan, bins: int, labels: tuple[Tensor, Tensor], groups: Tensor, num_groups: int
    ) -> None:
        self.scan, self.bins, self.groups = scan, bins, groups
        self.query_labels, self.gallery_labels = labels
        device, space = groups.device, scan.space
        if space.distance == "cosine":
            self.upper = 2.0
        else:
            sides = [squares.amax().sqrt() for squares in (scan.query_squares, scan.gallery_squares)]
            self.upper = float(sides[0] + sides[1]) * (1 + 1e-6) / space.unit or 1.0
        self._every = torch.zeros(num_groups, bins + 1, dtype=torch.int64, device=device)
        self._genuine = torch.zeros_like(self._every)
        middle = space.gamma * scan.gallery_squares.mean()
        self._offset = (scan.query_squares * space.gamma + middle).to(space.bound_dtype)
        self._bin = torch.empty(0, dtype=torch.int32, device=device)

    def count(self, block: Block, buffer: Tensor) -> None:
        """Take the block; `buffer` has room for as many floats."""
        first, others = block.scores[:, : block.own], block.scores[:, block.own :]
        self._count(block.queries, block.gallery[: block.own], first, buffer)
        if others.shape[1] == 0:
            return
        codes = torch.cat([self.groups[block.queries], self.groups[block.gallery[block.own :]]])
        alike = bool((codes == codes[0]).all())
        self._count(block.queries, block.gallery[block.own :], others, buffer, times=2 if alike else 1)
        if not alike:
            self._count(block.gallery[block.own :], block.queries, others.T, buffer)

    def _count(
        self, queries: Tensor, gallery: Tensor, scores: Tensor, buffer: Tensor, times: int = 1
    ) -> None:
        if scores.numel() == 0:
            return
        bins = self._bins(queries, scores, buffer)
        codes = self.groups[queries]
        runs, lengths = torch.unique_consecutive(codes, return_counts=True)
        start = 0
        for code, length in zip(runs.tolist(), lengths.tolist(), strict=True):
            if code >= 0:
                mine = bins[start : start + length].reshape(-1)
                self._every[code] += times * torch.bincount(mine, minlength=self.bins + 1)
            start += length
        labels = self.query_labels[queries], self.gallery_labels[gallery]
        pairs = equal_pairs(*labels, most=scores.numel() // 64, counted=codes >= 0)
        if pairs is not None:
            self._add(codes[pairs[0]], bins[pairs], times)
            return
        step = max(1, len(queries) // 64)
        for at in range(0, len(queries), step):
            part = slice(at, at + step)
            equal = (labels[0][part, None] == labels[1]) & (codes[part, None] >= 0)
            row = equal.nonzero()[:, 0]
            self._add(codes[part][row], bins[part][equal], times)

    def _bins(self, queries: Tensor, scores: Tensor, buffer: Tensor) -> Tensor:
        """The bin (n, m) int32 of each score; that behind the last for excluded pairs and the upper edge."""
        values = buffer[: scores.numel()].view(scores.shape)
        if len(self._bin) < scores.numel():
            self._bin = torch.empty(len(buffer), dtype=torch.int32, device=buffer.device)
        torch.add(scores, self._offset[queries][:, None], out=values)
        if self.scan.space.distance == "cosine":
            values.mul_(self.bins / self.upper / 2).clamp_(0, self.bins)
        else:
            scale = self.bins / self.upper / self.scan.space.unit
            values.clamp_min_(0).sqrt_().mul_(scale).clamp_max_(self.bins)
        return self._bin[: scores.numel()].view(scores.shape).copy_(values)

    def _add(self, codes: Tensor, bins: Tensor, times: int) -> None:
        keys = codes * (self.bins + 1) + bins
        self._genuine.view(-1).scatter_add_(0, keys, torch.full_like(keys, times))

    def histogram(self, allowed: Tensor, relevant: Tensor) -> PairHistogram:
        """What was counted, from the numbers of `allowed` and of `relevant` items of each query (Q,).

        What these leave over of the bin behind the last was at the upper edge.
        """
        edges = torch.linspace(0, self.upper, self.bins + 1, dtype=torch.float64)
        sides = []
        for counts, per_query in ((self._every, allowed), (self._genuine, relevant)):
            inside = self.groups >= 0
            total = torch.zeros(len(counts), dtype=torch.int64, device=counts.device)
            total.scatter_add_(0, self.groups[inside], per_query[inside])
            kept = counts[:, :-1].clone()
            kept[:, -1] += total - kept.sum(1)
            sides.append(kept)
        every, genuine = sides
        return PairHistogram(edges.to(every.device), genuine, every - genuine)
