"""Packages that exist for one test: a module and a dist-info with entry points, on sys.path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metricli.specs import registry

Install = Callable[..., None]

HEAD = """\
from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from metricli.errors import Problem
from metricli.specs.kinds import *

"""

MARGIN = '''
class Margin(LossSpec):
    """A margin."""

    name: Literal["margin"] = "margin"
    width: float = Field(0.5, gt=0, description="the margin")
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install("my-package", "losses", {"margin": "Margin"}, source)`; undone after the test."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    modules: list[str] = []

    def call(package: str, kind: str, entries: dict[str, str], source: str) -> None:
        module = package.replace("-", "_")
        modules.append(module)
        (site / f"{module}.py").write_text(HEAD + source)
        info = site / f"{module}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        lines = [f"{name} = {module}:{attribute}" for name, attribute in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[metricli.{kind}]", *lines, ""]))
        importlib.invalidate_caches()
        registry.refresh()

    yield call
    for module in modules:
        sys.modules.pop(module, None)
    monkeypatch.undo()
    importlib.invalidate_caches()
    registry.refresh()
