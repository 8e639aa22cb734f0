"""How deep a postprocessor looks: to its own top_n, whatever depth the metrics ask for."""

from __future__ import annotations

from dataclasses import replace

import torch

from metricli.core.rankings import Rankings
from metricli.core.results import SearchResult

__all__ = ["deepened", "shifted"]


def deepened(rankings: Rankings, width: int) -> Rankings:
    """`rankings` with `width` columns at least, or as many as the gallery has items; a cut one stays.

    So what is re-ranked or kept, and with it every metric, does not depend on which other k are asked for.
    """
    width = min(width, len(rankings.gallery))
    if rankings.found is None:  # nobody has made an order yet: it is searched once, as deep as need be
        return rankings if rankings.k >= width else replace(rankings, k=width)
    result = rankings.result
    have = result.indices.shape[1]
    if result.cut or have >= width:
        return rankings
    deeper = rankings.neighbours(width)
    tail = SearchResult(deeper.indices[:, have:], deeper.distances[:, have:])
    return replace(rankings, found=shifted(result, tail), k=width)


def shifted(top: SearchResult, tail: SearchResult) -> SearchResult:
    """`top` (Q, n) and behind it `tail` (Q, m), the distances of the tail raised where they would descend."""
    if tail.indices.shape[1] == 0:
        return top
    low, high = tail.distances[:, :1], top.distances[:, -1:]
    raised = torch.where(low.isfinite() & high.isfinite(), (high - low).clamp_min(0), 0.0)
    return SearchResult(
        torch.cat([top.indices, tail.indices], 1),
        torch.cat([top.distances, torch.maximum(tail.distances + raised, high)], 1),
        top.cut,
    )
