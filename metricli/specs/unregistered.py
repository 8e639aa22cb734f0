"""Plugin objects in a spec that no spec file can name: their classes have no entry point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metricli.errors import Problem
from metricli.specs import registry
from metricli.specs.plugin import KINDS, PluginSpec

__all__ = ["is_registered", "unregistered_problems", "where"]


def is_registered(plugin: PluginSpec) -> bool:
    """Whether the name of a plugin leads to its class."""
    name: Any = getattr(plugin, "name", None)
    try:
        return registry.load_plugin(plugin.kind, plugin.singular, name, KINDS[plugin.kind]) is type(plugin)
    except registry.PluginError:
        return False


def unregistered_problems(plugins: Iterator[tuple[str, PluginSpec]]) -> Iterator[Problem]:
    """A warning for each plugin object that lives in this program alone."""
    for path, plugin in plugins:
        if not is_registered(plugin):
            yield Problem(path, _what(plugin), severity="warning")


def where(plugin: PluginSpec) -> str:
    """Its name and its class."""
    return f"{getattr(plugin, 'name', '?')!r} ({type(plugin).__module__}:{type(plugin).__qualname__})"


def _what(plugin: PluginSpec) -> str:
    name: Any = getattr(plugin, "name", None)
    if name in registry.names(plugin.kind):
        other = f"a spec file means another {plugin.singular} by that name"
    else:
        other = "no installed package has it, so no spec file can load it, spec.resolved.yaml included"
    return f"the {plugin.singular} {where(plugin)} is an object of this program: {other}"
