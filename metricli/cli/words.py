"""The words of a command sorted into a spec and overrides, and its report shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metricli.placement import placement


def spec_and_overrides(words: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """The SPEC among the words, if there is one, and the KEY=VALUE words.

    Raises:
        UsageError: there are two.
    """
    from metricli.errors import UsageError

    specs = [word for word in words or [] if "=" not in word or _is_spec_file(word)]
    if len(specs) > 1:
        raise UsageError(
            f"one SPEC at most, got {', '.join(map(repr, specs))}", hint="overrides are KEY=VALUE"
        )
    return (specs[0] if specs else None), [word for word in words or [] if word not in specs]


def _is_spec_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) and Path(word).is_file()


def required(spec: str | None, example: str) -> str:
    """The SPEC of a command that needs one; `example` is such a command.

    Raises:
        UsageError: there is none.
    """
    from metricli.errors import UsageError

    if spec is None:
        raise UsageError("no SPEC is given", hint=example)
    return spec


def show(report: Any, shown: Any, *, as_json: bool, more: dict[str, Any] | None = None) -> None:
    """Print a report: by `shown`, or as JSON with `more` keys; of several processes the main one does."""
    if not placement().is_main:
        return
    if not as_json:
        shown(report)
        return
    from metricli.cli.launch import print_json

    print_json(report.to_dict() | (more or {}))
