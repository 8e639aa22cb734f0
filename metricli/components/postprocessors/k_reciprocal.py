"""k-reciprocal re-ranking of the first items of each ranking."""

from __future__ import annotations

import torch

from metricli.components.postprocessors.depth import deepened, shifted
from metricli.core.exclusion import Exclusion
from metricli.core.rankings import Rankings
from metricli.core.reranking import nodes_of, rerank
from metricli.core.results import SearchResult

__all__ = ["KReciprocal"]


class KReciprocal:
    """The first `top_n` of each ranking by (1 - lambda) * Jaccard distance + lambda * normalised distance.

    Zhong, Zheng, Cao and Li, Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017; see
    core.reranking. The graph of neighbours is over all images, the queries too, whatever may find what: as in
    the paper, it uses no label. The order of the `top_n` is theirs in the paper's computation over all pairs;
    items behind stay there, with distances raised so that the row ascends. With `top_n` None, all that the
    result has is re-ranked.

    Raises:
        ValueError: `k1`, `k2` or `top_n` below 1, `k2` above `k1`, or `lambda_value` outside [0, 1]; in the
            call: a ranking that was cut.
    """

    def __init__(
        self, *, k1: int = 20, k2: int = 6, lambda_value: float = 0.3, top_n: int | None = 100
    ) -> None:
        for name, value in (("k1", k1), ("k2", k2), ("top_n", top_n)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        if k2 > k1:
            raise ValueError(f"k2 must be at most k1, got k2 {k2!r} and k1 {k1!r}")
        if not 0 <= lambda_value <= 1:
            raise ValueError(f"lambda_value must be from 0 to 1, got {lambda_value!r}")
        self.k1, self.k2, self.lambda_value, self.top_n = k1, k2, lambda_value, top_n
        self.notes: list[str] = []

    def __call__(self, rankings: Rankings) -> Rankings:
        """Reorder the result of `rankings`, which gets `top_n` columns if it has fewer."""
        if rankings.result.cut:
            raise ValueError("k_reciprocal cannot re-rank a ranking that a threshold has cut; put it before")
        self.notes = []
        rankings = deepened(rankings, self.top_n or rankings.k)
        result, exclude = rankings.result, rankings.exclude
        if result.indices.numel() == 0:
            return rankings
        nodes = nodes_of(rankings.queries, rankings.gallery, exclude.query_ids, exclude.gallery_ids)
        if nodes.doubled:
            self.notes.append(
                f"{nodes.doubled} of {len(rankings.queries)} queries are gallery items of another embedding; "
                "k_reciprocal takes them for two images"
            )
        num = len(nodes.rows)
        if num - 1 < self.k1:
            self.notes.append(f"k1 {self.k1} is more than the {num - 1} other images; it is clipped to them")
        ids = torch.arange(num, device=nodes.rows.device)
        neighbours = ids[:, None]
        if num > 1:
            found = rankings.searcher(
                nodes.rows,
                nodes.rows,
                k=min(self.k1, num - 1),
                distance=rankings.distance,
                exclude=Exclusion(ids, ids),
            )
            neighbours = torch.cat([neighbours, found.indices], 1)
        width = self.top_n or result.indices.shape[1]
        top = rerank(
            nodes,
            neighbours,
            SearchResult(result.indices[:, :width], result.distances[:, :width]),
            k1=self.k1,
            k2=self.k2,
            lambda_value=self.lambda_value,
            distance=rankings.distance,
        )
        tail = SearchResult(result.indices[:, width:], result.distances[:, width:])
        return rankings.reordered(shifted(top, tail))
