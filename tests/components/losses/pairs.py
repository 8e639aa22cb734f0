"""The losses over pairs by loops over anchors, written from the papers, and by pytorch-metric-learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.reducers import DoNothingReducer
from torch import Tensor, nn

from metricli.components.losses import (
    CircleLoss,
    ContrastiveLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NPairsLoss,
    NTXentLoss,
    SupConLoss,
)
from metricli.components.miners import AllTriplets, HardTriplets
from tests.components.losses.case import Case

Naive = Callable[..., Tensor]


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y) / (x.norm() * y.norm())


def apart(x: Tensor, y: Tensor, kind: str) -> Tensor:
    return 1 - cosine(x, y) if kind == "cosine" else (x - y).norm()


def anchors(
    rows: Tensor, labels: Tensor, others: Tensor | None, other_labels: Tensor | None
) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor]]]:
    """Each row with its positives and its negatives: of the batch without self, or of the others."""
    bank = rows if others is None else others
    bank_labels = labels if other_labels is None else other_labels
    for a, row in enumerate(rows):
        near = [i for i in range(len(bank)) if bank_labels[i] == labels[a] and (others is not None or i != a)]
        far = [i for i in range(len(bank)) if bank_labels[i] != labels[a]]
        yield row, [bank[i] for i in near], [bank[i] for i in far]


def mean(values: list[Tensor]) -> Tensor:
    return sum(values[1:], values[0]) / len(values)


def contrastive(module, rows, labels, others=None, other_labels=None) -> Tensor:
    near, far = [], []
    for row, positives, negatives in anchors(rows, labels, others, other_labels):
        for x in positives:
            near.append(0.5 * (apart(row, x, module.distance) - module.pos_margin).clamp(min=0) ** 2)
        for x in negatives:
            far.append(0.5 * (module.neg_margin - apart(row, x, module.distance)).clamp(min=0) ** 2)
    if module.reduction == "sum":
        return sum(near) + sum(far)
    if module.reduction == "mean_active":
        near, far = [x for x in near if x > 0], [x for x in far if x > 0]
    return mean(near) + mean(far)


def contrastive_of_hard_pairs(module, rows, labels) -> Tensor:
    near, far = [], []
    for row, positives, negatives in anchors(rows, labels, None, None):
        if positives and negatives:
            near.append(max((row - x).norm() for x in positives) ** 2 / 2)
            far.append((module.neg_margin - min((row - x).norm() for x in negatives)).clamp(min=0) ** 2 / 2)
    return mean(near) + mean(far)


def contrastive_by_pml(module, rows, labels) -> Tensor:
    """Theirs is a hinge that is not squared: theirs of each pair, squared and halved."""
    theirs = pml.ContrastiveLoss(
        pos_margin=module.pos_margin, neg_margin=module.neg_margin, reducer=DoNothingReducer()
    )
    theirs.distance.normalize_embeddings = False
    found = theirs(rows, labels)
    return sum((found[key]["losses"] ** 2).mean() / 2 for key in ("pos_loss", "neg_loss"))


def softmax_of_pairs(similar: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Naive:
    """One term for each positive pair: the share of the positive among itself and the anchor's negatives."""

    def naive(module, rows, labels, others=None, other_labels=None) -> Tensor:
        terms = []
        for row, positives, negatives in anchors(rows, labels, others, other_labels):
            for x in positives:
                own = similar(module, row, x).exp()
                rest = [similar(module, row, y).exp() for y in negatives]
                if rest:
                    terms.append(-(own / (own + sum(rest))).log())
        loss = mean(terms)
        if others is None and getattr(module, "l2_penalty", 0):
            loss = loss + module.l2_penalty * mean([row.norm() ** 2 for row in rows])
        return loss

    return naive


nt_xent = softmax_of_pairs(lambda module, x, y: cosine(x, y) / module.temperature)
n_pairs = softmax_of_pairs(lambda module, x, y: x @ y)


def supcon(module, rows, labels, others=None, other_labels=None) -> Tensor:
    terms = []
    for row, positives, negatives in anchors(rows, labels, others, other_labels):
        if positives and negatives:
            total = sum((cosine(row, x) / module.temperature).exp() for x in positives + negatives)
            logs = [((cosine(row, x) / module.temperature).exp() / total).log() for x in positives]
            terms.append(-sum(logs) / len(logs))
    return mean(terms)


def multi_similarity(module, rows, labels, others=None, other_labels=None) -> Tensor:
    terms = []
    for row, positives, negatives in anchors(rows, labels, others, other_labels):
        near, far = [cosine(row, x) for x in positives], [cosine(row, x) for x in negatives]
        if module.mine:
            near, far = (
                [s for s in near if far and s < max(far) + module.epsilon],
                [s for s in far if near and s > min(near) - module.epsilon],
            )
        pull = sum((-module.alpha * (s - module.base)).exp() for s in near)
        push = sum((module.beta * (s - module.base)).exp() for s in far)
        terms.append(
            torch.log1p(torch.as_tensor(pull)) / module.alpha
            + torch.log1p(torch.as_tensor(push)) / module.beta
        )
    return mean(terms)


def multi_similarity_by_pml(module, rows, labels) -> Tensor:
    pairs = MultiSimilarityMiner(epsilon=module.epsilon)(rows, labels) if module.mine else None
    return pml.MultiSimilarityLoss(module.alpha, module.beta, module.base)(rows, labels, pairs)


def circle(module, rows, labels, others=None, other_labels=None) -> Tensor:
    terms = []
    for row, positives, negatives in anchors(rows, labels, others, other_labels):
        pull, push = [], []
        for s in [cosine(row, x) for x in positives]:
            weight = (1 + module.m - s.detach()).clamp(min=0)
            pull.append((-module.gamma * weight * (s - (1 - module.m))).exp())
        for s in [cosine(row, x) for x in negatives]:
            weight = (s.detach() + module.m).clamp(min=0)
            push.append((module.gamma * weight * (s - module.m)).exp())
        if pull and push:
            terms.append(torch.log1p(sum(push) * sum(pull)))
    return mean(terms)


def lifted(module, rows, labels, others=None, other_labels=None) -> Tensor:
    """The paper's, where the negatives of a pair's other end are the anchors of another label."""
    bank, bank_labels = (rows, labels) if others is None else (others, other_labels)
    terms = []
    for i in range(len(rows)):
        for j in range(len(bank)):
            if bank_labels[j] == labels[i] and (others is not None or i != j):
                ends = [(rows[i], bank[k]) for k in range(len(bank)) if bank_labels[k] != labels[i]]
                ends += [(rows[k], bank[j]) for k in range(len(rows)) if labels[k] != bank_labels[j]]
                total = sum((module.margin - apart(x, y, module.distance)).exp() for x, y in ends)
                terms.append((total.log() + apart(rows[i], bank[j], module.distance)).clamp(min=0) ** 2 / 2)
    return mean(terms)


def lifted_generalized(module, rows, labels, others=None, other_labels=None) -> Tensor:
    terms = []
    for row, positives, negatives in anchors(rows, labels, others, other_labels):
        if positives and negatives:
            pull = sum(apart(row, x, module.distance).exp() for x in positives)
            push = sum((module.margin - apart(row, x, module.distance)).exp() for x in negatives)
            terms.append((pull.log() + push.log()).clamp(min=0))
    return mean(terms)


def lifted_by_pml(module, rows, labels) -> Tensor:
    """Their generalized form counts anchors without a positive; those are left out here."""
    kinds = {"pairwise": pml.LiftedStructureLoss, "generalized": pml.GeneralizedLiftedStructureLoss}
    theirs = kinds[module.form](neg_margin=module.margin, reducer=DoNothingReducer())
    theirs.distance.normalize_embeddings = False
    values = theirs(rows, labels)["loss"]["losses"]
    if module.form == "generalized":
        values = values[[bool((labels == label).sum() > 1) for label in labels]]
    return values.mean()


def by_pml(make: Callable[[nn.Module], nn.Module]) -> Naive:
    return lambda module, rows, labels: make(module)(rows, labels)


nt_xent_by_pml = by_pml(lambda module: pml.NTXentLoss(temperature=module.temperature))
supcon_by_pml = by_pml(lambda module: pml.SupConLoss(temperature=module.temperature))
circle_by_pml = by_pml(lambda module: pml.CircleLoss(m=module.m, gamma=module.gamma))

REFERENCED = [
    Case(
        "contrastive",
        lambda: ContrastiveLoss(pos_margin=0.5, neg_margin=3.5),
        contrastive,
        contrastive_by_pml,
    ),
    Case("contrastive cosine", lambda: ContrastiveLoss(distance="cosine", neg_margin=0.9), contrastive),
    Case(
        "contrastive active",
        lambda: ContrastiveLoss(pos_margin=3.0, neg_margin=3.0 + 1e-3, reduction="mean_active"),
        contrastive,
    ),
    Case("contrastive sum", lambda: ContrastiveLoss(neg_margin=3.0, reduction="sum"), contrastive),
    Case("nt_xent", NTXentLoss, nt_xent, nt_xent_by_pml),
    Case("nt_xent warm", lambda: NTXentLoss(temperature=0.5), nt_xent, nt_xent_by_pml),
    Case("n_pairs", NPairsLoss, n_pairs),
    Case("n_pairs penalty", lambda: NPairsLoss(l2_penalty=0.02), n_pairs),
    Case("supcon", SupConLoss, supcon, supcon_by_pml),
    Case(
        "multi_similarity",
        MultiSimilarityLoss,
        multi_similarity,
        multi_similarity_by_pml,
    ),
    Case(
        "multi_similarity all",
        lambda: MultiSimilarityLoss(alpha=3.0, beta=20.0, base=0.3, mine=False),
        multi_similarity,
        multi_similarity_by_pml,
    ),
    Case("circle", CircleLoss, circle, circle_by_pml),
    Case("circle persons", lambda: CircleLoss(m=0.25, gamma=128.0), circle, circle_by_pml),
    Case("lifted_structure", LiftedStructureLoss, lifted, lifted_by_pml),
    Case("lifted_structure cosine", lambda: LiftedStructureLoss(distance="cosine", margin=0.5), lifted),
    Case(
        "lifted_structure generalized",
        lambda: LiftedStructureLoss(form="generalized"),
        lifted_generalized,
        lifted_by_pml,
    ),
]
"""Their naive values take a reference too."""

CASES = [
    *REFERENCED,
    Case(
        "contrastive mined",
        lambda: ContrastiveLoss(neg_margin=4.0, miner=HardTriplets()),
        contrastive_of_hard_pairs,
    ),
    Case(
        "contrastive all mined",
        lambda: ContrastiveLoss(neg_margin=4.0, miner=AllTriplets()),
        contrastive,
    ),
]
