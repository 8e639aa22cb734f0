"""What the pictures of an evaluation show, chosen and measured; bounded, whatever the number of queries."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metricli.core.distances import pairwise_distances
from metricli.core.pictures import Side, distance_counts, draw, principal_map, times_found
from metricli.core.results import SearchResult
from metricli.data.images import DEFAULT_MAX_PIXELS
from metricli.data.table import Rows
from metricli.pages.model import (
    DistanceBars,
    EmbeddingMap,
    Hub,
    Hubs,
    Item,
    LabelRow,
    Pictures,
    QueryRow,
    Shown,
)
from metricli.reports import PairHistogram
from metricli.runs.directory import environment
from metricli.runs.evaluate import Evaluation
from metricli.runs.panels import panels_of
from metricli.runs.protocol import Protocol
from metricli.specs.validate import ValidationSpec

__all__ = ["MOST_LABELS", "MOST_POINTS", "MOST_QUERIES", "Catalogue", "pair_histogram", "pictures_of"]

MOST_POINTS = 1000
"""Of the map."""
MOST_LABELS = 500
MOST_QUERIES = 300
_HUBS = 10
_HUB_K = 10
_COLUMNS = 6
_DIMS = 16


@dataclass
class Catalogue:
    """The items that pictures name, each once, and what is known of a query and what it found."""

    protocol: Protocol
    result: SearchResult | None
    distance: Any
    items: list[Item] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._places: dict[tuple[str, int], int] = {}
        judged, other = self.protocol.judged, self.protocol.other or self.protocol.judged
        device = self.protocol.query_labels.device
        places = (torch.from_numpy(x).to(device) for x in (self.protocol.queries, self.protocol.gallery))
        self.queries = Side(judged.embeddings, next(places), self.protocol.query_labels)
        self.gallery = Side(other.embeddings, next(places), self.protocol.gallery_labels)

    def query(self, place: int) -> int:
        """The item of a query, by its place among the queries."""
        return self._item(self.protocol.judged.rows, int(self.protocol.queries[place]), "query")

    def found(self, place: int) -> int:
        """The item of a gallery row, by its place in the gallery."""
        row = int(self.protocol.gallery[place])
        if self.protocol.other is None:
            return self._item(self.protocol.judged.rows, row, "query")
        return self._item(self.protocol.gallery_rows, row, "gallery")

    def _item(self, rows: Rows, row: int, side: Any) -> int:
        key = (side, row)
        if key not in self._places:
            self._places[key] = len(self.items)
            box = None if rows.boxes is None else rows.boxes[row].tolist()
            self.items.append(
                Item(
                    row=int(rows.index[row]) + 1,
                    path=str(rows.paths[row]),
                    label=str(rows.labels[row]),
                    category=str(rows.categories[row]),
                    box=None if box is None or box[0] < 0 else tuple(box),
                    side=side,
                )
            )
        return self._places[key]

    def apart(self, query: int, places: Tensor) -> Tensor:
        """The distances (n,) of a query and some gallery places, float64 on the CPU."""
        device = self.queries.labels.device
        one = self.queries.rows(torch.tensor([query], device=device))
        items = self.gallery.rows(places.to(device))
        return pairwise_distances(one, items, self.distance)[0].double().cpu().clamp_min(0)


def pictures_of(
    found: Evaluation,
    validation: ValidationSpec,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    epoch: int | None = None,
    spec: Mapping[str, Any] | None = None,
    command: str = "",
    pairs: PairHistogram | None = None,
) -> Pictures:
    """The pictures of an evaluation, in the main process.

    Args:
        found: it.
        validation: the rules that it followed.
        max_pixels: more than which no image has.
        epoch: of the run, if it is one of a run.
        spec: the resolved spec, to be shown.
        command: how to make it again.
        pairs: its `pair_histogram`, where that is known.
    """
    protocol = found.protocol
    values = {name: tensor.cpu().double().numpy() for name, tensor in found.per_query.items()}
    metric = _leading(values, validation)
    shown = _columns(values, metric)
    known = Catalogue(protocol, found.result, validation.distance)
    by = values[metric] if metric else None
    untouched = not validation.postprocessors and validation.search.index is None
    panels = panels_of(known, by, searchable=untouched)
    labels, labels_in_all = _labels(protocol, shown, metric)
    return Pictures(
        epoch=epoch,
        distance=validation.distance,
        root=str(protocol.judged.rows.root.absolute()),
        gallery_root=str(protocol.gallery_rows.root.absolute()),
        max_pixels=max_pixels,
        postprocessors=[spec.name for spec in validation.postprocessors],  # type: ignore[attr-defined]
        metric=metric,
        columns=list(shown),
        queries=len(protocol.queries),
        gallery=len(protocol.gallery),
        without_match=len(found.unmatched),
        thresholds={
            group: {name: finite(value) for name, value in row.items()}
            for group, row in found.thresholds.items()
        },
        panels=panels,
        categories_in_all=len(protocol.categories),
        distances=DistanceBars(**asdict(pairs or _counted(known))),
        map=_map(known),
        hubs=_hubs(known),
        labels=labels,
        labels_in_all=labels_in_all,
        worst=[] if by is None else _worst(known, by, shown),
        judged=0 if by is None else int((~np.isnan(by)).sum()),
        items=known.items,
        spec=dict(spec or {}),
        env=environment(),
        command=command,
    )


def pair_histogram(found: Evaluation, validation: ValidationSpec) -> PairHistogram:
    """The distances of all pairs of an evaluation, or of many that are drawn."""
    return _counted(Catalogue(found.protocol, found.result, validation.distance))


def _counted(known: Catalogue) -> PairHistogram:
    exclude = known.protocol.exclude
    counts = distance_counts(known.queries, known.gallery, exclude=exclude, distance=known.distance)
    return PairHistogram(
        counts.edges.tolist(), counts.genuine.tolist(), counts.impostor.tolist(), counts.is_exact
    )


def finite(value: float) -> float | None:
    """A number, or None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def _leading(values: Mapping[str, NDArray[np.float64]], validation: ValidationSpec) -> str:
    """The ranking metric that queries are sorted by; "" if there is none."""
    wanted: Iterable[str] = (validation.monitor, "map@r", *values)
    return next((name for name in wanted if name in values), "")


def _columns(values: Mapping[str, NDArray[np.float64]], first: str) -> dict[str, NDArray[np.float64]]:
    names = [first, *(name for name in values if name != first)] if first else []
    return {name: values[name] for name in names[:_COLUMNS]}


def _labels(
    protocol: Protocol, values: Mapping[str, NDArray[np.float64]], metric: str
) -> tuple[list[LabelRow], int]:
    """The labels whose queries do worst, by falling number of queries where they do as badly."""
    if not metric:
        return [], 0
    codes = protocol.query_labels.cpu().numpy()
    _, first, of_query, counts = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
    means: dict[str, NDArray[np.float64]] = {}
    for name, column in values.items():
        judged = ~np.isnan(column)
        sums = np.bincount(of_query[judged], weights=column[judged], minlength=len(first))
        with np.errstate(invalid="ignore"):
            means[name] = sums / np.bincount(of_query[judged], minlength=len(first))
    known = ~np.isnan(means[metric])
    order = np.lexsort((-counts, means[metric]))  # NaN last
    rows = protocol.judged.rows
    chosen = order[: int(known.sum())][:MOST_LABELS]
    return [
        LabelRow(
            label=str(rows.labels[protocol.queries[first[place]]]),
            category=str(rows.categories[protocol.queries[first[place]]]),
            queries=int(counts[place]),
            values=[finite(column[place]) for column in means.values()],
        )
        for place in chosen
    ], int(known.sum())


def _worst(
    known: Catalogue, by: NDArray[np.float64], values: Mapping[str, NDArray[np.float64]]
) -> list[QueryRow]:
    """The worst queries and what is nearest to them; of equal ones, the first of the table."""
    order = np.argsort(by, kind="stable")[: min(MOST_QUERIES, int((~np.isnan(by)).sum()))]
    rows = []
    for place in order.tolist():
        nearest = None
        first = -1 if known.result is None else int(known.result.indices[place, 0])
        if first >= 0:
            is_match = bool(known.queries.labels[place] == known.gallery.labels[first])
            apart = float(known.apart(place, torch.tensor([first]))[0])
            nearest = Shown(item=known.found(first), distance=finite(apart), is_match=is_match, rank=1)
        numbers = [finite(column[place]) for column in values.values()]
        rows.append(QueryRow(query=known.query(place), values=numbers, nearest=nearest))
    return rows


def _map(known: Catalogue) -> EmbeddingMap | None:
    """Principal coordinates of judged rows: the gallery's, and the queries' that are not in it."""
    protocol = known.protocol
    in_gallery = set(protocol.gallery.tolist()) if protocol.other is None else set()
    alone = [place for place, row in enumerate(protocol.queries.tolist()) if row not in in_gallery]
    total = len(protocol.gallery) + len(alone)
    chosen = draw(total, MOST_POINTS).tolist()
    of_gallery = [place for place in chosen if place < len(protocol.gallery)]
    of_queries = [alone[place - len(protocol.gallery)] for place in chosen if place >= len(protocol.gallery)]
    if len(chosen) < 3:
        return None
    device = known.queries.labels.device
    parts = [
        side.rows(torch.tensor(places, dtype=torch.int64, device=device)).cpu().double()
        for side, places in ((known.gallery, of_gallery), (known.queries, of_queries))
    ]
    found = principal_map(torch.cat(parts), _DIMS)
    if found.scores.shape[1] < 2:
        return None
    scale = max(float(found.scores.abs().max()), 1e-12)
    packed = (found.scores / scale).numpy().astype("<f2").tobytes()
    return EmbeddingMap(
        items=[known.found(place) for place in of_gallery] + [known.query(place) for place in of_queries],
        scores=base64.b64encode(packed).decode("ascii"),
        dims=found.scores.shape[1],
        scale=scale,
        shares=found.shares.tolist(),
        of=total,
    )


def _hubs(known: Catalogue) -> Hubs | None:
    """The gallery items that the most queries find among their first."""
    if known.result is None:
        return None
    indices = known.result.indices[:, :_HUB_K].cpu()
    labels = known.gallery.labels.cpu()
    relevant = labels[indices.clamp_min(0)] == known.queries.labels.cpu()[:, None]
    times, wrong = times_found(indices, len(known.gallery), relevant)
    order = times.argsort(descending=True, stable=True)[:_HUBS].tolist()
    return Hubs(
        k=indices.shape[1],
        found=[
            Hub(item=known.found(place), times=int(times[place]), wrong=int(wrong[place]))
            for place in order
            if times[place] > 0
        ],
        mean=float(times.double().mean()),
        never=int((times == 0).sum()),
        gallery=len(times),
    )
