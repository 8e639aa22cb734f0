"""What every page has: cards at its head, warnings, the command, the spec and the versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from metricli.pages.documents import block_of
from metricli.pages.render import filled, safe_json
from metricli.pages.thumbnails import Thumbnails
from metricli.pages.views import Value, metric_rows
from metricli.reports import OVERALL, write_text

__all__ = ["Card", "finish", "leading_cards", "metrics_view", "started", "time_of"]

_MOST_WARNINGS = 50
_MOST_SKIPPED = 200


@dataclass(frozen=True)
class Card:
    """One number at the head of a page."""

    name: str
    value: str
    note: str = ""
    tone: str = ""


def started(
    *,
    kicker: str,
    title: str,
    subtitle: str = "",
    cards: Sequence[Card] = (),
    warnings: Sequence[str] = (),
    skipped: Sequence[str] = (),
    commands: Sequence[tuple[str, str]] = (),
    spec: Mapping[str, Any] | None = None,
    env: Mapping[str, Any] | None = None,
    made: str = "",
) -> dict[str, Any]:
    """A context with the parts that all pages have, and nothing in the others."""
    lines = yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True).splitlines() if spec else []
    return {
        "kicker": kicker,
        "title": title,
        "subtitle": subtitle,
        "cards": list(cards),
        "warnings": list(warnings)[:_MOST_WARNINGS],
        "more_warnings": max(0, len(warnings) - _MOST_WARNINGS),
        "skipped": list(skipped)[:_MOST_SKIPPED],
        "skipped_in_all": len(skipped),
        "commands": list(commands),
        "spec": lines,
        "versions": _versions(env or {}),
        "version": _own_version(),
        "made": made,
        "notes": [],
        "metric_rows": [],
        "metric_names": [],
        "metrics_note": "",
        "comparison": None,
        "comparison_rows": [],
        "curves": [],
        "pictures": None,
        "data": {},
    }


def _versions(env: Mapping[str, Any]) -> list[tuple[str, str]]:
    packages = env.get("packages")
    found = [(name, str(env[name])) for name in ("python", "platform", "cores") if name in env]
    found += (
        [(str(name), str(value)) for name, value in packages.items()] if isinstance(packages, dict) else []
    )
    variables = env.get("variables")
    return found + ([(str(k), str(v)) for k, v in variables.items()] if isinstance(variables, dict) else [])


def _own_version() -> str:
    try:
        return version("metricli")
    except PackageNotFoundError:
        return "(not installed)"


def metrics_view(document: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """The table of metrics of a report's document, made by the rules of a spec."""
    names, rows = metric_rows(document.get("metrics") or {}, document.get("intervals") or {})
    level = 100 * float(document.get("confidence") or 0.95)
    searched = "a category's queries search the whole gallery"
    if block_of(spec, "validation").get("search_within") == "category":
        searched = "each query searches the gallery items of its own category alone"
    note = f"OVERALL is over all queries; {searched}."
    if any(value.low is not None for _, row in rows for value in row):
        note += f" Small: {level:g} % intervals, by drawing labels again and again with all their queries."
    return {"metric_names": names, "metric_rows": rows, "metrics_note": note}


def leading_cards(document: Mapping[str, Any], first: str, most: int = 3) -> list[Card]:
    """The first metrics of all queries."""
    names, rows = metric_rows(document.get("metrics") or {}, document.get("intervals") or {})
    overall = dict(zip(names, next((row for group, row in rows if group == OVERALL), []), strict=False))
    chosen = [first, *(name for name in overall if name != first)]
    return [_card(name, overall[name]) for name in chosen if name in overall][:most]


def _card(name: str, value: Value) -> Card:
    shown = "–" if value.value is None else f"{value.value:.4f}"
    between = "" if value.low is None or value.high is None else f"{value.low:.3f} to {value.high:.3f}"
    return Card(name, shown, between)


def time_of(seconds: float) -> str:
    """A duration as one reads it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def finish(target: Path, context: dict[str, Any], thumbnails: Thumbnails) -> Path:
    """Write a page whole or not at all.

    Raises:
        ResourceError: it cannot be written.
    """
    context["notes"] = [*context["notes"], *thumbnails.notes]
    context["data"] = safe_json(context["data"])
    context["sections"] = _sections(context)
    write_text(target, filled(context, thumbnails.made))
    return target


def _sections(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    pictures = context["pictures"]
    there = (
        ("warnings", "Warnings", context["warnings"]),
        ("metrics", "Metrics", context["metric_rows"]),
        ("comparison", "Comparison", context["comparison"]),
        ("curves", "Curves", context["curves"]),
        ("findings", "Findings", "findings" in context),
        ("splits", "Splits", "findings" in context),
        ("images", "Images", context.get("samples")),
        ("distances", "Distances", pictures and context["histogram"]),
        ("map", "Map", pictures and context["maps"]),
        ("retrieval", "Retrieval", pictures and (context["overall_panels"] or context["category_panels"])),
        ("hubs", "Hubs", pictures and context["hubs"]),
        ("labels", "Labels", pictures and pictures.labels),
        ("queries", "Worst queries", pictures and context["queries"]),
        ("skipped", "Skipped images", context["skipped"]),
        ("again", "How to make it again", True),
    )
    return [(name, words) for name, words, shown in there if shown]
