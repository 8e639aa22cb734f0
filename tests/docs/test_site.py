"""The site: its menu has every page; where mkdocs is installed, it builds, asks nobody, has no dead link."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"security.md", "changelog.md", "contributing.md"}


def entries(menu: Any) -> list[str]:
    if isinstance(menu, str):
        return [menu]
    parts = menu.values() if isinstance(menu, dict) else menu
    return [page for part in parts for page in entries(part)]


def test_the_menu_has_every_page_once() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(entries(config["nav"])) == sorted(pages | GENERATED)


class Seen(HTMLParser):
    """What a page loads, where it links to, and the names that it can be linked to by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.names |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given.get("href", ""))
        elif "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None or find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: make docs")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def pages_of(site: Path) -> dict[Path, Seen]:
    found = {}
    for page in site.rglob("*.html"):
        if page.name != "404.html":
            found[page] = Seen(page.read_text(encoding="utf-8"))
    assert len(found) > 25
    return found


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page, seen in pages_of(site).items():
        assert seen.loads, page
        assert [one for one in seen.loads if urlsplit(one).scheme or one.startswith("//")] == [], page
    for sheet in site.rglob("*.css"):
        outside = re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*", sheet.read_text())
        assert outside == [], sheet
    assert list(site.rglob("*.py")) == []


def test_every_link_leads_somewhere(site: Path) -> None:
    pages = pages_of(site)
    checked = 0
    for page, seen in pages.items():
        for link in seen.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "mailto"), (page, link)
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.name} links to {link}"
            if target in pages and not unquote(parts.fragment).startswith("__"):
                assert unquote(parts.fragment) in pages[target].names, f"{page.name} links to {link}"
            checked += 1
    assert checked > 500


def test_code_and_lists_come_out_as_such(site: Path) -> None:
    for page in site.rglob("*.html"):
        body = re.sub(r"<pre.*?</pre>|<code.*?</code>|<script.*?</script>", "", page.read_text(), flags=re.S)
        assert "```" not in body, page
        assert not re.search(r"<p>[^<]*\n- ", body), page
    steps = re.findall(r"<ol>.*?</ol>", (site / "contributing.html").read_text(), re.S)
    assert [(step.count("<li>"), step.count("<pre>")) for step in steps] == [(5, 6)]
