"""What a page shows of an evaluation: tables, charts and panels, ready for the template."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from metricli.pages.charts import COLOURS, Mark, Point, bars, points
from metricli.pages.model import EmbeddingMap, Hub, Item, Panel, Pictures, Shown
from metricli.pages.thumbnails import Thumbnails
from metricli.reports import OVERALL

__all__ = ["Seen", "Value", "coloured", "coordinates", "evaluation_view", "metric_rows"]

_ROWS_WITH_IMAGES = 60
"""Of the table of queries."""
_TITLES = {
    "worst": "The worst queries",
    "median": "Queries around the median",
    "random": "Queries drawn at random",
}


@dataclass(frozen=True)
class Value:
    """A number with its interval, where there is one."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Seen:
    """An image as the page shows it."""

    item: Item
    picture: int | None
    """The place of its thumbnail."""
    distance: float | None = None
    is_match: bool | None = None
    rank: int | None = None
    times: int = 0
    wrong: int = 0


@dataclass(frozen=True)
class SeenPanel:
    """A query with its results."""

    panel: Panel
    query: Seen
    results: list[Seen]
    missed: list[Seen]


@dataclass(frozen=True)
class PanelGroup:
    """The panels of one kind, of all queries or of a category."""

    name: str
    title: str
    panels: list[SeenPanel]


def metric_rows(
    metrics: Mapping[str, Mapping[str, float | None]],
    intervals: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> tuple[list[str], list[tuple[str, list[Value]]]]:
    """The names of all metrics, and for OVERALL and each category its values."""
    names = list(dict.fromkeys(name for row in metrics.values() for name in row))
    rows = []
    for group, row in metrics.items():
        found = intervals.get(group, {})
        rows.append((group, [Value(row.get(name), *_interval(found.get(name))) for name in names]))
    return names, rows


def _interval(pair: Sequence[float | None] | None) -> tuple[float | None, float | None]:
    if pair is None or any(value is None or math.isnan(value) for value in pair):
        return None, None
    return pair[0], pair[1]


def evaluation_view(pictures: Pictures, thumbnails: Thumbnails) -> dict[str, Any]:
    """The context of the sections that an evaluation has."""
    show = _Shower(pictures, thumbnails)
    groups = show.groups()
    hubs = [show.hub(hub) for hub in pictures.hubs.found] if pictures.hubs else []
    return {
        "pictures": pictures,
        "histogram": _histogram(pictures),
        "operating_points": sorted(
            (
                (name, value)
                for name, value in pictures.thresholds.get(OVERALL, {}).items()
                if value is not None
            ),
            key=lambda each: each[1],
        ),
        "maps": _maps(pictures),
        "overall_panels": [group for group in groups if group.name == OVERALL],
        "category_panels": _by_category(groups),
        "hubs": hubs,
        "queries": show.queries(),
        "sampled": _sampled(pictures),
    }


def _by_category(groups: Sequence[PanelGroup]) -> list[tuple[str, list[PanelGroup]]]:
    names = dict.fromkeys(group.name for group in groups if group.name != OVERALL)
    return [(name, [group for group in groups if group.name == name]) for name in names]


class _Shower:
    """Items with their thumbnails."""

    def __init__(self, pictures: Pictures, thumbnails: Thumbnails) -> None:
        self.pictures, self.thumbnails = pictures, thumbnails

    def item(self, place: int, *, pictured: bool = True, **more: Any) -> Seen:
        item = self.pictures.items[place]
        root = self.pictures.root if item.side == "query" else self.pictures.gallery_root
        picture = self.thumbnails.place(Path(root) / item.path, item.box) if pictured else None
        return Seen(item, picture, **more)

    def shown(self, one: Shown, *, pictured: bool = True) -> Seen:
        return self.item(
            one.item, pictured=pictured, distance=one.distance, is_match=one.is_match, rank=one.rank
        )

    def hub(self, hub: Hub) -> Seen:
        return self.item(hub.item, times=hub.times, wrong=hub.wrong)

    def groups(self) -> list[PanelGroup]:
        """Panels together, by group and kind, in their order."""
        found: dict[tuple[str, str], list[SeenPanel]] = {}
        for panel in self.pictures.panels:
            seen = SeenPanel(
                panel,
                self.item(panel.query),
                [self.shown(one) for one in panel.results],
                [self.shown(one) for one in panel.missed],
            )
            found.setdefault((panel.group, panel.kind), []).append(seen)
        return [PanelGroup(name, _TITLES[kind], panels) for (name, kind), panels in found.items()]

    def queries(self) -> list[tuple[Seen, list[float | None], Seen | None]]:
        """The worst queries; the first of them with images."""
        rows = []
        for place, row in enumerate(self.pictures.worst):
            pictured = place < _ROWS_WITH_IMAGES
            nearest = None if row.nearest is None else self.shown(row.nearest, pictured=pictured)
            rows.append((self.item(row.query, pictured=pictured), row.values, nearest))
        return rows


def _histogram(pictures: Pictures) -> Markup | None:
    found = pictures.distances
    if found is None or not (sum(found.genuine) or sum(found.impostor)):
        return None
    marks = [
        Mark(name, value) for name, value in pictures.thresholds.get(OVERALL, {}).items() if value is not None
    ]
    sides = [("impostor", found.impostor), ("genuine", found.genuine)]
    return bars("Distances of pairs", found.edges, sides, marks, f"{pictures.distance} distance")


def coordinates(found: EmbeddingMap) -> NDArray[np.float32]:
    """The principal coordinates (N, dims) of a map, divided by its scale."""
    return (
        np.frombuffer(base64.b64decode(found.scores), dtype="<f2").reshape(-1, found.dims).astype(np.float32)
    )


def _maps(pictures: Pictures) -> list[tuple[str, Markup, list[tuple[int, str]]]]:
    """The map by principal components, and by UMAP where that is installed: title, chart, legend."""
    found = pictures.map
    if found is None:
        return []
    scores = coordinates(found)
    items = [pictures.items[place] for place in found.items]
    colours, legend = coloured(items)
    first, second = (f"{100 * share:.0f} %" for share in found.shares[:2])
    maps = [(f"Principal components 1 and 2: {first} and {second} of the variance", scores[:, :2])]
    other = _umap(scores)
    if other is not None:
        maps.append((f"UMAP of the first {found.dims} principal components", other))
    drawn = []
    for title, places in maps:
        spots = [
            Point(float(x), float(y), colour, f"{item.label}  {item.path}")
            for (x, y), colour, item in zip(places.tolist(), colours, items, strict=True)
        ]
        drawn.append((title, points(title, spots), legend))
    return drawn


def _umap(scores: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The rows in two dimensions; None without the package umap-learn, or where it fails."""
    try:
        from umap import UMAP  # type: ignore[import-not-found,unused-ignore]

        return np.asarray(UMAP(random_state=0, n_jobs=1).fit_transform(scores), dtype=np.float32)
    except Exception:  # a second map is no reason to lose the page
        return None


def coloured(items: Sequence[Item]) -> tuple[list[int], list[tuple[int, str]]]:
    """A colour for each item: by category where there are a few, else by the largest labels."""
    categories = {item.category for item in items}
    by_category = 1 < len(categories - {""}) <= COLOURS
    words = [item.category if by_category else item.label for item in items]
    common = [word for word, _ in Counter(word for word in words if word).most_common(COLOURS)]
    places = {word: place for place, word in enumerate(common)}
    colours = [places.get(word, -1) for word in words]
    legend = list(enumerate(common)) + ([(-1, "others")] if -1 in colours else [])
    return colours, legend


def _sampled(pictures: Pictures) -> list[str]:
    """What is not of everything."""
    said = []
    if pictures.distances is not None and not pictures.distances.is_exact:
        said.append(
            f"the histogram is of {sum(pictures.distances.genuine)} genuine and "
            f"{sum(pictures.distances.impostor)} impostor pairs, drawn at random"
        )
    if pictures.map is not None and len(pictures.map.items) < pictures.map.of:
        said.append(f"the map is of {len(pictures.map.items)} of {pictures.map.of} images, drawn at random")
    if len(pictures.labels) < pictures.labels_in_all:
        said.append(f"labels: the worst {len(pictures.labels)} of {pictures.labels_in_all}")
    if len(pictures.worst) < pictures.judged:
        said.append(f"queries: the worst {len(pictures.worst)} of {pictures.judged}")
    shown = len({panel.group for panel in pictures.panels} - {OVERALL})
    if shown < pictures.categories_in_all and shown:
        said.append(f"panels: the {shown} categories of {pictures.categories_in_all} that do worst")
    return said
