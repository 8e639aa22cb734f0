"""Metrics that are not of a ranking: of all pairs of a query and an item, and of the embeddings alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metricli.core.health import health_metrics
from metricli.core.metrics import merge
from metricli.core.rankings import Rankings
from metricli.core.results import SearchResult, Survey
from metricli.core.verification import Verification, verification_metrics
from metricli.reports import Metrics
from metricli.runs.protocol import Protocol

RESOLUTION = 2048
"""Bins of an octave of the squared distance: a threshold is right to a part in 4,000."""
_ALL_BINS = 2**22
_COARSE = 128
_NOTABLE = 0.9
_PAIRS = 10


def group_resolution(categories: int) -> int:
    """Bins of an octave for each of so many categories: as fine as memory allows."""
    finest = RESOLUTION
    while finest > 8 and finest * 32 * categories > _ALL_BINS:
        finest //= 2
    return finest


@dataclass(frozen=True)
class Verified:
    """Verification metrics and the distances at their operating points, for OVERALL and each category."""

    values: Metrics = field(default_factory=dict)
    thresholds: Metrics = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def verified(found: Survey, categories: list[str], asked: dict[str, Any]) -> Verified:
    """What the pairs of a survey say."""
    if found.pairs is None:
        return Verified()
    assert found.group_pairs is not None
    whole = verification_metrics(found.pairs, **asked)
    parts = verification_metrics(found.group_pairs, **asked)

    def joined(kind: str) -> Metrics:
        sides = getattr(whole, kind), getattr(parts, kind)
        return merge({}, {name: torch.cat([sides[0][name], sides[1][name]]) for name in sides[0]}, categories)

    notes = _notes(whole, int(found.pairs.impostor.sum()))
    finest = group_resolution(len(categories))
    if finest < _COARSE and categories:
        notes.append(
            f"the pairs of {len(categories)} categories are counted in steps of {50 / finest:.2g}% of the "
            "distance; those of OVERALL in fine ones"
        )
    return Verified(joined("values"), joined("thresholds"), notes)


def _notes(whole: Verification, impostors: int) -> list[str]:
    """Operating points that cannot be met because many impostor pairs are equally far."""
    notes = []
    for name, rate in whole.rates.items():
        wanted, found = float(name.partition("@")[2]), float(rate[0])
        if wanted * impostors >= _PAIRS and found < _NOTABLE * wanted:
            notes.append(
                f"{name} is taken at a false match rate of {found:.3g}: many impostor pairs are equally far"
            )
        elif wanted * impostors < 1:
            notes.append(
                f"{name} is taken where no impostor pair matches: there are only {impostors} of them"
            )
    return notes


def health(
    rankings: Rankings, result: SearchResult, protocol: Protocol, asked: dict[str, Any]
) -> dict[str, Tensor]:
    """Health of what is judged, each row once: the queries, and the gallery items that are none.

    A gallery with embeddings of its own is not judged.
    """
    queries, gallery, exclude = rankings.queries, rankings.gallery, protocol.exclude
    assert exclude.query_ids is not None
    assert exclude.gallery_ids is not None
    more = ~torch.isin(exclude.gallery_ids, exclude.query_ids)
    if protocol.other is not None:
        more = torch.zeros_like(more)
    device, kept = queries.device, more.cpu()
    return health_metrics(
        queries if not bool(kept.any()) else torch.cat([queries, gallery[more]]),
        torch.cat([protocol.query_labels, protocol.gallery_labels[more]]),
        (result if rankings.found is None else rankings.neighbours(rankings.k)).indices,
        len(gallery),
        codes=torch.cat([protocol.codes, protocol.gallery_codes[kept]]).to(device),
        query_codes=protocol.codes.to(device),
        num_categories=len(protocol.categories),
        **asked,
    )
