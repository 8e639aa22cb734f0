"""Whether the weights of a checkpoint are those of the extractor it describes, before memory is taken for it.

A checkpoint says what is built, and anyone may have made it. So the extractor is built once without content
(torch's device "meta"), which takes no memory, and its shapes are compared with the weights that are there:
what is built then is as large as the file. A plugin that cannot be built so is built under limits alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from metricli.components.tensorbytes import shown
from metricli.errors import CheckpointError, MetricliError
from metricli.specs.base import HUB_PREFIXES
from metricli.specs.kinds import ExtractorSpec
from metricli.specs.validate import InferenceSpec

__all__ = ["extractor_for", "refuse_lookups"]

SPARE = 2**27
"""Numbers that an extractor may hold, while it is built or beside its weights, whatever the file: 0.5 GiB."""


LARGE = 1_000_000
"""A setting up to this is tried, whatever the file."""


class _TooMuch(Exception):
    """A module beyond the limits, stopped while it was built."""


@dataclass
class _Limit:
    """How much may be built for a file of these weights."""

    weights: Mapping[str, Tensor]
    parameters: int = 0
    modules: int = 0
    numbers: int = 0

    @property
    def size(self) -> int:
        """The numbers that the file holds."""
        return sum(tensor.numel() for tensor in self.weights.values())

    @property
    def exceeded(self) -> bool:
        """Whether far more was built than the file holds."""
        many = len(self.weights)
        return self.parameters > 2 * many + 1000 or self.modules > 20 * many + 10_000

    @contextmanager
    def held(self) -> Iterator[None]:
        """Stop what is built within as soon as it is too much."""
        allowed = 2 * self.size + SPARE

        def parameter(_module: nn.Module, _name: str, one: Any) -> None:
            self.parameters += 1
            content = isinstance(one, Tensor) and one.device.type != "meta"
            self.numbers += one.numel() if content else 0
            if self.exceeded or self.numbers > allowed:
                raise _TooMuch

        def module(_module: nn.Module, _name: str, _one: Any) -> None:
            self.modules += 1
            if self.exceeded:
                raise _TooMuch

        hooks = [
            register_module_parameter_registration_hook(parameter),
            register_module_module_registration_hook(module),
        ]
        try:
            yield
        except Exception:
            if self.exceeded or self.numbers > allowed:  # in whatever a library has made of it
                raise _TooMuch from None
            raise
        finally:
            for hook in hooks:
                hook.remove()


def extractor_for(spec: ExtractorSpec, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The extractor of a spec, for these weights of the checkpoint `path`, which are not loaded yet.

    Raises:
        CheckpointError: it has other weights, or is larger than they are.
    """
    unfit = f"the weights of {str(path)!r} do not fit the extractor"
    largest = _largest(spec.model_dump(mode="json"))
    if largest > max(LARGE, _Limit(weights).size):  # a library may count up to it before it builds anything
        raise CheckpointError(f"{unfit}: it has the setting {shown(largest)}, and they are far fewer numbers")
    try:
        with _Limit(weights).held(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.device("meta"):
                shape = spec.build(load_weights=False)
            _require_same(shape, weights, unfit)
    except _TooMuch:
        raise CheckpointError(f"{unfit}: it is far larger than they are") from None
    except CheckpointError:
        raise
    except Exception:  # a plugin that needs content to be built, or one that never will be
        pass
    try:
        with _Limit(weights).held():
            return spec.build(load_weights=False)
    except _TooMuch:
        raise CheckpointError(f"{unfit}: it is far larger than they are") from None
    except (MetricliError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # settings that no library has thought of
        what = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(
            f"the extractor of {str(path)!r} cannot be built: {type(error).__name__}: {what}"
        ) from None


def refuse_lookups(spec: InferenceSpec, path: Path) -> None:
    """Refuse a model or transform that would have to be looked up on the hub; what we save holds all of it.

    Raises:
        CheckpointError: naming it.
    """
    for plugin, stands_alone in ((spec.extractor, False), (spec.transforms.eval, True)):
        model = getattr(plugin, "model", None)
        if plugin is None or not isinstance(model, str) or not model.startswith(HUB_PREFIXES):
            continue
        if not stands_alone or None in plugin.model_dump().values():
            raise CheckpointError(
                f"{str(path)!r} would have {model!r} looked up on the hub, which no checkpoint may",
                hint="give one that metricli has trained: it holds all that was looked up",
            )


def _require_same(shape: nn.Module, weights: Mapping[str, Tensor], unfit: str) -> None:
    own = shape.state_dict()
    beside = sum(buffer.numel() for name, buffer in shape.named_buffers() if name not in own)
    wrong = [
        f"{name} is {_size(weights[name])}, expected {_size(own[name])}" if name in weights else f"no {name}"
        for name in own
        if name not in weights or weights[name].shape != own[name].shape
    ]
    wrong += [f"{name[:100]} is none of its" for name in weights if name not in own]
    if not wrong and beside > _Limit(weights).size + SPARE:
        raise _TooMuch
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(f"{unfit}: {wrong[0]}{more}")


def _largest(value: Any) -> int:
    """The largest whole number in plain data."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max([value if isinstance(value, int) else 0, *map(_largest, inner)])


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
