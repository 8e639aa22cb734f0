"""The page of what `metricli validate --out` has left in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metricli.errors import DataError
from metricli.pages.documents import Judged, read_document
from metricli.pages.model import PAGE, Pictures
from metricli.pages.parts import (
    Card,
    finish,
    leading_cards,
    metrics_view,
    started,
    time_of,
)
from metricli.pages.thumbnails import Budget, Thumbnails
from metricli.pages.views import evaluation_view

__all__ = ["METRICS", "write_validation_page"]

METRICS = "metrics.json"


def write_validation_page(folder: Path, *, budget: Budget | None = None) -> Path:
    """Make `folder/report.html` of its metrics.json and pictures.json.

    Raises:
        DataError: one of the two is missing or damaged.
        ResourceError: the page cannot be written.
    """
    document = read_document(folder / METRICS, Judged, "validate again with --out")
    pictures = Pictures.read(folder)
    if document is None or pictures is None:
        lost = METRICS if document is None else "pictures.json"
        raise DataError(f"{str(folder)!r} holds no {lost}", hint="make it with `metricli validate --out`")
    thumbnails = Thumbnails(pictures.max_pixels, budget or Budget())
    context = started(
        kicker="validation",
        title=str(pictures.spec.get("name") or "validation"),
        subtitle=f"{document.get('embeddings', '')}",
        cards=[*leading_cards(document, pictures.metric), *_cards(document)],
        warnings=[str(each) for each in document.get("warnings") or []],
        skipped=[str(each) for each in document.get("skipped") or []],
        commands=[("This validation:", pictures.command)] if pictures.command else _no_command(),
        spec=pictures.spec,
        env=pictures.env,
    )
    context |= metrics_view(document, pictures.spec)
    context |= _comparison(document.get("comparison"))
    context |= evaluation_view(pictures, thumbnails)
    context["notes"] = context.pop("sampled")
    context["data"] = document
    return finish(folder / PAGE, context, thumbnails)


def _no_command() -> list[tuple[str, str]]:
    return [
        ("This validation was made from Python; the same with the spec below:", "metricli validate spec.yaml")
    ]


def _cards(document: dict[str, Any]) -> list[Card]:
    without = int(document.get("queries_without_match") or 0)
    cards = [
        Card("queries", str(document.get("queries")), f"{without} without a match" if without else ""),
        Card("gallery", str(document.get("gallery"))),
        Card("distance", str(document.get("distance")), f"{document.get('search')} search"),
        Card("took", time_of(float(document.get("seconds") or 0))),
    ]
    skipped = len(document.get("skipped") or [])
    return [*cards, Card("skipped images", str(skipped), tone="warning")] if skipped else cards


def _comparison(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        return {}
    rows = [
        (group, metric, each)
        for group, row in found.get("differences", {}).items()
        for metric, each in row.items()
    ]
    return {"comparison": found, "comparison_rows": rows}
