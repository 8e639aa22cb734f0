"""Small rankings to try postprocessors on, and OML's own postprocessors."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metricli.core.exclusion import NOTHING, Exclusion
from metricli.core.rankings import Rankings
from metricli.core.results import SearchResult


def rankings_of(num_queries: int = 12, num: int = 60, k: int = 10, **given: Any) -> Rankings:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 6, generator=generator)
    rows = centres[torch.arange(num_queries + num) % 8]
    rows = rows + 0.5 * torch.randn(num_queries + num, 6, generator=generator)
    return Rankings(
        rows[:num_queries],
        rows[num_queries:],
        given.pop("distance", "cosine"),
        given.pop("exclude", NOTHING),
        k,
        **given,
    )


def one_versus_rest(num: int = 40, k: int = 10, sequences: Tensor | None = None) -> Rankings:
    rows, ids = rankings_of(0, num).gallery, torch.arange(num)
    return Rankings(rows, rows, "cosine", Exclusion(ids, ids, sequences, sequences), k)


def listed(*rows: list[float], width: int = 5) -> Rankings:
    """Rankings whose result has these distances, filled up with nothing."""
    distances = torch.full((len(rows), width), torch.inf)
    for row, values in zip(distances, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    indices = torch.arange(width).expand(len(rows), -1).masked_fill(distances.isinf(), -1)
    whole = rankings_of(len(rows), 60, width)
    return whole.reordered(SearchResult(indices, distances))


def rows_of(result: SearchResult) -> list[list[int]]:
    return [[item for item in row if item >= 0] for row in result.indices.tolist()]


def oml_modules() -> Any:
    """OML's modules of thresholds and of its pairwise re-ranker."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("oml")
        import oml.retrieval.postprocessors.algo as algo
        import oml.retrieval.postprocessors.pairwise as pairwise
    return algo, pairwise


class Far(nn.Module):
    """Ranks by the distance of the second coordinate alone, and remembers its calls."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign, self.calls = sign, []
        self.inner = nn.Dropout(0.9)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.calls.append((len(a), self.training, self.inner.training, torch.is_inference_mode_enabled()))
        return self.inner(self.sign * (a.flatten(1)[:, 1] - b.flatten(1)[:, 1]).abs())
