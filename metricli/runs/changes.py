"""What differs between the spec of a run and the one it is resumed with, and which of it is accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from metricli.errors import UsageError
from metricli.specs.plugin import PluginSpec
from metricli.specs.suggest import did_you_mean
from metricli.specs.train import TrainSpec

__all__ = ["Change", "accepted_changes", "touches"]

_FREE = (
    "compute",
    "data",
    "loggers",
    "prediction",
    "training.keep",
    "training.log_every_steps",
    "training.num_workers",
    "training.on_collapse",
    "training.save_every_minutes",
    "training.save_every_steps",
    "validation.bootstrap",
    "validation.per_query",
    "validation.search.budget_mb",
    "validation.batch_size",
    "validation.num_workers",
)
"""Keys that a resumed run may change, for they do not change what is trained."""
_MANY = 5
"""Keys that a hint still names one by one."""


@dataclass(frozen=True)
class Change:
    """A key of the spec that is another one than when the run began."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: was {self.was!r}, is {self.now!r}"


def accepted_changes(
    was: Mapping[str, Any], now: TrainSpec, where: Path, allowed: Sequence[str] = ()
) -> list[Change]:
    """The changes of the spec that matter to training, each of which `allowed` names, or a block above it.

    Where to compute and where the data lies, how images are read and evaluated in batches, the loggers and
    the prediction may differ in any case; that the train rows are the same is checked by their digest. A key
    that the run does not have, because the version that began it knew none, stands at its default there.

    Raises:
        UsageError: naming the keys that differ and are not allowed; or one that is allowed and is no key.
    """
    before, after = _flat(_completed(was, now)), _flat(now.model_dump(mode="json"))
    _require_keys(allowed, {*before, *after})
    found = [
        Change(key, before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and not touches(key, _FREE)
    ]
    refused = [change for change in found if not touches(change.key, allowed)]
    if refused:
        shown = "; ".join(map(str, refused))
        accept = " ".join(f"--allow-change {key}" for key in _shortest([change.key for change in refused]))
        raise UsageError(
            f"the spec differs from that of the run in {str(where)!r}: {shown}",
            hint=f"resume with the same spec, accept it with {accept}, or start another run",
        )
    return found


def touches(key: str, blocks: Sequence[str]) -> bool:
    """Whether a key is one of these, or stands below one."""
    return any(key == block or key.startswith(block + ".") for block in blocks)


def _require_keys(allowed: Sequence[str], keys: set[str]) -> None:
    blocks = {".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 2)}
    for key in allowed:
        if key not in blocks:
            ends = sorted(block for block in blocks if block.endswith(f".{key}"))
            near = f", did you mean {' or '.join(map(repr, ends[:3]))}?" if ends else ""
            near = near or did_you_mean(key, sorted(blocks)) or ";"
            raise UsageError(
                f"--allow-change {key!r} is no key of the spec{near} give one such as optimizer.lr"
            )


def _shortest(keys: Sequence[str]) -> list[str]:
    """These keys; where they are many, the top block of those that share one."""
    if len(keys) <= _MANY:
        return list(keys)
    tops = [key.partition(".")[0] for key in keys]
    return list(
        dict.fromkeys(key if tops.count(top) == 1 else top for key, top in zip(keys, tops, strict=True))
    )


def _completed(was: Any, now: Any) -> Any:
    """A saved block with the defaults of the keys that it lacks, wherever the one of today has such keys."""
    if isinstance(now, list) and isinstance(was, list) and len(was) == len(now):
        return [_completed(one, other) for one, other in zip(was, now, strict=True)]
    if not isinstance(now, BaseModel) or not isinstance(was, Mapping):
        return was
    if isinstance(now, PluginSpec) and was.get("name") != getattr(now, "name", None):  # it has other keys
        return was
    fields = type(now).model_fields
    return dict(was) | {
        key: _completed(was[key], getattr(now, key))
        if key in was
        else to_jsonable_python(field.get_default(call_default_factory=True))
        for key, field in fields.items()
        if key in was or not field.is_required()
    }


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping) and value:
        return {
            k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}".lstrip(".")).items()
        }
    return {path: value}
