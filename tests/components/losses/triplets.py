"""The triplet losses by a triple loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metricli.components.losses import TripletLoss
from metricli.components.miners import AllTriplets, HardTriplets
from tests.components.losses.case import Case


def distance(x: Tensor, y: Tensor, kind: str) -> Tensor:
    if kind == "cosine":
        return 1 - (x @ y) / (x.norm() * y.norm())
    return (x - y).norm()


def every_triplet(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    losses = []
    for a in range(len(rows)):
        for p in range(len(rows)):
            for n in range(len(rows)):
                if a != p and labels[a] == labels[p] and labels[a] != labels[n]:
                    near, far = (
                        distance(rows[a], rows[p], module.distance),
                        distance(rows[a], rows[n], module.distance),
                    )
                    if module.squared:
                        near, far = near**2, far**2
                    gap = near - far
                    losses.append(
                        torch.log1p(gap.exp())
                        if module.margin is None
                        else (gap + module.margin).clamp(min=0)
                    )
    return reduced(module, torch.stack(losses))


def reduced(module: nn.Module, losses: Tensor) -> Tensor:
    if module.reduction == "sum":
        return losses.sum()
    return losses.sum() / (len(losses) if module.reduction == "mean" else (losses > 0).sum())


def hardest(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    losses = []
    for a in range(len(rows)):
        near = [
            distance(rows[a], rows[i], "euclidean")
            for i in range(len(rows))
            if i != a and labels[i] == labels[a]
        ]
        far = [distance(rows[a], rows[i], "euclidean") for i in range(len(rows)) if labels[i] != labels[a]]
        if near and far:
            losses.append((torch.stack(near).max() - torch.stack(far).min() + module.margin).clamp(min=0))
    return torch.stack(losses).mean()


def case(name: str, **settings: object) -> Case:
    return Case(name, lambda: TripletLoss(miner=AllTriplets(), **settings), every_triplet)


CASES = [
    case("triplet"),
    case("triplet soft", margin=None),
    case("triplet squared", squared=True, margin=0.5),
    case("triplet cosine", distance="cosine", reduction="mean_active"),
    case("triplet sum", reduction="sum"),
    Case("triplet hard", lambda: TripletLoss(miner=HardTriplets(), margin=0.3), hardest),
]
