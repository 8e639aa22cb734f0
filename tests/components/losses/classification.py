"""Classification losses from their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml
from torch import Tensor, nn

from metricli.components.losses import (
    AdaCosLoss,
    ArcFaceLoss,
    CosFaceLoss,
    NormalizedSoftmaxLoss,
    SubCenterArcFaceLoss,
)
from tests.components.losses.case import DIM, NUM_LABELS, Case

HEAD = {"dim": DIM, "num_labels": NUM_LABELS}
CATEGORIES = [0, 0, 1, 1, 1]


def cosines(module: nn.Module, rows: Tensor) -> Tensor:
    """Of rows, through the layers if there are any, and centres."""
    for depth, layer in enumerate(module.mlp):
        rows = (F.relu(rows) if depth else rows) @ layer.weight.T + layer.bias
    return F.normalize(rows) @ F.normalize(module.weight).T


def shares(module: nn.Module, label: int) -> list[float]:
    """The smoothed target of a label."""
    plain, within = getattr(module, "label_smoothing", 0), getattr(module, "category_smoothing", 0)
    family = [other for other in range(NUM_LABELS) if CATEGORIES[other] == CATEGORIES[label]]
    return [
        (1 - plain - within) * (other == label)
        + plain / NUM_LABELS
        + within * (other in family) / len(family)
        for other in range(NUM_LABELS)
    ]


def softmax_loss(module: nn.Module, found: Tensor, labels: Tensor, logit: Callable[..., Tensor]) -> Tensor:
    """The cross-entropy of `logit(cosine, is_target)`, by loops."""
    losses = []
    for row, label in zip(found, labels.tolist(), strict=True):
        logits = [logit(row[other], other == label) for other in range(NUM_LABELS)]
        everything = torch.stack(logits).exp().sum().log()
        losses += [
            share * (everything - value) for share, value in zip(shares(module, label), logits, strict=True)
        ]
    return torch.stack(losses).sum() / len(labels)


def arcface(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    found = cosines(module, rows)
    nearest = torch.stack(
        [
            found[:, label * module.centers_per_label : (label + 1) * module.centers_per_label].max(1).values
            for label in range(NUM_LABELS)
        ],
        1,
    )

    def logit(cosine: Tensor, target: bool) -> Tensor:
        return module.scale * torch.cos(torch.acos(cosine) + module.margin * target)

    return softmax_loss(module, nearest, labels, logit)


def cosface(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    def logit(cosine: Tensor, target: bool) -> Tensor:
        return module.scale * (cosine - module.margin * target)

    return softmax_loss(module, cosines(module, rows), labels, logit)


def normalized_softmax(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    return softmax_loss(module, cosines(module, rows), labels, lambda cosine, _: cosine / module.temperature)


def adacos_scale_of(found: Tensor, labels: Tensor, scale: float) -> float:
    """Equations 12 and 13 by loops."""
    total, angles = 0.0, []
    for row, label in zip(found.tolist(), labels.tolist(), strict=True):
        total += sum(math.exp(scale * cosine) for other, cosine in enumerate(row) if other != label)
        angles.append(math.acos(row[label]))
    median = sorted(angles)[(len(angles) - 1) // 2]
    return math.log(total / len(angles)) / math.cos(min(math.pi / 4, median))


def adacos(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    found = cosines(module, rows)
    scale = adacos_scale_of(found.detach(), labels, float(module.scale))
    return softmax_loss(module, found, labels, lambda cosine, _: scale * cosine)


def peer(make: Callable[[nn.Module], nn.Module]) -> Callable[..., Tensor]:
    """The value by pytorch-metric-learning's loss, with the same centres."""

    def value(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
        other = make(module).double()
        centres = module.weight.detach()
        (weight,) = other.parameters()
        weight.data = centres if weight.shape == centres.shape else centres.T
        return other(rows, labels)

    return value


def pml_head() -> dict[str, int]:
    return {"num_classes": NUM_LABELS, "embedding_size": DIM}


def pml_arcface(module: nn.Module) -> nn.Module:
    return pml.ArcFaceLoss(**pml_head(), scale=module.scale, margin=math.degrees(module.margin))


def pml_sub_center(module: nn.Module) -> nn.Module:
    return pml.SubCenterArcFaceLoss(
        **pml_head(),
        scale=module.scale,
        margin=math.degrees(module.margin),
        sub_centers=module.centers_per_label,
    )


def pml_cosface(module: nn.Module) -> nn.Module:
    return pml.CosFaceLoss(**pml_head(), scale=module.scale, margin=module.margin)


def pml_normalized_softmax(module: nn.Module) -> nn.Module:
    return pml.NormalizedSoftmaxLoss(**pml_head(), temperature=module.temperature)


SMOOTHED = {**HEAD, "label_smoothing": 0.1, "category_smoothing": 0.2, "label_to_category": CATEGORIES}

CASES = [
    Case("arcface", lambda: ArcFaceLoss(**HEAD, scale=8.0, margin=0.3), arcface, peer(pml_arcface)),
    Case("arcface smoothed", lambda: ArcFaceLoss(**SMOOTHED, scale=8.0, margin=0.3), arcface),
    Case("arcface mlp", lambda: ArcFaceLoss(**HEAD, scale=8.0, margin=0.3, mlp=[7, 4]), arcface),
    Case(
        "sub_center_arcface",
        lambda: SubCenterArcFaceLoss(**HEAD, scale=8.0, margin=0.3),
        arcface,
        peer(pml_sub_center),
    ),
    Case(
        "sub_center_arcface smoothed",
        lambda: SubCenterArcFaceLoss(**SMOOTHED, scale=8.0, margin=0.3),
        arcface,
    ),
    Case("cosface", lambda: CosFaceLoss(**HEAD, scale=8.0), cosface, peer(pml_cosface)),
    Case("cosface smoothed", lambda: CosFaceLoss(**SMOOTHED, scale=8.0, mlp=[4]), cosface),
    Case("adacos", lambda: AdaCosLoss(**HEAD), adacos),
    Case("adacos smoothed", lambda: AdaCosLoss(**SMOOTHED, mlp=[4]), adacos),
    Case(
        "normalized_softmax",
        lambda: NormalizedSoftmaxLoss(**HEAD, temperature=0.2),
        normalized_softmax,
        peer(pml_normalized_softmax),
    ),
    Case(
        "normalized_softmax smoothed",
        lambda: NormalizedSoftmaxLoss(**SMOOTHED, temperature=0.2),
        normalized_softmax,
    ),
]
