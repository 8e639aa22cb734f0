"""Three losses of pytorch-metric-learning from their formulas: of pairs, with a head, and of a miner."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricli.components.losses.pml import PMLLoss
from tests.components.losses.case import DIM, NUM_LABELS, Case


def nt_xent(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """-log of exp(s_ap / t) over itself and the anchor's negatives, the mean over positive pairs."""
    similarities = F.normalize(rows) @ F.normalize(rows).T / 0.5
    losses = []
    for a in range(len(rows)):
        negatives = [similarities[a, n] for n in range(len(rows)) if labels[n] != labels[a]]
        for p in range(len(rows)):
            if p != a and labels[p] == labels[a]:
                all_of_it = torch.stack([similarities[a, p], *negatives])
                losses.append(torch.logsumexp(all_of_it, 0) - similarities[a, p])
    return torch.stack(losses).mean()


def cosface(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the scaled cosines, the margin taken off that of the label."""
    cosines = F.normalize(rows) @ F.normalize(module.loss.W, dim=0)
    losses = []
    for row, label in zip(cosines, labels.tolist(), strict=True):
        logits = 8.0 * torch.stack([cosine - 0.2 * (j == label) for j, cosine in enumerate(row)])
        losses.append(torch.logsumexp(logits, 0) - logits[label])
    return torch.stack(losses).mean()


def batch_hard(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """The hinge of each anchor's farthest positive and nearest negative, in distances not normalised."""
    losses = []
    for a in range(len(rows)):
        near = [(rows[a] - rows[p]).norm() for p in range(len(rows)) if p != a and labels[p] == labels[a]]
        far = [(rows[a] - rows[n]).norm() for n in range(len(rows)) if labels[n] != labels[a]]
        if near and far:
            losses.append((torch.stack(near).max() - torch.stack(far).min() + 0.3).clamp(min=0))
    return torch.stack(losses).sum()


def make(loss: str, args: dict[str, object], **parts: object) -> PMLLoss:
    return PMLLoss(loss=loss, args=args, dim=DIM, num_labels=NUM_LABELS, **parts)


CASES = [
    Case("pml", lambda: make("NTXentLoss", {"temperature": 0.5}), nt_xent),
    Case("pml head", lambda: make("CosFaceLoss", {"margin": 0.2, "scale": 8.0}), cosface),
    Case(
        "pml mined",
        lambda: make(
            "TripletMarginLoss",
            {"margin": 0.3},
            miner=("BatchHardMiner", {}),
            distance=("LpDistance", {"normalize_embeddings": False}),
            reducer=("SumReducer", {}),
        ),
        batch_hard,
    ),
]
