"""A conformance kit for plugins: `check_plugin("losses", "triplet")` in a test of yours, and of ours.

It finds the plugin as a spec would, and checks that its model is closed, described and survives a round
trip, and that what it builds does what its kind promises on a small example.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import metricli.specs.kinds  # noqa: F401  (fills KINDS)
from metricli.specs.plugin import KINDS, PluginSpec

if TYPE_CHECKING:
    from torch import nn

_HEAVY = ("torch", "torchvision", "timm", "accelerate")

__all__ = ["check_plugin"]


def check_plugin(
    group: str, name: str, settings: Mapping[str, Any] | None = None, *, build: bool = True
) -> PluginSpec:
    """Check one installed plugin; the validated model comes back.

    Args:
        group: the kind, such as "losses".
        name: the entry point's name.
        settings: its settings, where it has required ones.
        build: also build the component and try it (losses, miners, samplers, optimizers, transforms).

    Raises:
        AssertionError: naming the promise that is broken.
        ValueError: the plugin cannot be found, loaded or validated.
    """
    assert group in KINDS, f"no kind of plugin named {group!r}; kinds: {', '.join(KINDS)}"
    plugin = KINDS[group].model_validate({"name": name, **(settings or {})})
    model = type(plugin)
    assert getattr(plugin, "name", None) == name, f"{model.__name__}.name is not {name!r}"
    assert (model.__doc__ or "").strip(), f"{model.__name__} has no docstring"
    for key, field in model.model_fields.items():
        assert key == "name" or field.description, f"the field {key!r} of {model.__name__} has no description"
    assert model.model_config.get("extra") == "forbid", f"{model.__name__} accepts unknown keys"
    dumped = plugin.model_dump(mode="json")
    assert KINDS[group].model_validate(dumped) == plugin, f"{model.__name__} does not survive a round trip"
    _check_import(model.__module__)
    if build:
        check = {"losses": _try_loss, "miners": _try_miner, "samplers": _try_sampler}.get(group)
        check = check or {"optimizers": _try_optimizer, "transforms": _try_transform}.get(group)
        if check is not None:
            check(plugin)
    return plugin


@cache
def _check_import(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {_HEAVY!r} if m in sys.modules], sep=', ')"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    reason = done.stderr.strip().rpartition("\n")[2]
    assert done.returncode == 0, f"a fresh process cannot import {module}: {reason}"
    heavy = done.stdout.strip()
    assert not heavy, f"importing {module} imports {heavy}; import inside build() instead"


def _try_loss(plugin: Any) -> None:
    import torch

    loss: nn.Module = plugin.build(dim=8, num_labels=4, label_to_category=[0, 0, 1, 1])
    embeddings = torch.nn.functional.normalize(torch.randn(16, 8), dim=1).requires_grad_()
    value = loss(embeddings, torch.arange(16) % 4)
    assert value.ndim == 0, f"the loss is of shape {tuple(value.shape)}, expected a scalar"
    torch.autograd.backward(value)
    assert bool(torch.isfinite(value)), "the loss is not finite on random embeddings"
    assert embeddings.grad is not None, "the loss gives the embeddings no gradient"
    assert bool(torch.isfinite(embeddings.grad).all()), "the gradient is not finite"
    stats = getattr(loss, "stats", {})
    assert all(v.ndim == 0 and not v.requires_grad for v in stats.values()), "stats must be detached scalars"


def _try_miner(plugin: Any) -> None:
    import torch

    mined = plugin.build()(torch.randn(16, 8), torch.arange(16) % 4, None, None)
    assert type(mined).__name__ == "Mined", f"a miner returns a Mined, got {type(mined).__name__}"


def _try_sampler(plugin: Any) -> None:
    import numpy as np

    labels = np.repeat(np.arange(24), 6)
    sampler = plugin.build(labels=labels, categories=labels // 6, seed=0)
    sampler.set_epoch(1)
    first = [list(batch) for batch in sampler]
    assert len(first) == len(sampler), f"len is {len(sampler)}, and {len(first)} batches came"
    again = plugin.build(labels=labels, categories=labels // 6, seed=0)
    again.set_epoch(1)
    assert [list(batch) for batch in again] == first, "the batches are no function of (seed, epoch)"


def _try_optimizer(plugin: Any) -> None:
    import torch

    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = plugin.build([{"params": [weight], "lr": plugin.lr, "weight_decay": 0.0}])
    before = weight.detach().clone()
    torch.autograd.backward(weight.square().sum())
    optimizer.step()
    assert not torch.equal(before, weight), "a step changed nothing"
    assert float(weight.detach().square().sum()) < float(before.square().sum()), "a step went uphill"


def _try_transform(plugin: Any) -> None:
    import torch

    image = plugin.build()(torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8))
    assert image.ndim == 3, f"a transform gives (3, H, W), got {tuple(image.shape)}"
    assert image.is_floating_point(), f"a transform gives floats, got {image.dtype}"
