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

    from metricli.core.rankings import Rankings

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
        build: also build the component and try it (losses, miners, samplers, optimizers, transforms,
            postprocessors); False where the settings name a file that is not there.

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
        tries = {"losses": _try_loss, "miners": _try_miner, "samplers": _try_sampler}
        tries |= {"optimizers": _try_optimizer, "transforms": _try_transform}
        tries |= {"postprocessors": _try_postprocessor}
        if group in tries:
            tries[group](plugin)
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


def _try_postprocessor(plugin: Any) -> None:
    import torch

    postprocessor = plugin.build()
    given = _rankings()
    before = [given.queries.clone(), given.gallery.clone(), given.result.indices.clone()]
    found = postprocessor(given)
    assert type(found).__name__ == "Rankings", f"a postprocessor returns Rankings, got {type(found).__name__}"
    after = [given.queries, given.gallery, given.result.indices]
    assert all(map(torch.equal, before, after)), "it changes in place what it is given"
    _check_rankings(given, found)
    notes = list(getattr(postprocessor, "notes", []))
    assert all(isinstance(note, str) for note in notes), "notes must be text"
    again = postprocessor(_rankings())
    same = torch.equal(again.result.indices, found.result.indices)
    assert same, "a second call on the same rankings gives others"
    said = list(getattr(postprocessor, "notes", []))
    assert said == notes, f"notes must be of the last call alone, got {said} after {notes}"


def _rankings() -> Rankings:
    """6 queries, 12 items; the nearest of each of the first 4 is of its sequence and may not be found."""
    import torch

    from metricli.core.exclusion import Exclusion
    from metricli.core.rankings import Rankings

    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(18, 8, generator=generator), dim=1)
    rows[6:10] = rows[:4]
    images = torch.rand(18, 3, 32, 32, generator=generator)
    sequences = torch.tensor([0, 1, 2, 3, -1, -1, 0, 1, 2, 3, *[-1] * 8])
    ids = torch.arange(18)
    exclude = Exclusion(ids[:6], ids[6:], sequences[:6], sequences[6:])
    return Rankings(
        rows[:6],
        rows[6:],
        "cosine",
        exclude,
        k=5,
        query_images=images[:6].__getitem__,
        gallery_images=images[6:].__getitem__,
    )


def _check_rankings(given: Rankings, found: Rankings) -> None:
    import torch

    sides = tuple(found.queries.shape), tuple(found.gallery.shape)
    rows = len(given.queries), len(given.gallery)
    assert [len(side) for side in sides] == [2, 2], f"embeddings must be (N, D), got {sides}"
    assert (sides[0][0], sides[1][0]) == rows, (
        f"rows came or went: {sides} of {rows[0]} queries and {rows[1]} items"
    )
    assert sides[0][1] == sides[1][1], f"queries and gallery have other dimensions: {sides}"
    indices, distances = found.result.indices, found.result.distances
    shape = tuple(indices.shape)
    assert len(shape) == 2, f"a result is (Q, k), got {shape}"
    assert shape[0] == rows[0], f"the result has {shape[0]} rows for {rows[0]} queries"
    assert shape[1] >= given.k, f"the result has {shape[1]} columns, and {given.k} are asked for"
    assert distances.shape == indices.shape, f"distances are {tuple(distances.shape)}, indices {shape}"
    assert indices.dtype == torch.int64, f"indices are {indices.dtype}, expected int64"
    assert bool(((indices >= -1) & (indices < rows[1])).all()), f"an index is not in -1..{rows[1] - 1}"
    there = indices >= 0
    for row, real in zip(indices, there, strict=True):
        items = row[real].tolist()
        assert len(set(items)) == len(items), f"an item is retrieved twice: {items}"
    hidden = given.exclude.hides(torch.arange(rows[0]), indices.clamp_min(0)) & there
    assert not bool(hidden.any()), "an item that is excluded for a query is retrieved"
    assert not bool(torch.isnan(distances).any()), "a distance is NaN"
    assert torch.equal(torch.isfinite(distances), there), (
        "distances must be infinite where the index is -1 alone"
    )
    assert bool((distances[:, 1:] >= distances[:, :-1]).all()), "distances descend"
