"""An open-set split: the labels that judge are none of those that train."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from metricli.data.writing import Row

__all__ = ["judged_rows", "validation_labels"]

_FEWEST = 2
"""Labels that either side needs: with one alone every image is a match, or no pair a negative."""


def validation_labels(images: Mapping[str, int], *, share: float, seed: int) -> set[str]:
    """The labels that judge: a function of their names, the share and the seed alone.

    Labels of one image are divided apart from the others, for they neither ask nor form a positive pair. None
    judges where fewer than four labels have two images.

    Args:
        images: how many each label has.
        share: of the labels, between 0 and 1.
        seed: another one gives another split.
    """
    several = [label for label, count in images.items() if count > 1]
    single = [label for label, count in images.items() if count == 1]
    if share <= 0 or len(several) < 2 * _FEWEST:
        return set()
    wanted = min(max(round(share * len(several)), _FEWEST), len(several) - _FEWEST)
    chosen = _drawn(several, seed)[:wanted] + _drawn(single, seed)[: round(share * len(single))]
    return set(chosen)


def _drawn(labels: Sequence[str], seed: int) -> list[str]:
    """In an order that looks random, and in which two labels keep their order whatever others there are."""
    return sorted(labels, key=lambda label: hashlib.sha256(f"{seed}/{label}".encode()).digest())


def judged_rows(images: Sequence[tuple[str, str]], split: str) -> list[Row]:
    """Rows, one-versus-rest, of (label, path); one that is alone of its label is found, and does not ask."""
    counts = Counter(label for label, _ in images)
    return [Row(label, path, split, counts[label] > 1, True) for label, path in images]
