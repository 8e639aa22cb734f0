"""Which gallery items a query may not find: itself by id, and those of its own sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Exclusion", "checked_codes", "count_matches", "joint_codes"]


@dataclass(frozen=True)
class Exclusion:
    """Codes of both sides: a pair with equal ids, or with equal sequences >= 0, may not be retrieved."""

    query_ids: Tensor | None = None
    gallery_ids: Tensor | None = None
    query_sequences: Tensor | None = None
    gallery_sequences: Tensor | None = None

    def apply_(self, scores: Tensor, queries: slice | Tensor, gallery: slice) -> None:
        """Set the excluded pairs of `scores` (the chosen queries x the chosen gallery rows) to infinity."""
        if self.query_ids is not None and self.gallery_ids is not None:
            _mask_equal_(scores, self.query_ids[queries], self.gallery_ids[gallery])
        if self.query_sequences is not None and self.gallery_sequences is not None:
            wanted = self.query_sequences[queries]
            _mask_equal_(scores, wanted, self.gallery_sequences[gallery], counted=wanted >= 0)


def checked_codes(
    query_codes: Tensor | None, gallery_codes: Tensor | None, what: str, num_queries: int, num_gallery: int
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Both sides' codes, or (None, None) if neither is given.

    Raises:
        ValueError: only one side is given, or a shape is not (Q,) or (G,).
    """
    if query_codes is None and gallery_codes is None:
        return None, None
    if query_codes is None or gallery_codes is None:
        raise ValueError(f"query_{what} and gallery_{what} must be given together")
    for name, codes, rows in (("query", query_codes, num_queries), ("gallery", gallery_codes, num_gallery)):
        if codes.shape != (rows,):
            raise ValueError(f"{name}_{what} must have shape ({rows},), got {tuple(codes.shape)}")
    return query_codes, gallery_codes


def _mask_equal_(scores: Tensor, query: Tensor, gallery: Tensor, counted: Tensor | None = None) -> None:
    ordered, order = gallery.sort()
    first = torch.searchsorted(ordered, query)
    counts = torch.searchsorted(ordered, query, right=True) - first
    if counted is not None:
        counts *= counted
    total = int(counts.sum())
    if total == 0:
        return
    if total > scores.numel() // 64:  # listing the pairs would take more memory than the block itself
        equal = query[:, None] == gallery
        if counted is not None:
            equal &= counted[:, None]
        scores.masked_fill_(equal, torch.inf)
        return
    rows = torch.repeat_interleave(counts, output_size=total)
    starts = first - (counts.cumsum(0) - counts)
    columns = order[torch.arange(total, device=scores.device) + starts[rows]]
    scores[rows, columns] = torch.inf


def count_matches(query: Tensor, gallery: Tensor) -> Tensor:
    """For each code of `query` (Q,), how often it occurs in `gallery` (G,): (Q,) int64."""
    if len(query) == 0:
        return torch.zeros(0, dtype=torch.int64, device=query.device)
    codes: Tensor = torch.unique(torch.cat([query, gallery]), return_inverse=True)[1]
    occurrences: Tensor = torch.bincount(codes[len(query) :], minlength=int(codes.max()) + 1)
    return occurrences[codes[: len(query)]]


def joint_codes(first: Tensor, second: Tensor) -> Tensor:
    """One int64 code for each distinct pair (first[i], second[i])."""
    a: Tensor = torch.unique(first, return_inverse=True)[1]
    b: Tensor = torch.unique(second, return_inverse=True)[1]
    return a * (len(b) + 1) + b
