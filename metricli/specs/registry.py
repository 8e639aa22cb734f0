"""Find a plugin by kind and name among the installed packages' entry points; load only that one."""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, get_args

from metricli.specs.suggest import did_you_mean

if TYPE_CHECKING:
    from metricli.specs.plugin import PluginSpec

PREFIX = "metricli."


class PluginError(ValueError):
    """A plugin cannot be had: unknown, ambiguous, broken, or not what its entry point says."""


@dataclass(frozen=True)
class PluginInfo:
    """One installed entry point, and what is wrong with it ("ok" if nothing)."""

    kind: str
    name: str
    package: str
    version: str
    status: str
    model: type[PluginSpec] | None


@cache
def _entry_points(kind: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = defaultdict(list)
    for entry in importlib.metadata.entry_points(group=PREFIX + kind):
        found[entry.name].append(entry)
    return dict(sorted(found.items()))


def refresh() -> None:
    """Forget what was installed; the next look-up scans again."""
    _entry_points.cache_clear()


def names(kind: str) -> list[str]:
    """The names installed for a kind, sorted."""
    return list(_entry_points(kind))


def load_plugin(kind: str, singular: str, name: str, base: type[PluginSpec]) -> type[PluginSpec]:
    """The model class behind one name.

    Raises:
        PluginError: nothing or two packages have that name, it cannot be imported, or it is no such plugin.
    """
    candidates = _entry_points(kind).get(name, [])
    if not candidates:
        installed = ", ".join(names(kind)) or "none"
        near = did_you_mean(name, names(kind)) or ";"
        raise PluginError(f"no {singular} named {name!r}{near} installed: {installed}")
    if len(candidates) > 1:
        packages = " and ".join(sorted(_package(entry) for entry in candidates))
        raise PluginError(f"two packages have a {singular} named {name!r}: {packages}; uninstall one")
    return _load(candidates[0], singular, base)


def _load(entry: EntryPoint, singular: str, base: type[PluginSpec]) -> type[PluginSpec]:
    blame = f"the {singular} {entry.name!r} of package {_package(entry)}"
    try:
        model = entry.load()
        if isinstance(model, type) and issubclass(model, base):
            model.model_rebuild()  # a field typed by a name that the module lacks fails here
    except (Exception, SystemExit) as error:  # someone else's code: whatever it raises is the finding
        raise PluginError(f"{blame} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(model, type) and issubclass(model, base)):
        raise PluginError(f"{blame} is not a subclass of {base.__name__}: {entry.value}")
    field = model.model_fields.get("name")
    literal = get_args(field.annotation) if field else ()
    if entry.name not in literal:
        raise PluginError(f"{blame} calls itself {' or '.join(map(repr, literal)) or 'nothing'} in its model")
    return model


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"


def describe(kind: str, singular: str, base: type[PluginSpec]) -> list[PluginInfo]:
    """Every entry point of a kind, loaded or with the reason why not."""
    found = []
    for name, entries in _entry_points(kind).items():
        for entry in entries:
            model, status = None, "ok"
            try:
                model = load_plugin(kind, singular, name, base)
            except PluginError as error:
                status = str(error)
            dist = entry.dist
            package, version = (dist.name, dist.version) if dist else ("unknown", "")
            found.append(PluginInfo(kind, name, package, version, status, model))
    return found
