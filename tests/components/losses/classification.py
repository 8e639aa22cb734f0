"""Classification losses from their formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricli.components.losses import ArcFaceLoss
from tests.components.losses.case import DIM, NUM_LABELS, Case


def cosines(module: nn.Module, rows: Tensor) -> Tensor:
    return F.normalize(rows) @ F.normalize(module.weight).T


def arcface(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    found = cosines(module, rows)
    losses = []
    for row, label in zip(found, labels.tolist(), strict=True):
        logits = row * module.scale
        shifted = torch.cos(torch.acos(row[label]) + module.margin) * module.scale
        logits = torch.cat([logits[:label], shifted[None], logits[label + 1 :]])
        losses.append(torch.logsumexp(logits, 0) - shifted)
    return torch.stack(losses).mean()


CASES = [Case("arcface", lambda: ArcFaceLoss(dim=DIM, num_labels=NUM_LABELS, scale=8.0, margin=0.3), arcface)]
