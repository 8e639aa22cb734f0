"""Distances of all pairs, counted in bins, from the bounds of a scan."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from metricli.core.blocks import Block
from metricli.core.exclusion import equal_pairs
from metricli.core.results import PairHistogram
from metricli.core.scan import Scan

__all__ = ["OCTAVES", "PairCounter"]

OCTAVES = 32
"""Powers of two of the squared gap, down from the largest possible, that have bins of their own."""
_MANTISSA = 23  # bits of a float32


class PairCounter:
    """Counts the allowed pairs of each block by distance, in bins that are wider the farther they lie.

    Each octave of the squared gap has `resolution` bins of equal width, so that crowded embeddings are told
    apart as well as spread ones; a bin is found from the bits of a float32. Bounds are below the squared gaps
    by less than the rounding of the product, which is finer than a useful bin.

    Args:
        scan: what is counted.
        labels: (Q,) and (G,) int64; pairs of one label are genuine.
        resolution: bins of an octave for all pairs, a power of two.
        groups: (Q,) int64 groups of the queries, -1 for none.
        num_groups: how many there are.
        group_resolution: bins of an octave for the pairs of a group, a power of two, at most `resolution`.
        query_squares, undirected: of all queries, where the scan may have a part: each has the same bins.
    """

    def __init__(
        self,
        scan: Scan,
        labels: tuple[Tensor, Tensor],
        *,
        resolution: int,
        groups: Tensor,
        num_groups: int,
        group_resolution: int,
        query_squares: Tensor,
        undirected: bool,
    ) -> None:
        self.scan, self.groups, self.bins = scan, groups, OCTAVES * resolution
        self.query_labels, self.gallery_labels = labels
        self._shift = _MANTISSA - (resolution.bit_length() - 1)
        self._merged = resolution // group_resolution
        self._base = (_bits(1.0) >> self._shift) - self.bins
        sides = [x.amax().sqrt() if len(x) else x.sum() for x in (query_squares, scan.gallery_squares)]
        largest = float((sides[0] + sides[1]).square()) * (1 + 1e-5)
        largest = max(largest, 2.0001) if undirected else largest
        self._scale = 1 / largest if largest > 0 else 1.0
        middle = scan.slack * scan.gallery_squares.mean()
        self._offset = (scan.query_squares * scan.slack + middle).mul(self._scale).float()
        device = groups.device
        self._all = [torch.zeros(1, self.bins, dtype=torch.int64, device=device) for _ in range(2)]
        shape = num_groups, self.bins // self._merged
        self._of_groups = [torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2)]
        self._lock = threading.Lock()

    def count(self, block: Block, buffer: Tensor) -> None:
        """Take the block, some queries at a time, by way of `buffer`, which has room for those of one."""
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
        """Scores (n, m) that each count `times`."""
        step = max(1, len(buffer) // max(1, scores.shape[1]))
        for at in range(0, len(queries), step):
            part = slice(at, at + step)
            self._count_part(queries[part], gallery, scores[part], buffer, times)

    def _count_part(
        self, queries: Tensor, gallery: Tensor, scores: Tensor, buffer: Tensor, times: int
    ) -> None:
        if scores.numel() == 0:
            return
        bins, codes = self._bins(queries, scores, buffer), self.groups[queries]
        runs, lengths = torch.unique_consecutive(codes, return_counts=True)
        start = 0
        for code, length in zip(runs.tolist(), lengths.tolist(), strict=True):
            self._add(0, code, bins[start : start + length].reshape(-1), times)
            start += length
        labels = self.query_labels[queries], self.gallery_labels[gallery]
        pairs = equal_pairs(*labels, most=scores.numel() // 64)
        if pairs is not None:
            self._genuine(codes[pairs[0]], bins[pairs], times)
            return
        step = max(1, len(queries) // 64)
        for at in range(0, len(queries), step):
            part = slice(at, at + step)
            equal = labels[0][part, None] == labels[1]
            self._genuine(codes[part][equal.nonzero()[:, 0]], bins[part][equal], times)

    def _bins(self, queries: Tensor, scores: Tensor, buffer: Tensor) -> Tensor:
        """The bin (n, m) int32 of each score; that behind the last for excluded pairs."""
        if scores.dtype != torch.float32:
            scores, buffer = scores.float(), buffer.float()
        values = buffer[: scores.numel()].view(scores.shape)
        torch.add(self._offset[queries][:, None], scores, alpha=self._scale, out=values)
        bins = values.view(torch.int32)
        return bins.bitwise_right_shift_(self._shift).sub_(self._base).clamp_(0, self.bins)

    def _genuine(self, codes: Tensor, bins: Tensor, times: int) -> None:
        if len(codes) == 0:
            return
        order = codes.argsort(stable=True)
        runs, lengths = torch.unique_consecutive(codes[order], return_counts=True)
        parts = torch.split(bins[order], lengths.tolist())
        for code, part in zip(runs.tolist(), parts, strict=True):
            self._add(1, code, part, times)

    def _add(self, side: int, code: int, bins: Tensor, times: int) -> None:
        if len(bins) * 8 < self.bins:
            bins = bins[bins < self.bins].long()
            with self._lock:
                self._all[side].view(-1).index_add_(0, bins, torch.full_like(bins, times))
                if code >= 0:
                    mine = self._of_groups[side][code]
                    mine.index_add_(0, bins // self._merged, torch.full_like(bins, times))
            return
        counts = torch.bincount(bins, minlength=self.bins + 1)[: self.bins].mul_(times)
        with self._lock:
            self._all[side] += counts
            if code >= 0:
                self._of_groups[side][code] += counts.view(-1, self._merged).sum(1)

    def histograms(self) -> tuple[PairHistogram, PairHistogram]:
        """All pairs in one row, and those of each group."""
        return self._histogram(self._all, 1), self._histogram(self._of_groups, self._merged)

    def _histogram(self, counts: list[Tensor], merged: int) -> PairHistogram:
        bits = torch.arange(self._base, self._base + self.bins + 1, merged, dtype=torch.int64)
        edges = bits.mul(2**self._shift).int().view(torch.float32).double() / self._scale
        edges[0] = 0
        space = self.scan.space
        edges = edges / 2 if space.distance == "cosine" else edges.sqrt() / space.unit
        return PairHistogram(edges.to(counts[0].device), counts[1], counts[0] - counts[1])


def _bits(value: float) -> int:
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))
