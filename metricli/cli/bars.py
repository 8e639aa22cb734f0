"""Histograms as lines of characters: parts of text, each with its style."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metricli.reports import PairHistogram

Line = list[tuple[str, str]]

_BINS = 12
"""Lines of a histogram of distances."""
_LONG = 24


def sign() -> str:
    """What bars are made of: blocks on a terminal that has them, else `#`."""
    has = sys.stdout.isatty() and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return "█" if has else "#"


def one_side(bins: Sequence[tuple[str, int]], sign: str) -> list[Line]:
    """Name, count and bar of each bin."""
    most = max(count for _, count in bins)
    names, counts = max(len(name) for name, _ in bins), len(str(most))
    return [
        [(f"{name:<{names}}  {count:<{counts}}  ", ""), (_bar(count / max(1, most), _LONG, sign), "cyan")]
        for name, count in bins
    ]


def two_sides(pairs: PairHistogram, distance: str, sign: str, width: int) -> list[Line]:
    """Genuine and impostor pairs beside each other, each as shares of its own total, in `width` columns."""
    together = max(1, len(pairs.genuine) // _BINS)
    edges = [*pairs.edges[:-1:together], pairs.edges[-1]]
    shares = [_shares(counts, together) for counts in (pairs.genuine, pairs.impostor)]
    most = max(map(max, shares))
    ranges = [f"{low:.3f} to {high:.3f}" for low, high in pairwise(edges)]
    first = max(map(len, ranges))
    long = max(8, (width - first - 2 * 12) // 2)
    drawn = "" if pairs.is_exact else ", drawn at random"
    counts = f"{sum(pairs.genuine):,} genuine and {sum(pairs.impostor):,} impostor pairs{drawn}"
    lines: list[Line] = [[(f"{distance} distances between the embeddings of {counts}", "")]]
    lines.append([(" " * (first + 11) + "genuine".ljust(long + 11) + "impostor", "dim")])
    for name, ours, others in zip(ranges, *shares, strict=True):
        line = [(f"{name:>{first}}", "")]
        for share, style in ((ours, "green"), (others, "red")):
            line += [
                (f"  {_percent(share):>7}  ", "dim"),
                (_bar(share / most, long, sign).ljust(long), style),
            ]
        lines.append(line)
    return lines


def _shares(counts: Sequence[int], together: int) -> list[float]:
    total = max(1, sum(counts))
    return [sum(counts[at : at + together]) / total for at in range(0, len(counts), together)]


def _bar(share: float, most: int, sign: str) -> str:
    """At most so many characters; what is not nothing is seen."""
    return sign * max(1, round(most * share)) if share > 0 else ""


def _percent(share: float) -> str:
    if share == 0:
        return ""
    return f"{100 * share:.1f} %" if share >= 5e-4 else "<0.1 %"
