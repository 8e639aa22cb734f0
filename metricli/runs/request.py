"""Whether a verb needs processes that this one has to start, and its call as plain data; no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from metricli.errors import UsageError
from metricli.placement import placement
from metricli.reporter import Reporter, SilentReporter
from metricli.specs.base import SpecModel
from metricli.specs.data import ComputeSpec
from metricli.specs.load import Source, plugins_of, read_document, validate_document
from metricli.specs.unregistered import is_registered, where
from metricli.specs.validate import InferenceSpec

__all__ = ["compute_of", "done_by_others"]


def compute_of(spec: Source | None, words: Sequence[str]) -> ComputeSpec:
    """The `compute` block of a spec whose other blocks may still be completed by a checkpoint.

    Raises:
        SpecError: it is wrong, or the spec is no YAML.
        UsageError: the file cannot be read.
    """
    document, base = read_document({} if spec is None else spec)
    block = document.data.get("compute") if isinstance(document.data, dict) else None
    alone = replace(document, data={} if block is None else {"compute": block})
    chosen = [word for word in words if word.startswith("compute")]
    return validate_document(alone, base, InferenceSpec, chosen).spec.compute


def done_by_others(verb: str, compute: ComputeSpec, arguments: Mapping[str, Any]) -> Any | None:
    """The report of a verb done by `compute.gpus` processes started here; None if it is this one's to do.

    A process that a launcher has started never starts others. `arguments` are those of the api's verb.

    Raises:
        UsageError: the arguments cannot travel, or there are fewer GPUs.
        MetricliError: what a process failed of.
    """
    here = placement()
    reporter: Reporter = arguments["reporter"] or SilentReporter()
    if here.size > 1:
        if here.is_main and compute.gpus not in (1, here.size):
            reporter.warn(
                f"{compute.gpus} processes are asked for, and the launcher has started {here.size}: "
                "its number counts"
            )
        return None
    if compute.gpus == 1:
        return None
    from metricli.runs.launch import launch

    request = {
        "verb": verb,
        "arguments": _plain({**arguments, "spec": _travelling(arguments["spec"])}),
        "voice": _voice(reporter),
    }
    return launch(request, processes=compute.gpus, device=compute.device)


def _voice(reporter: Reporter) -> str:
    if isinstance(reporter, SilentReporter):
        return "silent"
    return "quiet" if getattr(reporter, "quiet", False) else "full"


def _travelling(spec: Source | None) -> Any:
    """A spec as its path or its words.

    Raises:
        UsageError: it holds objects that cannot be built from their words elsewhere.
    """
    if spec is None or isinstance(spec, (str, PurePath)):
        return spec
    data = read_document(spec)[0].data
    if isinstance(spec, SpecModel):
        try:
            same = type(spec).model_validate(data) == spec
        except ValidationError:
            same = False
        if not same:
            named = [f"{path} {where(one)}" for path, one in plugins_of(spec) if not is_registered(one)]
            raise UsageError(
                "the spec holds objects that other processes cannot build from its words"
                + (f": {', '.join(named)}" if named else ""),
                hint="install their package with its entry points, or start the script itself with torchrun",
            )
    return data


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in arguments.items() if name != "reporter"}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(given, default=_text))
    except TypeError as error:
        raise UsageError(
            f"an argument cannot go to other processes: {error}", hint="give plain values, or use torchrun"
        ) from None
    return plain


def _text(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} is no plain value")
