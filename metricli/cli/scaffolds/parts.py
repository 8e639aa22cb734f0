"""What differs between the packages of two kinds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Parts"]


@dataclass(frozen=True)
class Parts:
    """Texts with `$name`, `$Class` and `$package` in them."""

    door: str
    """plugins.py: the pydantic model."""
    component: str
    """components.py: what it builds."""
    test: str
    """A test of the component, behind that of the promises."""
    usage: str
    """A line of a spec that names it."""
    needs: tuple[str, ...] = ("torch",)
    """What components.py imports, beside metricli."""
