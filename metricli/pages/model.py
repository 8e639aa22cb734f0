"""What the pictures of an evaluation show, as it lies in `pictures.json`: bounded, and without an image."""

from __future__ import annotations

import base64
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metricli.errors import DataError
from metricli.reports import write_text

PICTURES = "pictures.json"
PAGE = "report.html"

Kind = Literal["worst", "median", "random"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Item(_Part):
    """One image of the table."""

    row: int
    """Data row of the table, from 1."""
    path: str
    label: str
    category: str = ""
    box: tuple[int, int, int, int] | None = None
    """Left, top, right, bottom."""
    side: Literal["query", "gallery"] = "query"
    """Whose table `row` and whose root `path` count in."""


class Shown(_Part):
    """An item beside a query; `rank` from 1, or None where the ranking was not kept so deep."""

    item: int = Field(ge=0)
    distance: float | None
    is_match: bool
    rank: int | None = None


class Panel(_Part):
    """A query, what it found, and what it should have found."""

    group: str
    """OVERALL or a category."""
    kind: Kind
    query: int = Field(ge=0)
    value: float | None
    relevant: int
    results: list[Shown]
    missed: list[Shown] = []
    missed_in_all: int = 0


class DistanceBars(_Part):
    """Counts of pairs by distance."""

    edges: list[float] = Field(min_length=2)
    genuine: list[int]
    impostor: list[int]
    is_exact: bool


class EmbeddingMap(_Part):
    """Principal coordinates of some items, in rows."""

    items: list[int]
    scores: str
    """base64 of (N, dims) little-endian float16, divided by `scale`."""
    dims: int = Field(ge=1)
    scale: float
    shares: list[float]
    of: int
    """How many there are in all."""


class Hub(_Part):
    """An item that many queries find."""

    item: int = Field(ge=0)
    times: int
    wrong: int
    """By queries of another label."""


class Hubs(_Part):
    """How evenly the gallery is found."""

    k: int
    found: list[Hub]
    mean: float
    never: int
    gallery: int


class LabelRow(_Part):
    """The means of one label's queries."""

    label: str
    category: str
    queries: int
    values: list[float | None]


class QueryRow(_Part):
    """One query and its nearest item."""

    query: int = Field(ge=0)
    values: list[float | None]
    nearest: Shown | None


class Pictures(_Part):
    """All pictures of one evaluation."""

    format: Literal[1] = 1
    epoch: int | None = None
    """Of the run that it belongs to."""
    distance: str
    root: str
    gallery_root: str
    max_pixels: int
    postprocessors: list[str] = []
    """What has changed the order that the distances give."""
    metric: str
    """By which the queries are sorted; "" without ranking metrics."""
    columns: list[str]
    """Names of the values of labels and queries."""
    queries: int
    gallery: int
    without_match: int
    thresholds: dict[str, dict[str, float | None]] = {}
    items: list[Item]
    distances: DistanceBars | None = None
    map: EmbeddingMap | None = None
    panels: list[Panel] = []
    categories_in_all: int = 0
    hubs: Hubs | None = None
    labels: list[LabelRow] = []
    labels_in_all: int = 0
    worst: list[QueryRow] = []
    judged: int = 0
    """Queries with a value."""
    spec: dict[str, object] = {}
    env: dict[str, object] = {}
    command: str = ""

    def write(self, folder: Path) -> None:
        """Write `folder/pictures.json` whole or not at all.

        Raises:
            ResourceError: it cannot be written.
        """
        write_text(folder / PICTURES, json.dumps(self.model_dump(mode="json"), allow_nan=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Pictures | None:
        """Those of a folder; None where it has none.

        Raises:
            DataError: the file cannot be read, or is not of this version.
        """
        path = folder / PICTURES
        if not path.is_file():
            return None
        try:
            found = cls.model_validate_json(path.read_text(encoding="utf-8"))
            found.require_whole()
        except (OSError, ValidationError, ValueError) as error:
            what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise DataError(
                f"{str(path)!r} is damaged, or of another version: {what.splitlines()[0]}",
                hint="validate again with --out",
            ) from None
        return found

    def require_whole(self) -> None:
        """Refuse places of items that are not there, and numbers that do not fit each other.

        Raises:
            ValueError: there is one.
        """
        used = [panel.query for panel in self.panels]
        used += [one.item for panel in self.panels for one in (*panel.results, *panel.missed)]
        used += [row.query for row in self.worst]
        used += [row.nearest.item for row in self.worst if row.nearest is not None]
        used += [hub.item for hub in self.hubs.found] if self.hubs else []
        used += self.map.items if self.map else []
        if used and not 0 <= min(used) <= max(used) < len(self.items):
            raise ValueError("it names an item that it does not hold")
        self._require_numbers()

    def _require_numbers(self) -> None:
        bars, drawn = self.distances, self.map
        if bars is not None:
            rising = all(low < high for low, high in pairwise(bars.edges))
            sizes = {len(bars.edges) - 1, len(bars.genuine), len(bars.impostor)}
            if not (rising and all(map(math.isfinite, bars.edges)) and len(sizes) == 1):
                raise ValueError("the bins of its distances do not fit")
        if drawn is not None:
            size = len(base64.b64decode(drawn.scores, validate=True))
            if not drawn.items or drawn.dims < 2 or size != 2 * drawn.dims * len(drawn.items):
                raise ValueError("the places of its map do not fit")
            if len(drawn.shares) < 2:
                raise ValueError("the places of its map do not fit")
        values = [row.values for row in self.labels] + [row.values for row in self.worst]
        if any(len(each) != len(self.columns) for each in values):
            raise ValueError("the values of its rows do not fit its columns")
