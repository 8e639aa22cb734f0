"""How the gallery is searched and what is done to the rankings: made once, before any image is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metricli.core.approximate import check_index, faiss_search
from metricli.core.exclusion import NOTHING
from metricli.core.rankings import Rankings, Searcher
from metricli.core.results import SearchResult
from metricli.core.retrieval import search
from metricli.errors import DataError, Problem, SpecError
from metricli.runs.protocol import Judged, require_one_dimension
from metricli.specs.validate import SearchSpec, ValidationSpec

UNSEARCHED = "the embeddings cannot be searched"
"""How an error of the search begins, as of values so large that their squares are not finite."""


@dataclass(frozen=True)
class Postprocessor:
    """A built postprocessor under the name it has in the spec."""

    name: str
    apply: Callable[[Rankings], Rankings]

    def __call__(self, rankings: Rankings) -> Rankings:
        """The rankings that it leaves.

        Raises:
            DataError: it refuses these, by a ValueError; its name stands before that.
        """
        try:
            return self.apply(rankings)
        except ValueError as error:
            raise DataError(f"postprocessor {self.name!r}: {_line(error)}") from None

    @property
    def notes(self) -> list[str]:
        """What it had to say of the last call."""
        return list(getattr(self.apply, "notes", []))


def built_postprocessors(validation: ValidationSpec) -> list[Postprocessor]:
    """The postprocessors of a spec, in order, for every validation of a run.

    Raises:
        SpecError: one cannot be built, such as from a file that is damaged.
    """
    built: list[Postprocessor] = []
    for i, spec in enumerate(validation.postprocessors):
        name: str = spec.name  # type: ignore[attr-defined]
        try:
            built.append(Postprocessor(name, spec.build()))
        except ValueError as error:
            place = f"validation.postprocessors.{i}"
            raise SpecError("the spec", [Problem(place, _line(error))]) from None
    return built


def require_fit(validation: ValidationSpec, dim: int, gallery: Judged | None) -> None:
    """Refuse a search that embeddings of `dim` dimensions will not allow, before there are any.

    Raises:
        SpecError: faiss does not know the index, or not for so many dimensions.
        DataError: the gallery's own features have another number.
    """
    if gallery is not None:
        require_one_dimension(dim, gallery)
    if validation.search.index is not None:
        try:
            check_index(validation.search.index, dim, validation.search.nprobe)
        except ValueError as error:
            raise SpecError("the spec", [Problem("validation.search.index", _line(error))]) from None


def searcher_of(spec: SearchSpec) -> Searcher:
    """The search that a spec asks for; what it refuses is a DataError."""
    found: Searcher = partial(search, budget_mb=spec.budget_mb)
    if spec.index is not None:
        found = partial(faiss_search, index=spec.index, nprobe=spec.nprobe)

    def searched(*args: Any, **kwargs: Any) -> SearchResult:
        try:
            return found(*args, **kwargs)
        except ValueError as error:
            raise DataError(f"{UNSEARCHED}: {_line(error)}") from None

    return searched


def try_postprocessors(
    postprocessors: Sequence[Postprocessor],
    validation: ValidationSpec,
    dim: int,
    images: Tensor,
) -> None:
    """Apply them to random embeddings of `dim` dimensions, and `images` (n, 3, H, W) in turn.

    Raises:
        DataError: one refuses them, for their dimensions or their size.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, dim, generator=generator).to(images)

    def some(places: Tensor) -> Tensor:
        return images[places.to(images.device) % len(images)]

    queries, gallery = rows[:4], rows[4:]
    rankings = Rankings(
        queries, gallery, validation.distance, NOTHING, k=8, query_images=some, gallery_images=some
    )
    for postprocessor in postprocessors:
        rankings = postprocessor(rankings)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
