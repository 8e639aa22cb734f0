"""Who searches whom: the queries and the gallery of some rows, and which items may not be found."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from metricli.core.exclusion import Exclusion
from metricli.core.retrieval import count_relevant
from metricli.data.table import Rows
from metricli.errors import DataError
from metricli.runs.shared_rows import Host, selected
from metricli.specs.validate import ValidationSpec


@dataclass(frozen=True)
class Judged:
    """Rows with an embedding each, and which of them have one."""

    rows: Rows
    embeddings: Tensor
    """(N, D)"""
    readable: np.ndarray
    """(N,) bool; false where the image could not be read."""


@dataclass(frozen=True)
class Protocol:
    """One evaluation's queries and gallery, as codes on the device of the embeddings."""

    judged: Judged
    other: Judged | None
    """Where the gallery comes from, if not from `judged`."""
    queries: np.ndarray
    """(Q,) places in the judged rows."""
    gallery: np.ndarray
    """(G,) places in the gallery's rows."""
    query_labels: Tensor
    gallery_labels: Tensor
    exclude: Exclusion
    categories: list[str]
    """The categories of queries, sorted."""
    codes: Tensor
    """(Q,) int64 places in `categories`, -1 for none; on the CPU."""
    gallery_codes: Tensor
    """(G,) the same of the gallery, -1 also for a category of no query."""
    num_relevant: Tensor
    """(Q,) int64: items that a query should find."""
    lengths: Tensor
    """(Q,) int64: items that a query can find."""
    notes: list[str] = field(default_factory=list)
    """What is doubtful about who is who."""

    @property
    def gallery_rows(self) -> Rows:
        """The rows that `gallery` counts in."""
        return (self.other or self.judged).rows

    def embeddings(self, host: Host) -> tuple[Tensor, Tensor]:
        """Of the queries (Q, D) and of the gallery (G, D), which the processes of `host` hold together.

        They are one object where they are the same rows.

        Raises:
            ResourceError: there is no room for them.
        """
        source, other = self.judged.embeddings, (self.other or self.judged).embeddings
        dtype = torch.promote_types(source.dtype, other.dtype)
        queries = selected(host, source, self.queries, dtype)
        if self.other is None and np.array_equal(self.queries, self.gallery):
            return queries, queries
        return queries, selected(host, other.to(source.device), self.gallery, dtype)


def protocol_of(judged: Judged, other: Judged | None, validation: ValidationSpec) -> Protocol:
    """The protocol that the table's flags and the spec ask for; `other` is a gallery of its own.

    Raises:
        DataError: no query or no gallery is left, a query without a match is an error, a row lacks the
            category that the search is restricted to, or the two sides are of another dimension.
    """
    rows, gallery_rows = judged.rows, (other or judged).rows
    queries = np.flatnonzero(rows.is_query & judged.readable)
    gallery = np.flatnonzero(gallery_rows.is_gallery & (other or judged).readable)
    _require_both(judged, other, queries, gallery)
    device = judged.embeddings.device

    def both(column: str, empty: int | None = None) -> tuple[Tensor, Tensor]:
        words = np.concatenate([getattr(rows, column)[queries], getattr(gallery_rows, column)[gallery]])
        codes = torch.from_numpy(_codes(words, empty)).to(device)
        return codes[: len(queries)], codes[len(queries) :]

    notes: list[str] = []
    if other is None or other.rows is rows:
        ids = torch.from_numpy(queries).to(device), torch.from_numpy(gallery).to(device)
    else:
        places = np.concatenate([_images(rows)[queries], _images(gallery_rows)[gallery]])
        images = torch.from_numpy(_codes(places)).to(device)
        ids = images[: len(queries)], images[len(queries) :]
        notes = _same_words(rows.paths[queries], gallery_rows.paths[gallery], places)
    groups: tuple[Tensor | None, Tensor | None] = (None, None)
    if validation.search_within == "category":
        _require_categories(rows, queries)
        _require_categories(gallery_rows, gallery)
        groups = both("categories")
    exclude = Exclusion(*ids, *both("sequences", empty=-1), *groups)
    query_labels, gallery_labels = both("labels")
    nothing = torch.zeros_like(query_labels), torch.zeros_like(gallery_labels)
    named = pd.Series(rows.categories[queries], dtype=object)
    names = sorted(set(named) - {""})  # a query of no category counts for OVERALL only: its code is -1
    codes = pd.Index(names, dtype=object).get_indexer(named)
    gallery_codes = pd.Index(names, dtype=object).get_indexer(gallery_rows.categories[gallery])
    protocol = Protocol(
        judged=judged,
        other=other,
        queries=queries,
        gallery=gallery,
        query_labels=query_labels,
        gallery_labels=gallery_labels,
        exclude=exclude,
        categories=names,
        codes=torch.from_numpy(codes.astype(np.int64)),
        gallery_codes=torch.from_numpy(gallery_codes.astype(np.int64)),
        num_relevant=count_relevant(query_labels, gallery_labels, exclude),
        lengths=count_relevant(*nothing, exclude),  # with one label for all
        notes=notes,
    )
    if validation.unmatched == "error":
        _require_matches(protocol)
    return protocol


def _require_both(judged: Judged, other: Judged | None, queries: np.ndarray, gallery: np.ndarray) -> None:
    if len(queries) == 0 or len(gallery) == 0:
        there = f"there are {len(queries)} queries and {len(gallery)} gallery rows to judge by"
        if not judged.readable.all():
            lost = int((~judged.readable).sum())
            raise DataError(f"{there}, for {lost} of {len(judged.rows)} rows have no embedding")
        raise DataError(there, hint="set is_query and is_gallery in the table")
    if judged.embeddings.shape[1] == 0:
        raise DataError("the embeddings have no dimension at all")
    if other is not None:
        require_one_dimension(judged.embeddings.shape[1], other)


def require_one_dimension(dim: int, gallery: Judged) -> None:
    """Refuse a gallery that queries of `dim` dimensions cannot search.

    Raises:
        DataError: it has another number.
    """
    if gallery.embeddings.shape[1] != dim:
        raise DataError(
            f"the queries have {dim} dimensions, and gallery_features {gallery.embeddings.shape[1]}",
            hint="only embeddings that were trained to be compared can search each other",
        )


def _require_categories(rows: Rows, which: np.ndarray) -> None:
    without = which[rows.categories[which] == ""]
    if len(without):
        raise DataError(
            f"search_within: category needs the category of each judged row, and {len(without)} lack it, the "
            f"first {str(rows.paths[without[0]])!r}",
            hint="fill in the column, or search the whole gallery",
        )


def _require_matches(protocol: Protocol) -> None:
    without = unmatched_paths(protocol)
    if without:
        shown = ", ".join(map(repr, without[:3])) + (", ..." if len(without) > 3 else "")
        raise DataError(
            f"{len(without)} of {len(protocol.queries)} queries have no match in the gallery: {shown}",
            hint="put another image of the label there, or set validation.unmatched: skip",
        )


def unmatched_paths(protocol: Protocol) -> list[str]:
    """The paths of the queries that have nothing to find."""
    places = protocol.queries[(protocol.num_relevant == 0).cpu().numpy()]
    return [str(path) for path in protocol.judged.rows.paths[places]]


def _images(rows: Rows) -> np.ndarray:
    """One text for each image of some rows (N,): where it really lies, links followed, and its box."""
    root = str(rows.root.absolute())
    folders: dict[str, tuple[str, frozenset[str]]] = {}  # as written: where it is, and the links in it

    def real(path: str) -> str:
        """os.path.realpath, asking for each folder once: a million calls of that take a minute."""
        head, name = os.path.split(path)
        if name in ("", ".", ".."):
            return os.path.realpath(path)
        if head not in folders:
            found = real(head)
            folders[head] = found, _links(found)
        found, links = folders[head]
        place = os.path.join(found, name)
        return os.path.realpath(place) if name in links else place

    places = [real(os.path.join(root, path)) for path in rows.paths]
    if rows.boxes is not None:
        boxes = (box.tolist() if box[0] >= 0 else "" for box in rows.boxes)
        places = [f"{place} {box}" for place, box in zip(places, boxes, strict=True)]
    else:
        places = [f"{place} " for place in places]
    return np.array(places, dtype=object)


def _same_words(queries: np.ndarray, gallery: np.ndarray, places: np.ndarray) -> list[str]:
    """A note where paths (Q,) and (G,) are written alike, but `places` (Q + G,) says of two images."""
    known = ~pd.Index(places[: len(queries)]).isin(places[len(queries) :])
    alike = queries[known & pd.Index(queries).isin(gallery)]
    if not len(alike):
        return []
    return [
        f"{len(alike)} of {len(queries)} queries have the path of a row of gallery_table, the first "
        f"{str(alike[0])!r}, but in another folder: they are taken for other images; if they are not, "
        "queries find themselves: give gallery_table in the folder of its images, or absolute paths"
    ]


def _links(folder: str) -> frozenset[str]:
    """The names in a folder that are symbolic links; none where it cannot be read, as with features alone."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return frozenset()


def _codes(words: np.ndarray, empty: int | None = None) -> np.ndarray:
    """Integer codes (N,) of text, with `empty` for ""."""
    codes = pd.factorize(words)[0].astype(np.int64)
    if empty is not None:
        codes[words == ""] = empty
    return codes
