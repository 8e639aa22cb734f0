"""Losses of proxies from their formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.regularizers import SparseCentersRegularizer
from torch import Tensor, nn

from metricli.components.losses import ProxyAnchorLoss, ProxyNCALoss, SoftTripleLoss
from tests.components.losses.case import DIM, NUM_LABELS, Case
from tests.components.losses.classification import HEAD, SMOOTHED, cosines, peer, pml_head, shares


def proxy_nca(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """-log of exp(-d² / T) of the own proxy over the sum of all, by distances."""
    total = rows.new_zeros(())
    for row, label in zip(rows, labels.tolist(), strict=True):
        kernels = []
        for proxy in module.weight:
            squared = (row / row.norm() - proxy / proxy.norm()).square().sum()
            kernels.append(torch.exp(-squared / module.temperature))
        for share, kernel in zip(shares(module, label), kernels, strict=True):
            total = total - share * torch.log(kernel / torch.stack(kernels).sum())
    return total / len(labels)


def proxy_anchor(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    found, alpha, margin = cosines(module, rows), module.alpha, module.margin
    near, far, with_positive = rows.new_zeros(()), rows.new_zeros(()), set(labels.tolist())
    for proxy in range(NUM_LABELS):
        positives, negatives = rows.new_zeros(()), rows.new_zeros(())
        for i, label in enumerate(labels.tolist()):
            if label == proxy:
                positives = positives + torch.exp(-alpha * (found[i, proxy] - margin))
            else:
                negatives = negatives + torch.exp(alpha * (found[i, proxy] + margin))
        near = near + torch.log(1 + positives) / len(with_positive)
        far = far + torch.log(1 + negatives) / NUM_LABELS
    return near + far


def soft_triple(module: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    count, found = module.centers_per_label, cosines(module, rows)
    losses = []
    for i, label in enumerate(labels.tolist()):
        kernels = []
        for other in range(NUM_LABELS):
            own = found[i, other * count : (other + 1) * count]
            weights = torch.exp(own / module.gamma)
            similarity = (weights / weights.sum() * own).sum()
            kernels.append(torch.exp(module.la * (similarity - module.margin * (other == label))))
        losses.append(-torch.log(kernels[label] / torch.stack(kernels).sum()))
    centres, spread = F.normalize(module.weight), rows.new_zeros(())
    for label in range(NUM_LABELS):
        for t in range(count):
            for s in range(t + 1, count):
                spread = spread + (centres[label * count + t] - centres[label * count + s]).norm()
    pairs = NUM_LABELS * count * (count - 1)
    return torch.stack(losses).mean() + (module.tau * spread / pairs if pairs else 0)


def pml_proxy_nca(module: nn.Module) -> nn.Module:
    return pml.ProxyNCALoss(**pml_head(), softmax_scale=1 / module.temperature)


def pml_proxy_anchor(module: nn.Module) -> nn.Module:
    return pml.ProxyAnchorLoss(**pml_head(), margin=module.margin, alpha=module.alpha)


def pml_soft_triple(module: nn.Module) -> nn.Module:
    return pml.SoftTripleLoss(
        **pml_head(),
        centers_per_class=module.centers_per_label,
        la=module.la,
        gamma=module.gamma,
        margin=module.margin,
        weight_regularizer=SparseCentersRegularizer(NUM_LABELS, module.centers_per_label),
        weight_reg_weight=module.tau,
    )


CASES = [
    Case("proxy_nca", lambda: ProxyNCALoss(**HEAD), proxy_nca, peer(pml_proxy_nca)),
    Case("proxy_nca smoothed", lambda: ProxyNCALoss(**SMOOTHED, temperature=0.3), proxy_nca),
    Case("proxy_anchor", lambda: ProxyAnchorLoss(**HEAD), proxy_anchor, peer(pml_proxy_anchor)),
    Case("proxy_anchor mlp", lambda: ProxyAnchorLoss(**HEAD, margin=0.3, alpha=8, mlp=[9, 3]), proxy_anchor),
    Case(
        "soft_triple",
        lambda: SoftTripleLoss(**HEAD, centers_per_label=4),
        soft_triple,
        peer(pml_soft_triple),
    ),
    Case(
        "soft_triple wide",
        lambda: SoftTripleLoss(
            dim=DIM, num_labels=NUM_LABELS, centers_per_label=2, la=5, gamma=1.0, margin=0.3, tau=2.0, mlp=[5]
        ),
        soft_triple,
    ),
    Case("soft_triple one centre", lambda: SoftTripleLoss(**HEAD, centers_per_label=1), soft_triple),
]
