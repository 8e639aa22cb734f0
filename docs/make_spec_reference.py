"""Write docs/spec.md from the descriptions of the spec's fields: `python docs/make_spec_reference.py`.

The tables "Each loss" and "Each miner" of docs/losses.md come from the plugins' own words, too.
Plugins are those of pyproject.toml, not those installed, so that the page is the same everywhere.
"""

from __future__ import annotations

import importlib
import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import metricli.specs.kinds  # noqa: F401  (fills KINDS)
from metricli.specs.plugin import KINDS, PluginSpec
from metricli.specs.registry import PREFIX
from metricli.specs.train import TrainSpec

HERE = Path(__file__).resolve().parent
PAGE = HERE / "spec.md"
LOSSES = HERE / "losses.md"
HEAD = """\
# The spec

Every key, with its default. Made by `python docs/make_spec_reference.py` from the same descriptions that
`metricli plugins KIND NAME` and `metricli schema` print; do not edit.

A key whose default is **required** must be given. A plugin's keys stand beside its `name`; `loss: triplet`
is short for `loss: {name: triplet}`. Where the default is a plugin, a mapping without `name` is of that one:
`optimizer: {lr: 1e-4}` is AdamW's. `metricli plugins` lists what is installed, third parties' plugins too.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, "## Top level\n", _table(TrainSpec.model_fields.items())]
    for path, model in _blocks(TrainSpec, ""):
        parts += [f"## {path}\n", f"{_sentence(model)}\n", _table(model.model_fields.items())]
    for kind, base in KINDS.items():
        plugins = _built_in(kind)
        if not plugins:
            continue
        parts += [f"## Plugins: {kind}\n", f"{_sentence(base)}\n"]
        for name, plugin in plugins.items():
            fields = [(key, field) for key, field in plugin.model_fields.items() if key != "name"]
            parts += [f"### {kind}: {name}\n", f"{_sentence(plugin)}\n"]
            parts += [_table(fields)] if fields else ["No keys of its own.\n"]
        for keys, block in _shared_blocks(plugins):
            parts += [f"### {kind}: the block below {keys}\n", f"{_sentence(block)}\n"]
            parts += [_table(block.model_fields.items())]
    return "\n".join(parts)


def with_advice(page: str) -> str:
    """The text of losses.md with its two tables of plugins made anew."""
    for kind in ("losses", "miners"):
        head = f"## Each {KINDS[kind].singular}\n"
        before, _, after = page.partition(head)
        intro, _, rest = after.partition("| name |")
        behind = rest.partition("\n\n")[2]
        page = f"{before}{head}{intro}{_advice(kind)}\n{behind}"
    return page


def _advice(kind: str) -> str:
    rows = ["| name | what it is | when to use it |", "|---|---|---|"]
    for name, plugin in _built_in(kind).items():
        words = " ".join(inspect.cleandoc(plugin.__doc__ or "").split("\n\n")[1:]).replace("\n", " ")
        rows.append(f"| `{name}` | {_cell(_sentence(plugin))} | {_cell(words)} |")
    return "\n".join(rows) + "\n"


def _blocks(model: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The nested blocks of a model, plugins aside, with their dotted paths."""
    for key, field in model.model_fields.items():
        for inner, in_list in _models(field.annotation):
            place = f"{path}.{key}".lstrip(".") + (".N" if in_list else "")
            yield place, inner
            yield from _blocks(inner, place)


def _models(kind: Any, in_list: bool = False) -> Iterator[tuple[Any, bool]]:
    """The blocks that a type names, plugins aside, and whether they are items of a list."""
    if isinstance(kind, type) and hasattr(kind, "model_fields"):
        if not issubclass(kind, PluginSpec):
            yield kind, in_list
        return
    for part in get_args(kind):
        yield from _models(part, in_list or get_origin(kind) is list)


def _shared_blocks(plugins: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The blocks within plugins of a kind, each once, with the keys that they stand below."""
    keys: dict[Any, dict[str, None]] = {}
    for plugin in plugins.values():
        for key, block in _blocks(plugin, ""):
            keys.setdefault(block, {})[key] = None
    yield from ((", ".join(names), block) for block, names in keys.items())


def _built_in(kind: str) -> dict[str, Any]:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {}
    for name, value in sorted(project["entry-points"].get(PREFIX + kind, {}).items()):
        module, _, attribute = value.partition(":")
        found[name] = getattr(importlib.import_module(module), attribute)
    return found


def _sentence(model: Any) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _table(fields: Any) -> str:
    rows = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for key, field in fields:
        default = "**required**" if field.is_required() else f"`{_default(field)}`"
        rows.append(f"| `{key}` | {default} | {_values(field)} | {_cell(field.description or '')} |")
    return "\n".join(rows) + "\n"


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, PluginSpec):
        return str(value.name)
    if hasattr(value, "model_fields_set"):
        return "{}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value)).replace("'", "")


def _values(field: Any) -> str:
    """The words of a Literal, the kind of a plugin, or the type and its limits."""
    words = list(dict.fromkeys(word for part in _parts(field.annotation) for word in part))
    null = ["or null"] if "null" in words else []
    words = [word for word in words if word != "null"]
    limits = []
    for item in field.metadata:
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if getattr(item, name, None) is not None:
                limits.append(f"{sign} {getattr(item, name)}")
    return _cell(" ".join(filter(None, [", ".join(words), " and ".join(limits), *null])))


_TYPES = {int: "whole number", float: "number", bool: "true, false", str: "text", type(None): "null"}


def _parts(kind: Any) -> Iterator[list[str]]:
    if get_origin(kind) is Literal:
        yield [f"`{word}`" for word in get_args(kind)]
    elif isinstance(kind, type) and issubclass(kind, PluginSpec):
        yield [f"a {kind.singular}" if kind.singular[0] not in "aeiou" else f"an {kind.singular}"]
    elif kind in _TYPES:
        yield [_TYPES[kind]]
    elif get_origin(kind) is list:
        item = get_args(kind)[0]
        inner = (
            item.kind
            if isinstance(item, type) and issubclass(item, PluginSpec)
            else next(_parts(item))[0].removeprefix("a ") + "s"
        )
        yield [f"list of {inner}"]
    elif (
        get_origin(kind) is dict or kind is Any or (isinstance(kind, type) and hasattr(kind, "model_fields"))
    ):
        yield ["a block" if hasattr(kind, "model_fields") else "mapping"]
    else:  # a union or an annotated type
        for part in [p for p in get_args(kind) if not _is_metadata(p)]:
            yield from _parts(part)


def _is_metadata(part: Any) -> bool:
    return not (isinstance(part, type) or get_origin(part) is not None)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    LOSSES.write_text(with_advice(LOSSES.read_text(encoding="utf-8")), encoding="utf-8")
