"""What mkdocs does with the pages beside its own: `make docs` builds them into one site.

The pages are written for a reader of the repository. Here those at its root become pages of the site, every
file that a page links to becomes one too, and lists get the indents that Python-Markdown wants.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
AT_ROOT = {"SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "bash"}
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(#[^)\s]*)?\)")
_ITEM = re.compile(r"(?:-|\*|\d+\.) +")
_FENCE = re.compile(r"\s*(```|~~~)")
_homes: dict[str, str] = {}
"""Page of the site -> the file of the repository that it is made of."""


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each file at the root, and for each file that is linked."""
    _homes.clear()
    for source, target in AT_ROOT.items():
        _add(files, config, source, target)
    waiting = [file.src_uri for file in files if file.src_uri.endswith(".md")]
    while waiting:
        home = _home(waiting.pop())
        for link, _ in _LINK.findall(_prose((ROOT / home).read_text(encoding="utf-8"))):
            linked = _resolved(home, link)
            target = _place(linked)
            if (ROOT / linked).is_file() and files.get_file_from_path(target) is None:
                _add(files, config, linked, target)
                waiting += [target] if linked.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Links to where their targets are in the site; indents of lists."""
    del config, files
    at = page.file.src_uri
    home = _home(at)

    def moved(link: re.Match[str]) -> str:
        linked = _resolved(home, link[1])
        if not (ROOT / linked).is_file():
            return link[0]  # mkdocs says that it leads nowhere
        to = posixpath.relpath(_place(linked), posixpath.dirname(at) or ".")
        return f"]({to}{link[2] or ''})"

    return _indented(_LINK.sub(moved, markdown))


def _add(files: Any, config: Any, source: str, target: str) -> None:
    text = (ROOT / source).read_text(encoding="utf-8")
    if not source.endswith(".md"):
        language = LANGUAGES.get(Path(source).suffix, "text")
        text = f"# {Path(source).name}\n\n`{source}`\n\n~~~~{language}\n{text}\n~~~~\n"
    file = File.generated(config, target, content=text)
    file.inclusion = InclusionLevel.INCLUDED if source in AT_ROOT else InclusionLevel.NOT_IN_NAV
    files.append(file)
    _homes[target] = source


def _home(page: str) -> str:
    return _homes.get(page, f"docs/{page}")


def _resolved(home: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(home), link))


def _place(source: str) -> str:
    """Where a file of the repository is in the site."""
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    if source in AT_ROOT:
        return AT_ROOT[source]
    return f"source/{source}" if source.endswith(".md") else f"source/{source}.md"


def _prose(text: str) -> str:
    return re.sub(r"(```|~~~).*?\1", "", text, flags=re.S)


def _indented(text: str) -> str:
    """Four spaces for what belongs to an item of a list, and an empty line before a list."""
    lines: list[str] = []
    fenced, width = False, 0
    for line in text.splitlines():
        if _FENCE.match(line) and not (width and line.startswith(" ")):
            fenced, width = not fenced, 0
        elif not fenced and (item := _ITEM.match(line)):
            if not width and lines and lines[-1].strip():
                lines.append("")
            width = len(item[0])
        elif width and line.startswith(" " * width):
            line = "    " + line[width:]
        elif line.strip():
            width = 0
        lines.append(line)
    return "\n".join(lines) + "\n"
