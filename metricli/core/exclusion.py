"""Which gallery items a query may not find: itself, those of its sequence, those outside its group."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["NOTHING", "Exclusion", "count_matches", "equal_pairs", "joint_codes"]


@dataclass(frozen=True)
class Exclusion:
    """Pairs of a query and an item that may not be retrieved, by int64 codes (Q,) and (G,) of both sides.

    Equal ids: one item. Equal sequences, but for -1, which is none: images that must not find each other.
    Different groups: a search restricted to the query's own group.
    """

    query_ids: Tensor | None = None
    gallery_ids: Tensor | None = None
    query_sequences: Tensor | None = None
    gallery_sequences: Tensor | None = None
    query_groups: Tensor | None = None
    gallery_groups: Tensor | None = None

    def check(self, num_queries: int, num_gallery: int) -> None:
        """Refuse codes that do not fit.

        Raises:
            ValueError: codes of one side only, or of a shape that is not (Q,) or (G,).
        """
        for what in ("ids", "sequences", "groups"):
            sides = getattr(self, f"query_{what}"), getattr(self, f"gallery_{what}")
            if sides == (None, None):
                continue
            if sides[0] is None or sides[1] is None:
                raise ValueError(f"query_{what} and gallery_{what} must be given together")
            for name, codes, rows in zip(
                ("query", "gallery"), sides, (num_queries, num_gallery), strict=True
            ):
                if codes.shape != (rows,):
                    raise ValueError(f"{name}_{what} must have shape ({rows},), got {tuple(codes.shape)}")

    @property
    def symmetric(self) -> bool:
        """Whether the codes of both sides are equal, so that a pair is excluded either way round or not."""
        sides = (
            (getattr(self, f"query_{what}"), getattr(self, f"gallery_{what}"))
            for what in ("ids", "sequences", "groups")
        )
        return all(q is g or (q is not None and g is not None and torch.equal(q, g)) for q, g in sides)

    def both(self, what: str) -> Tensor | None:
        """Codes of the queries and then of the gallery (Q + G,), or None."""
        query, gallery = getattr(self, f"query_{what}"), getattr(self, f"gallery_{what}")
        return None if query is None or gallery is None else torch.cat([query, gallery])

    def of_queries(self, part: slice) -> Exclusion:
        """The rules for some of the queries."""
        query = {f"query_{what}": getattr(self, f"query_{what}") for what in ("ids", "sequences", "groups")}
        return replace(
            self, **{name: None if codes is None else codes[part] for name, codes in query.items()}
        )

    def apply_(self, scores: Tensor, queries: slice | Tensor, gallery: slice | Tensor) -> None:
        """Set the excluded pairs of `scores` (the chosen queries x the chosen gallery rows) to infinity."""
        if self.query_ids is not None and self.gallery_ids is not None:
            _mask_equal_(scores, self.query_ids[queries], self.gallery_ids[gallery])
        if self.query_sequences is not None and self.gallery_sequences is not None:
            wanted = self.query_sequences[queries]
            _mask_equal_(scores, wanted, self.gallery_sequences[gallery], counted=wanted >= 0)
        if self.query_groups is not None and self.gallery_groups is not None:
            scores.masked_fill_(
                self.query_groups[queries][:, None] != self.gallery_groups[gallery], torch.inf
            )

    def hides(self, queries: Tensor, items: Tensor) -> Tensor:
        """Whether each of the gallery rows `items` (n, m) is excluded for its query of `queries` (n,)."""
        hidden = torch.zeros(items.shape, dtype=torch.bool, device=items.device)
        if self.query_ids is not None and self.gallery_ids is not None:
            hidden |= self.query_ids[queries][:, None] == self.gallery_ids[items]
        if self.query_sequences is not None and self.gallery_sequences is not None:
            wanted = self.query_sequences[queries][:, None]
            hidden |= (wanted == self.gallery_sequences[items]) & (wanted >= 0)
        if self.query_groups is not None and self.gallery_groups is not None:
            hidden |= self.query_groups[queries][:, None] != self.gallery_groups[items]
        return hidden


NOTHING = Exclusion()


def _mask_equal_(scores: Tensor, query: Tensor, gallery: Tensor, counted: Tensor | None = None) -> None:
    pairs = equal_pairs(query, gallery, most=scores.numel() // 64, counted=counted)
    if pairs is not None:
        scores[pairs] = torch.inf
        return
    equal = query[:, None] == gallery
    if counted is not None:
        equal &= counted[:, None]
    scores.masked_fill_(equal, torch.inf)


def equal_pairs(
    query: Tensor, gallery: Tensor, *, most: int, counted: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """Rows and columns (P,) of the equal codes of `query` (n,) and `gallery` (m,), by row; None above `most`.

    Rows that are not `counted` (n,) have none.
    """
    ordered, order = gallery.sort()
    first = torch.searchsorted(ordered, query)
    counts = torch.searchsorted(ordered, query, right=True) - first
    if counted is not None:
        counts *= counted
    total = int(counts.sum())
    if total > most:  # the list would take more memory than the block itself
        return None
    rows = torch.repeat_interleave(counts, output_size=total)
    starts = first - (counts.cumsum(0) - counts)
    return rows, order[torch.arange(total, device=query.device) + starts[rows]]


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
