"""Whether the disk has room for the checkpoints of a run, asked before its first step."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metricli.errors import ResourceError
from metricli.runs.directory import RunDirectory
from metricli.runs.learner import Learner

__all__ = ["require_room"]

_SIDE = 16
_OVERHEAD = 2**20
"""Bytes of the JSON in a checkpoint, and of the other files of a run: an allowance."""


def require_room(run: RunDirectory, learner: Learner) -> None:
    """Refuse to begin, or go on with, a run whose checkpoints would fill the disk.

    Needed are last.ckpt, best.ckpt, the one that is being written while its older one still stands, and both
    of every step that is kept; what the run has on the disk already counts as there.

    Raises:
        ResourceError: naming what is needed and what is free.
    """
    best = _bytes(learner.judged.state_dict().values()) + _OVERHEAD
    last = _size_of_last(learner)
    kept = learner.spec.training.keep
    needed = (1 + kept) * (last + best) + max(last, best)
    there = {(file.stat().st_dev, file.stat().st_ino): file.stat().st_size for file in _files(run)}
    free = shutil.disk_usage(_existing(run.path)).free + sum(there.values())
    if free < needed:
        lower = " or lower training.keep" if kept else ""
        what = f"the checkpoints of this run need {_said(needed)} in {str(run.path)!r}"
        raise ResourceError(
            f"{what}, and {_said(free)} are free",
            hint=f"free some space{lower}, or give another place with --run-dir",
        )


def _size_of_last(learner: Learner) -> int:
    state = learner.state()
    trainable = sum(p.numel() * p.element_size() for p in learner.parameters)
    there = _bytes(_tensors(state["optimizer"]))  # while the backbone is frozen, that of the head alone
    optimizer = max(there, round(_state_per_weight(learner) * trainable))
    return _OVERHEAD + optimizer + _bytes(_tensors([state[key] for key in ("extractor", "loss", "ema")]))


def _state_per_weight(learner: Learner) -> float:
    """Numbers that the optimizer keeps of each weight, seen at a small matrix; 2, as of Adam, if it fails."""
    try:
        weight = nn.Parameter(torch.zeros(_SIDE, _SIDE))
        optimizer = learner.spec.optimizer.build([{"params": [weight]}])
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        kept = sum(t.numel() for t in _tensors(optimizer.state_dict()["state"]))
    except Exception:  # someone else's optimizer may want more than that
        return 2.0
    return kept / weight.numel()


def _tensors(tree: Any) -> Iterable[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _tensors(item)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _tensors(item)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _files(run: RunDirectory) -> Iterable[Any]:
    folder = run.best.parent
    return (path for path in folder.rglob("*.ckpt") if path.is_file()) if folder.is_dir() else ()


def _said(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"
