"""The stages and layers of a backbone, first to last, and putting some of it to rest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from metricli.components.timm_alone import group_parameters

__all__ = ["Stage", "frozen_stages", "layer_depths", "rest", "rest_batch_norm", "stages_of"]


@dataclass(frozen=True)
class Stage:
    """Parameters that freeze and thaw together, under the name of their place in the backbone."""

    name: str
    parameters: list[nn.Parameter]


def stages_of(backbone: nn.Module) -> list[Stage]:
    """The stages of a backbone in the order of the forward pass.

    A timm model names its own (`group_matcher`); of another model they are its children that have parameters,
    or those of its only such child.
    """
    named = dict(backbone.named_parameters())
    matcher = getattr(backbone, "group_matcher", None)
    if callable(matcher):
        groups = group_parameters(backbone, matcher(coarse=True))
        parts = [groups[depth] for depth in sorted(groups)]
    else:
        parts = _children(list(named))
    return [Stage(_name(names, set(named) - set(names)), [named[name] for name in names]) for names in parts]


def layer_depths(backbone: nn.Module) -> dict[int, int]:
    """The depth of each parameter's layer (a block), 0 for the first, by the parameter's id.

    Raises:
        ValueError: the backbone does not say what its layers are.
    """
    matcher = getattr(backbone, "group_matcher", None)
    if not callable(matcher):
        raise ValueError(f"the backbone {type(backbone).__name__} does not name its layers, as timm's do")
    depths = group_parameters(backbone, matcher(coarse=False), reverse=True)
    last = max(depths.values(), default=0)
    return {id(parameter): depths.get(name, last) for name, parameter in backbone.named_parameters()}


def frozen_stages(count: int, epoch: int, *, freeze_epochs: int, thaw_epochs: int) -> int:
    """How many of `count` stages, from the first, are frozen in an epoch (from 0).

    All of them in the first `freeze_epochs`; then the rest thaws evenly over `thaw_epochs`, last stage first.
    """
    done = epoch - freeze_epochs + 1
    if done <= 0:
        return count
    if done >= thaw_epochs:
        return 0
    return count - math.ceil(count * done / thaw_epochs)


def rest(module: nn.Module, frozen: set[int]) -> None:
    """Put the submodules whose parameters are all in `frozen` (ids) into eval mode, the deepest way down."""
    own = [id(parameter) for parameter in module.parameters()]
    if own and frozen.issuperset(own):
        module.eval()
        return
    for child in module.children():
        rest(child, frozen)


def rest_batch_norm(module: nn.Module) -> int:
    """Put every batch normalisation into eval mode, so that its statistics stay; their number."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.eval()
    return len(norms)


def _children(names: Iterable[str]) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    names = list(names)
    prefix = ""
    while len({_child(name, prefix) for name in names}) == 1 and names[0] != _child(names[0], prefix):
        prefix = _child(names[0], prefix) + "."
    for name in names:
        found.setdefault(_child(name, prefix), []).append(name)
    return list(found.values())


def _child(name: str, prefix: str) -> str:
    return prefix + name.removeprefix(prefix).partition(".")[0]


def _name(names: list[str], others: set[str]) -> str:
    """The shortest places that are of no other stage: `layer4`, `conv1 and bn1`, `blocks.11 and norm`."""
    taken = {place for name in others for place in _places(name)}
    own = [next((place for place in _places(name) if place not in taken), name) for name in names]
    return " and ".join(dict.fromkeys(own))


def _places(name: str) -> list[str]:
    """a, a.b and a.b.c of a.b.c."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
