"""YAML into plain data, with the line of every key, and none of YAML 1.1's traps.

Scalars follow YAML 1.2's core schema: `1e-5` is a float, `on` and `1:30` are text, `010` is ten. Duplicate
keys, tags, and files beyond the caps on size, depth and expanded aliases are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from metricli.errors import Problem, SpecError
from metricli.tables import printable, shortened

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 100_000
MAX_WRITTEN = 20_000
"""Values that a file may hold; they are read slowly, those that aliases stand for are not."""
MAX_DIGITS = 100
_LONGEST_KEY = 100
"""Characters of a key in a message."""

Path = tuple[str | int, ...]
_TAG = "tag:yaml.org,2002:"
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
"""What YAML can write, and neither a path nor UTF-8 can hold."""


@dataclass
class Document:
    """Plain data, where each key stands, and the problems found on the way."""

    source: str
    data: Any
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    overridden: list[Path] = field(default_factory=list)
    expanded: list[Path] = field(default_factory=list)
    """Where an override made a mapping of nothing, or of the shorthand `loss: triplet`."""
    unread: list[Path] = field(default_factory=list)
    """Where a value stands that could not be read: nothing more is said of it."""

    def line(self, path: Path) -> int | None:
        """The line of a key, or of the nearest key above it."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[:-1]
        return None

    def is_overridden(self, path: Path) -> bool:
        """Whether the value at `path` came from a `key=value` word."""
        return path in self.expanded or any(path[: len(given)] == given for given in self.overridden)


class _TooMuch(yaml.MarkedYAMLError):
    """Good YAML, but beyond a cap."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    depth = 0
    written = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.written += 1
        if self.written > MAX_WRITTEN:
            what = f"more than {MAX_WRITTEN:,} values, too much for a spec"
            raise _TooMuch(problem=what, problem_mark=self.get_mark())
        if self.depth > MAX_DEPTH:
            what = f"nested deeper than {MAX_DEPTH} levels, too deep for a spec"
            raise _TooMuch(problem=what, problem_mark=self.get_mark())
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(_pattern), _first)


def parse(text: str, source: str) -> Document:
    """Parse one YAML document.

    Raises:
        SpecError: it is not YAML, or beyond a cap.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise too_large(source)
    document = Document(source, None)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document.data = None if node is None else _Walker(document).value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if re.search("end of stream|stream end", str(error.problem)):  # say where the quote or bracket opened
            mark = error.context_mark or mark
        line = mark.line + 1 if mark else None
        raise SpecError(source, [Problem("", _why(error), line=line)]) from None
    except yaml.YAMLError as error:
        what = str(error).splitlines()[0]
        raise SpecError(source, [Problem("", f"not valid YAML: {what}")]) from None
    return document


def too_large(source: str) -> SpecError:
    """The error for a spec beyond the cap on size."""
    return SpecError(source, [Problem("", f"larger than {MAX_BYTES:,} bytes, too large for a spec")])


def _why(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, _TooMuch):
        return str(error.problem)
    if "'\\t'" in str(error.problem):
        return "not valid YAML: a tab character; indent with spaces"
    return "not valid YAML: " + ", ".join(part for part in (error.context, error.problem) if part)


class _Walker:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            what = (
                f"aliases expand to more than {MAX_NODES:,} values or {MAX_DEPTH} levels, too much for a spec"
            )
            raise _TooMuch(problem=what, problem_mark=node.start_mark)
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            try:
                return _scalar(node)
            except KeyError:
                pass
            except ValueError:  # `!!int many`, thousands of digits, or half of a character
                sort = "text that a file can hold" if node.tag == _TAG + "str" else "number that can be read"
                return self._unread(path, node, f"not a {sort}: {node.value[:60]!r}")
        tag = node.tag.replace(_TAG, "!!")
        return self._unread(path, node, f"the tag {tag!r} is not allowed in a spec; remove it")

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._unread(path, key_node, "a key must be a word; quote a text that begins with a brace")
                continue
            key = key_node.value
            if _NO_TEXT.search(key):
                self._unread((*path, key), key_node, f"not a key: {key[:60]!r}")
                continue
            if key in found:
                first = self.document.lines[(*path, key)]
                self._problem(
                    (*path, key), key_node, f"duplicate key, first given in line {first}; remove one"
                )
                continue
            self.document.lines[(*path, key)] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, (*path, key))
        return found

    def _unread(self, path: Path, node: yaml.Node, message: str) -> None:
        self.document.unread.append(path)
        self._problem(path, node, message)

    def _problem(self, path: Path, node: yaml.Node, message: str) -> None:
        line = node.start_mark.line + 1
        self.document.problems.append(Problem(dotted(path), message, line=line))


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    kind = node.tag.removeprefix(_TAG)
    if kind == "str":
        if _NO_TEXT.search(text):
            raise ValueError(text)
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return {"true": True, "false": False}[text.lower()]
    if kind == "int":
        if len(text) > MAX_DIGITS:
            raise ValueError(text)
        number = int(text, 0) if text.startswith(("0o", "0x")) else int(text)
        if abs(number) >= 2**63:  # nothing that is built from it could hold it
            raise ValueError(text)
        return number
    if kind == "float":
        return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
    raise KeyError(kind)


def dotted(path: Iterable[str | int]) -> str:
    """`("loss", "miner", "name")` as `loss.miner.name`."""
    return ".".join(shortened(printable(str(step)), _LONGEST_KEY) for step in path)


def apply_override(document: Document, word: str) -> None:
    """Set one `key.sub=value`; a mapping replaces, a new `name` drops the siblings that no word gave.

    A word that is no override, or whose key leads through a value that is no mapping, becomes a problem.
    """
    key, sign, text = word.partition("=")
    steps = [step.strip() for step in key.split(".")]
    try:
        if not (sign and all(steps)):
            raise ValueError(f"expected key=value or key.sub=value, got {shortened(repr(word), 200)}")
        if len(steps) > MAX_DEPTH:
            raise ValueError(f"a key of {len(steps)} levels, too deep for a spec")
        if not text.strip():  # an unset variable of the shell, more often than a wish for null
            raise ValueError(f"expected a value, got nothing; write {dotted(steps)}=null for null")
        value = _override_value(text)
        _set(document, steps, value)
    except ValueError as error:
        where = shortened(dotted(steps), 200)
        document.problems.append(Problem(where, f"{error} (from the command line)"))


def _override_value(text: str) -> Any:
    try:
        given = parse(text, "the command line")
    except SpecError as error:
        raise ValueError(error.problems[0].message) from None
    if given.problems:
        raise ValueError(given.problems[0].message)
    return given.data


def _set(document: Document, steps: list[str], value: Any) -> None:
    if document.data is None:
        document.data = {}
    path: list[str | int] = []
    place = document.data
    for step in steps[:-1]:
        found = _index(place, step, path)
        path.append(found)
        inner = place.get(found) if isinstance(place, dict) else place[found]
        if inner is None or isinstance(inner, str):
            document.expanded.append(tuple(path))
        place[found] = {"name": inner} if isinstance(inner, str) else {} if inner is None else inner
        place = place[found]
    found = _index(place, steps[-1], path)
    path.append(found)
    if found == "name" and isinstance(place, dict) and place.get("name") != value and len(path) > 1:
        above = tuple(path[:-1])
        deeper = [
            said for said in document.overridden if len(said) > len(above) and said[: len(above)] == above
        ]
        given = {said[len(above)] for said in deeper}
        for key in set(place) - given:
            del place[key]
    place[found] = value
    document.overridden.append(tuple(path))


def _index(place: Any, step: str, path: list[str | int]) -> str | int:
    if isinstance(place, dict):
        return step
    where = repr(dotted(path)) if path else "the spec"
    if not isinstance(place, list):
        raise ValueError(f"{where} is {shortened(repr(place), 200)}, which has no keys")
    if not (step.isdecimal() and len(step) < 10 and int(step) < len(place)):
        raise ValueError(f"{where} is a list of {len(place)}, which has no item {step!r}; they count from 0")
    return int(step)
