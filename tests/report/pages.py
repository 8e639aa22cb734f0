"""A page read back with the standard library's parser."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "input", "br", "link", "img"}


@dataclass
class Table:
    """The texts of a table, and the numbers behind its cells."""

    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    numbers: list[list[str | None]] = field(default_factory=list)


class Page(HTMLParser):
    """What elements, attributes and texts a page has; elements must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.tables: dict[str, Table] = {}
        self.text = ""
        self.open: list[str] = []
        self.classes: list[tuple[str, str]] = []
        self._table: Table | None = None
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs)
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.classes += [(tag, name) for name in (found.get("class") or "").split()]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((found, ""))
        if tag == "style":
            self.styles.append("")
        if tag == "table":
            self._table = self.tables.setdefault(found.get("id") or "", Table())
        if self._table is not None and tag == "tr" and "thead" not in self.open:
            self._table.rows.append([])
            self._table.numbers.append([])
        if self._table is not None and tag in ("td", "th"):
            if "thead" in self.open:
                self._table.head.append("")
            else:
                self._table.rows[-1].append("")
                self._table.numbers[-1].append(found.get("data-value"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open and self.open[-1] == "style":
            self.styles[-1] += data
        else:
            self.text += data
            if self._table is not None and ("td" in self.open or "th" in self.open):
                if "thead" in self.open:
                    self._table.head[-1] += data
                else:
                    self._table.rows[-1][-1] += data

    @property
    def data(self) -> Any:
        """The document that the page carries."""
        return json.loads(next(text for found, text in self.scripts if found.get("id") == "data"))
