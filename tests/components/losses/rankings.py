"""The ranking losses by loops over anchors, positives and candidates."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from metricli.components.losses import FastAPLoss, RecallAtKLoss, SmoothAPLoss, SurrogatePrecisionLoss
from tests.components.losses.case import Case
from tests.components.losses.triplets import distance


def positives_of(labels: Tensor, anchor: int) -> list[int]:
    return [i for i in range(len(labels)) if i != anchor and labels[i] == labels[anchor]]


def similarity(rows: Tensor, a: int, b: int) -> Tensor:
    return (rows[a] @ rows[b]) / (rows[a].norm() * rows[b].norm())


def step(x: Tensor, temperature: float) -> Tensor:
    return 1 / (1 + torch.exp(-x / temperature))


def smooth_ap(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    precisions = []
    for a in range(len(rows)):
        wanted = positives_of(labels, a)
        terms = []
        for i in wanted:
            of_positives = of_negatives = torch.zeros((), dtype=rows.dtype)
            for j in range(len(rows)):
                ahead = step(similarity(rows, a, j) - similarity(rows, a, i), module.temperature)
                if j in wanted and j != i:
                    of_positives = of_positives + ahead
                elif labels[j] != labels[a]:
                    of_negatives = of_negatives + ahead
            terms.append((1 + of_positives) / (1 + of_positives + of_negatives))
        if wanted:
            precisions.append(torch.stack(terms).mean())
    return 1 - torch.stack(precisions).mean()


def soft_rank(rows: Tensor, anchor: int, item: int, kind: str, temperature: float) -> Tensor:
    far = distance(rows[anchor], rows[item], kind)
    others = [j for j in range(len(rows)) if j not in (anchor, item)]
    ahead = [step(far - distance(rows[anchor], rows[j], kind), temperature) for j in others]
    return 1 + torch.stack(ahead).sum()


def recall_at_k(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    recalls = []
    for a in range(len(rows)):
        wanted = positives_of(labels, a)
        ranks = [soft_rank(rows, a, p, "cosine", module.rank_temperature) for p in wanted]
        for k in module.k if wanted else []:
            found = sum(step(k - rank, module.k_temperature) for rank in ranks)
            recalls.append(found / min(k, len(wanted)))
    return 1 - torch.stack(recalls).mean()


def surrogate_precision(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    precisions = []
    for a in range(len(rows)):
        wanted = positives_of(labels, a)
        k = module.k or len(wanted)
        ranks = [soft_rank(rows, a, p, module.distance, module.rank_temperature) for p in wanted]
        if wanted:
            found = sum(step(k + 0.5 - rank, module.k_temperature) for rank in ranks)
            precisions.append(found / min(k, len(wanted)))
    return 1 - torch.stack(precisions).mean()


def fast_ap(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """With the triangular pulse of the paper around centres 4 l / L of the squared Euclidean distance."""
    width = 4 / module.bins
    rows = rows / rows.norm(dim=1, keepdim=True)
    precisions = []
    for a in range(len(rows)):
        wanted = positives_of(labels, a)
        total, so_far, so_far_all = torch.zeros(3, dtype=rows.dtype)
        for centre in range(module.bins + 1):
            here = here_all = torch.zeros((), dtype=rows.dtype)
            for j in range(len(rows)):
                gap = ((rows[a] - rows[j]).square().sum() - centre * width).abs()
                if j != a and gap < width:
                    here_all = here_all + 1 - gap / width
                    here = here + (1 - gap / width if j in wanted else 0)
            so_far, so_far_all = so_far + here, so_far_all + here_all
            if so_far_all > 0:
                total = total + here * so_far / so_far_all
        if wanted:
            precisions.append(total / len(wanted))
    return 1 - torch.stack(precisions).mean()


def pml_fast_ap(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_metric_learning.losses import FastAPLoss as Peer
    return Peer(num_bins=module.bins)(rows, labels)


CASES = [
    Case("smooth_ap", lambda: SmoothAPLoss(temperature=0.1), smooth_ap),
    Case("smooth_ap sharp", SmoothAPLoss, smooth_ap),
    Case("recall_at_k", lambda: RecallAtKLoss(k=[1, 2, 4], rank_temperature=0.1), recall_at_k),
    Case("recall_at_k one", lambda: RecallAtKLoss(k=[1], k_temperature=0.5), recall_at_k),
    Case("surrogate_precision", lambda: SurrogatePrecisionLoss(rank_temperature=0.1), surrogate_precision),
    Case(
        "surrogate_precision k", lambda: SurrogatePrecisionLoss(k=2, k_temperature=0.5), surrogate_precision
    ),
    Case(
        "surrogate_precision cosine",
        lambda: SurrogatePrecisionLoss(k=1, rank_temperature=0.1, distance="cosine"),
        surrogate_precision,
    ),
    Case("fast_ap", FastAPLoss, fast_ap, peer=pml_fast_ap),
    Case("fast_ap fine", lambda: FastAPLoss(bins=25), fast_ap, peer=pml_fast_ap),
]
