"""Losses, miners, distances and reducers of pytorch-metric-learning, by class name (extra `pml`)."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten
from typing import Any, Literal

from torch import nn

from metricli.errors import UsageError

__all__ = ["PMLKind", "called", "known_classes", "made", "sizes_asked"]

PMLKind = Literal["losses", "miners", "distances", "reducers"]

_BASES: dict[PMLKind, str] = {
    "losses": "BaseMetricLossFunction",
    "miners": "BaseMiner",
    "distances": "BaseDistance",
    "reducers": "BaseReducer",
}
_UNUSABLE = {
    "ClassWeightedReducer",  # takes a tensor
    "DivisorReducer",  # of the losses that bring their divisor, whose default it is
    "DoNothingReducer",  # gives no scalar
    "DynamicSoftMarginLoss",  # keeps the graph of a step, so that the next cannot go back
    "EmbeddingsAlreadyPackagedAsTriplets",  # of batches in a fixed order
    "GenericPairLoss",  # a base class
    "ManifoldLoss",  # without labels
    "MultipleReducers",  # takes reducers
    "VICRegLoss",  # of two views, without labels
}
_SIZES = {"num_classes": "num_labels", "embedding_size": "dim", "descriptors_dim": "dim"}
"""Required arguments that the run knows, by their names there."""


def known_classes(kind: PMLKind) -> dict[str, type[nn.Module]]:
    """The classes of one of the package's modules that a name and plain arguments can make, sorted.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        module = importlib.import_module(f"pytorch_metric_learning.{kind}")
    except ImportError:
        raise UsageError("'pml' needs pytorch-metric-learning", hint="pip install 'metricli[pml]'") from None
    base: type[nn.Module] = getattr(module, _BASES[kind])
    return {
        name: found
        for name, found in sorted(vars(module).items())
        if inspect.isclass(found) and issubclass(found, base) and found is not base and name not in _UNUSABLE
    }


def made(kind: PMLKind, name: str, args: Mapping[str, Any]) -> nn.Module:
    """The object of a class of the package with its arguments.

    Raises:
        UsageError: the package is not installed.
        ValueError: no such class, or it refuses its arguments.
    """
    found = known_classes(kind).get(name)
    if found is None:
        raise ValueError(f"pytorch_metric_learning.{kind} has no {name!r} that a spec can name")
    try:
        return found(**args)
    except Exception as error:  # the package's own checks: assertions, type and value errors
        words = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} refuses its arguments: {words}") from error


@contextmanager
def called(part: nn.Module) -> Iterator[None]:
    """Within this, an object of the package is called; most of its arguments it looks at only then.

    Raises:
        UsageError: in place of its own error, which is the cause; not of a RuntimeError or MemoryError, which
            may say that the memory does not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError):
        raise
    except Exception as error:
        words = shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        what = f"{type(part).__name__} of pytorch-metric-learning fails on a batch: {words}"
        raise UsageError(what, hint="look at its arguments") from error


def sizes_asked(loss: type[nn.Module], *, dim: int, num_labels: int) -> dict[str, int]:
    """What a loss with a head asks for by itself or through its bases: `num_classes` and `embedding_size`."""
    values = {"dim": dim, "num_labels": num_labels}
    required = {
        parameter.name
        for each in loss.__mro__
        if "__init__" in vars(each)
        for parameter in inspect.signature(each).parameters.values()
        if parameter.default is parameter.empty
    }
    return {name: values[size] for name, size in _SIZES.items() if name in required}
