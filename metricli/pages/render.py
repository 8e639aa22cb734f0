"""The template filled in: escaped, closed to the network, and allowed to run its own script alone."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from metricli.pages.thumbnails import Thumbnail
from metricli.reports import plain
from metricli.tables import printable, shortened

__all__ = ["MOST_WORDS", "filled", "safe_json", "visible"]

MOST_WORDS = 200
"""Characters of a user's word that a page shows."""
_FOLDER = Path(__file__).parent / "templates"


def visible(text: object, most: int = MOST_WORDS) -> str:
    """A user's word, its control and direction characters as escapes, and not without end."""
    return shortened(printable(str(text)), most)


def safe_json(value: object) -> Markup:
    """A value as JSON that no HTML parser takes for markup."""
    text = json.dumps(plain(value), allow_nan=False)  # ASCII: U+2028 and others are escaped
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # nothing is left that HTML knows


def filled(context: Mapping[str, Any], thumbnails: Sequence[Thumbnail]) -> str:
    """`page.html.j2` with a context."""
    style, script = _static("page.css") + _sheet(thumbnails), _static("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = _environment().get_template("page.html.j2")
    return template.render(
        **context,
        policy=policy,
        style=Markup(style),
        script=Markup(script),  # both are ours
    )


def _sheet(thumbnails: Sequence[Thumbnail]) -> str:
    """Each thumbnail once, as the background of a class."""
    return "".join(
        f'.t{place}{{background-image:url("{each.uri}")}}\n' for place, each in enumerate(thumbnails)
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _static(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    found = Environment(
        autoescape=True,
        loader=FileSystemLoader(_FOLDER, encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["visible"] = visible
    found.filters["number"] = _number
    return found


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"
