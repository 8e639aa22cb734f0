"""The code blocks of a Markdown page, and how to run them.

A block is told by its language: `bash` (command lines), `python`, `yaml` (a spec or some keys of one), `text`
(what the last bash block printed, to the letter). Comments of the page, before a block, change that:

    <!-- not run: why -->            the block is only read
    <!-- shortened: OLD -> NEW -->   OLD, which the block holds, is run as NEW; may come several times
    <!-- exits with: 2 -->           the code that the last command must exit with
    <!-- file: typo.yaml -->         the block is written to that file and not checked itself
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metricli.specs.document import parse
from metricli.specs.load import check_spec, load_spec
from metricli.specs.train import TrainSpec

_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.S)
_KNOWN = ("not run", "shortened", "exits with", "file")


@dataclass(frozen=True)
class Block:
    """One fenced block with the comments that stand before it."""

    page: Path
    line: int
    language: str
    text: str
    notes: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line} ({self.language})"

    def note(self, name: str) -> str | None:
        """The words of a comment, None without it."""
        return next((value for key, value in self.notes if key == name), None)

    @property
    def runs(self) -> bool:
        """Whether the block is run."""
        return self.note("not run") is None

    @property
    def to_run(self) -> str:
        """The text with everything shortened that is marked so."""
        text = self.text
        for key, value in self.notes:
            if key == "shortened":
                old, _, new = value.partition(" -> ")
                assert old in text, f"{self}: there is no {old!r} to shorten"
                text = text.replace(old, new)
        return text


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page, in order; a fence may be indented, as in a list."""
    found: list[Block] = []
    notes: list[tuple[str, str]] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        at += 1
        if line.startswith("```"):
            end = next(i for i in range(at, len(lines)) if lines[i].strip() == "```")
            indent = len(lines[at - 1]) - len(lines[at - 1].lstrip())
            text = "\n".join(each[indent:] for each in lines[at:end])
            found.append(Block(page, at, line.removeprefix("```"), text, notes))
            notes, at = [], end + 1
        elif comment := _COMMENT.fullmatch(line):
            key, _, value = comment[1].partition(": ")
            assert key in _KNOWN, f"{page.name}:{at}: unknown comment {comment[1]!r}"
            assert value, f"{page.name}:{at}: the comment {key!r} says nothing"
            notes.append((key, value))
        elif line:
            assert not notes, f"{page.name}:{at}: a comment without a block"
    assert not notes, f"{page.name}: a comment without a block"
    return found


def run_page(
    blocks: list[Block], call: Callable[..., Any], folder: Path, others: Mapping[str, Callable[..., Any]] = {}
) -> dict[str, Any]:
    """Run the blocks of a page in order, in `folder`; the names that its Python blocks share come back.

    `call` runs one metricli command line in-process and gives its outcome; `others` do so for other programs.
    """
    names: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in blocks:
        if not block.runs:
            continue
        if (file := block.note("file")) is not None:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(block.text + "\n", encoding="utf-8")
        elif block.language == "bash":
            printed = _run_commands(block, {"metricli": call, **others})
        elif block.language == "python":
            code = compile("\n" * block.line + block.to_run, str(block.page), "exec", dont_inherit=True)
            exec(code, names)
        elif block.language == "yaml":
            _check_yaml(block)
        elif block.language == "text":
            assert block.text.strip() == printed.strip(), f"{block}: not what was printed:\n{printed}"
        else:
            raise AssertionError(f"{block}: a block of this language cannot be run; say why not in a comment")
    return names


def commands_of(text: str) -> list[list[str]]:
    """The command lines of a bash block as words, comments and continued lines joined."""
    joined = text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def _run_commands(block: Block, programs: Mapping[str, Callable[..., Any]]) -> str:
    commands = commands_of(block.to_run)
    assert commands, f"{block}: nothing to run"
    printed = ""
    for words in commands:
        assert words[0] in programs, f"{block}: only {', '.join(programs)} is run, not {words[0]!r}"
        done = programs[words[0]](*words[1:])
        expected = int(block.note("exits with") or 0) if words is commands[-1] else 0
        assert done.code == expected, f"{block}: {shlex.join(words)} exited with {done.code}\n{done.err}"
        printed = done.out + done.err
    return printed


def _check_yaml(block: Block) -> None:
    document = parse(block.to_run, str(block))
    assert document.problems == []
    data = document.data
    data = data if {"data", "extractor", "loss"} <= set(data) else _WHOLE | data
    check_spec(load_spec(data, TrainSpec), None)


_WHOLE = {
    "data": {"table": "products.csv"},
    "extractor": {"name": "timm", "model": "resnet18"},
    "sampler": {"name": "balanced", "n_labels": 8, "n_instances": 4},
    "loss": "triplet",
}
"""What a block of a few keys is completed with."""
