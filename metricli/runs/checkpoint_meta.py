"""What the JSON of a checkpoint must hold before anything is built from it.

The digest of a file says that it is whole, not who made it: anyone can compute one. Keys that a newer version
has added are left alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from metricli.components.tensorbytes import shown
from metricli.components.tensorfile import not_ours, unpack
from metricli.errors import CheckpointError
from metricli.reports import Metrics

__all__ = ["check_best_meta", "check_last_meta", "state_of"]


def _as_a_path(value: object) -> object:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("expected a path")
    return value


Text = Annotated[Any, AfterValidator(_as_a_path)]
"""A path as text; of an undecodable one, pydantic's own text would refuse the surrogates."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
Weights = dict[str, Tensor]


class _Meta(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, arbitrary_types_allowed=True)


class _ModelMeta(_Meta):
    """What inference has to know beside the weights."""

    spec: dict[str, Any]
    base: Text
    extractor: dict[str, Any]
    eval_transform: dict[str, Any]


class _BestMeta(_ModelMeta):
    kind: Literal["best"]
    labels: list[str]
    metrics: Metrics
    epoch: Count


class _LastMeta(_Meta):
    kind: Literal["last"]
    state: Any
    progress: dict[str, Any]
    spec: dict[str, Any]
    labels: list[str]
    rows: str
    model: _ModelMeta | None = None


class _Optimizer(_Meta):
    state: dict[Any, Any]
    param_groups: list[dict[str, Any]]


class _State(_Meta):
    """The state of a learner."""

    extractor: Weights
    loss: dict[str, Any]
    optimizer: _Optimizer
    scheduler: dict[str, Any]
    scaler: dict[str, Any] | None
    ema: Weights | None


def check_best_meta(path: Path, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a best.ckpt that lacks a part, or has one of another type.

    Raises:
        CheckpointError: naming the first such part.
    """
    _checked(path, _BestMeta, meta)
    for name in tensors:
        if not name.startswith("extractor."):
            raise not_ours(path, "tensors", f"{shown(name)} is no weight of an extractor")


def check_last_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Refuse a last.ckpt that lacks a part, or has one of another type; its state comes next.

    Raises:
        CheckpointError: naming the first such part.
    """
    from metricli.runs.history import Progress  # which knows checkpoints

    _checked(path, _LastMeta, meta)
    known = {each.name for each in dataclasses.fields(Progress)}
    progress = {key: value for key, value in meta["progress"].items() if key in known}
    for key in ("epoch", "step", "step_in_epoch"):
        if key not in progress:
            raise not_ours(path, f"progress.{key}", "required, but missing")
    text = json.dumps(progress)  # as JSON, where a list may be a tuple
    try:
        TypeAdapter(Progress).validate_json(text, strict=True)
    except ValidationError as error:
        raise _first(path, error, "progress") from None
    for key, value in progress.items():
        if isinstance(value, int) and not 0 <= value < 2**63:
            raise not_ours(path, f"progress.{key}", f"expected a count, got {shown(value)}")
    meta["progress"].clear()
    meta["progress"].update(progress)


def state_of(path: Path, packed: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of a learner in a last.ckpt.

    Raises:
        CheckpointError: it lacks a part, or has one of another type.
    """
    try:
        state = unpack(packed, tensors)
    except ValueError as error:
        raise not_ours(path, "state", str(error)) from None
    _checked(path, _State, state, "state")
    found: dict[str, Any] = state
    return found


def _checked(path: Path, model: type[_Meta], value: Any, within: str = "") -> None:
    try:
        model.model_validate(value)
    except ValidationError as error:
        raise _first(path, error, within) from None


def _first(path: Path, error: ValidationError, within: str) -> CheckpointError:
    first = error.errors(include_url=False, include_context=False)[0]
    places = [str(step) if str(step).isidentifier() else shown(step) for step in first["loc"]]
    where = ".".join(([within] if within else []) + places) or "meta"
    message = first["msg"].removeprefix("Value error, ").splitlines()[0]
    message = "required, but missing" if first["type"] == "missing" else message[:1].lower() + message[1:]
    got = "" if first["type"] == "missing" else f", got {shown(first['input'])}"
    return not_ours(path, where, message + got)
