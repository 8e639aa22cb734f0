"""Verification metrics: is a pair of one label, told by its distance alone; worked out in docs/metrics.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metricli.core.metrics import asked_for
from metricli.core.results import PairHistogram

__all__ = ["Verification", "roc_auc_bound", "verification_metrics"]


@dataclass(frozen=True)
class Verification:
    """Metrics of each group and the distances that they are taken at, both by printed name, (C,) float64."""

    values: dict[str, Tensor]
    thresholds: dict[str, Tensor]
    """A pair matches if its distance is below. roc_auc has none."""
    rates: dict[str, Tensor]
    """The false match rate at the thresholds of fnmr and tar: what was asked for, or less."""


def verification_metrics(pairs: PairHistogram, **asked: Any) -> Verification:
    """The verification metrics of each group of `pairs`; keys of other families in `asked` are passed over.

    A threshold is an edge of a bin, so it is the right one to within one bin. NaN, threshold and value, where
    there is no genuine or no impostor pair.

    fnmr@x: the share of genuine pairs that are not below the largest edge which at most a share x of the
    impostors are below; with x under 1 / impostors, the largest which none is below. tar@x: 1 - fnmr@x. eer:
    where the lines of both error rates over the edges cross; of several such places, the nearest. roc_auc:
    P(genuine < impostor) + P(equal) / 2, where distances of one bin are equal.

    Raises:
        TypeError: a key that is no metric.
        ValueError: a share outside (0, 1).
    """
    genuine, impostor = _below(pairs.genuine), _below(pairs.impostor)
    empty = (genuine[:, -1] == 0) | (impostor[:, -1] == 0)
    fmr = impostor / impostor[:, -1:]
    tar = genuine / genuine[:, -1:]
    fnmr = (genuine[:, -1:] - genuine) / genuine[:, -1:]
    found = Verification({}, {}, {})
    for each in asked_for(asked, "verification"):
        if each.key == "roc_auc":
            found.values[each.name] = torch.trapezoid(tar, fmr, dim=1).masked_fill(empty, torch.nan)
            continue
        if each.key == "eer":
            value, threshold = _crossing(fmr, fnmr, pairs.edges)
        else:
            if not 0 < each.at < 1:
                raise ValueError(f"{each.key} needs shares between 0 and 1, got {each.at!r}")
            place = (fmr <= each.at).sum(1, keepdim=True).sub(1).clamp_min(0)
            value = (fnmr if each.key == "fnmr" else tar).gather(1, place)[:, 0]
            threshold = pairs.edges[place[:, 0]]
            found.rates[each.name] = fmr.gather(1, place)[:, 0].masked_fill(empty, torch.nan)
        found.values[each.name] = value.masked_fill(empty, torch.nan)
        found.thresholds[each.name] = threshold.masked_fill(empty, torch.nan)
    return found


def roc_auc_bound(pairs: PairHistogram) -> Tensor:
    """How far each group's roc_auc may be from that of the distances themselves, (C,) float64.

    It is half the share of pairs of a genuine and an impostor distance that lie in one bin.
    """
    genuine, impostor = (
        x / x.sum(1, keepdim=True) for x in (pairs.genuine.double(), pairs.impostor.double())
    )
    return genuine.mul(impostor).sum(1) / 2


def _below(counts: Tensor) -> Tensor:
    """How many pairs of each group are below each edge, (C, B + 1) float64."""
    return torch.nn.functional.pad(counts.cumsum(1), (1, 0)).double()


def _crossing(fmr: Tensor, fnmr: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Where the rising `fmr` meets the falling `fnmr`, both (C, B + 1): rate and distance (C,)."""
    gap = fmr - fnmr  # from -1 at the first edge to 1 at the last
    after = (gap < 0).sum(1, keepdim=True).clamp(1, len(edges) - 1)
    before = after - 1
    part = gap.gather(1, before) / (gap.gather(1, before) - gap.gather(1, after))
    rate = fmr.gather(1, before).lerp(fmr.gather(1, after), part)[:, 0]
    return rate, edges[before].lerp(edges[after], part)[:, 0]
