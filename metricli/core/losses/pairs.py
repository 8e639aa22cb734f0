"""Losses over all pairs of a batch, as functions of a matrix of distances or similarities and two masks.

Everywhere (B, R): anchors by reference; `positives` and `negatives` are bool masks (B, R) without overlap,
and a pair in neither mask does not count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "anchor_mask",
    "circle_losses",
    "contrastive_losses",
    "generalized_lifted_losses",
    "lifted_losses",
    "masked_logsumexp",
    "multi_similarity_losses",
    "multi_similarity_pairs",
    "pair_cross_entropies",
    "supcon_losses",
]


def anchor_mask(positives: Tensor, negatives: Tensor) -> Tensor:
    """Bool (B,): the anchors that have a positive and a negative."""
    return positives.any(1) & negatives.any(1)


def masked_logsumexp(values: Tensor, mask: Tensor, dim: int = 1) -> Tensor:
    """log Σ exp(values) along `dim` where `mask` is true; -inf with gradient 0 where it nowhere is."""
    nowhere = ~mask.any(dim)
    kept = values.masked_fill(~mask, -torch.inf).masked_fill(nowhere.unsqueeze(dim), 0.0)
    return kept.logsumexp(dim).masked_fill(nowhere, -torch.inf)


def contrastive_losses(distances: Tensor, positives: Tensor, pos_margin: float, neg_margin: float) -> Tensor:
    """½ max(0, d - pos_margin)² of positive pairs, ½ max(0, neg_margin - d)² of all others; (B, R).

    Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping, 2006, whose pos_margin is 0.
    """
    return 0.5 * torch.where(positives, distances - pos_margin, neg_margin - distances).relu().square()


def pair_cross_entropies(similarities: Tensor, negatives: Tensor) -> Tensor:
    """-log(exp s_ap / (exp s_ap + Σ_n exp s_an)) of each pair (a, p) as if it were positive; (B, R).

    With the cosine over a temperature, NT-Xent's (Chen et al. 2020) against the anchor's negatives; with the
    inner product, N-pair's (Sohn 2016). 0 for an anchor without negatives.
    """
    return F.softplus(masked_logsumexp(similarities, negatives)[:, None] - similarities)


def supcon_losses(similarities: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """The mean over the anchor's positives p of -log(exp s_ap / Σ exp s_a·), the sum over all pairs; (B,).

    `similarities` are cosines over the temperature; -inf for an anchor without a pair.
    Khosla et al., Supervised Contrastive Learning, 2020, L_out.
    """
    total = torch.where(positives, similarities, 0.0).sum(1) / positives.sum(1).clamp(min=1)
    return masked_logsumexp(similarities, positives | negatives) - total


def multi_similarity_losses(
    similarities: Tensor, positives: Tensor, negatives: Tensor, alpha: float, beta: float, base: float
) -> Tensor:
    """log(1 + Σ_p exp(-α(s - base)))/α + log(1 + Σ_n exp(β(s - base)))/β of each anchor; (B,).

    Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, 2019.
    """
    near = F.softplus(masked_logsumexp(alpha * (base - similarities), positives)) / alpha
    far = F.softplus(masked_logsumexp(beta * (similarities - base), negatives)) / beta
    return near + far


def multi_similarity_pairs(
    similarities: Tensor, positives: Tensor, negatives: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """The positive and the negative pairs worth learning from: two bool masks (B, R).

    A positive is kept if it is less similar than the most similar negative of its anchor plus epsilon; a
    negative, if it is more similar than the least similar positive minus epsilon. An anchor without
    positives or without negatives keeps none.
    Wang et al. 2019, the mining that goes before the weights.
    """
    if similarities.shape[1] == 0:
        return positives, negatives
    nearest = similarities.masked_fill(~negatives, -torch.inf).amax(1, keepdim=True)
    farthest = similarities.masked_fill(~positives, torch.inf).amin(1, keepdim=True)
    # Negated, so that a pair whose similarity is NaN is kept and shows in the loss.
    near, far = ~(similarities >= nearest + epsilon), ~(similarities <= farthest - epsilon)
    return positives & near, negatives & far


def circle_losses(
    similarities: Tensor, positives: Tensor, negatives: Tensor, m: float, gamma: float
) -> Tensor:
    """log(1 + Σ_n exp(γ α_n (s_n - m)) Σ_p exp(-γ α_p (s_p - 1 + m))) of each anchor; (B,).

    The weights α_n = max(0, s_n + m) and α_p = max(0, 1 + m - s_p) have no gradient. 0 for an anchor
    without positives or without negatives.
    Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, 2020.
    """
    fixed = similarities.detach()
    near = -gamma * (1 + m - fixed).relu() * (similarities - 1 + m)
    far = gamma * (fixed + m).relu() * (similarities - m)
    return F.softplus(masked_logsumexp(near, positives) + masked_logsumexp(far, negatives))


def lifted_losses(distances: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """½ max(0, log(Σ_n exp(margin - d_an) + Σ_n exp(margin - d_np)) + d_ap)² of each pair (a, p); (B, R).

    The first sum is over the negatives of the anchor, the second over those of the other end, the anchors
    of another label than p. 0 for a pair without any.
    Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, 2016.
    """
    of_anchors = masked_logsumexp(margin - distances, negatives)
    of_others = masked_logsumexp(margin - distances, negatives, dim=0)
    both = torch.stack([of_anchors[:, None].expand_as(distances), of_others.expand_as(distances)])
    return 0.5 * (masked_logsumexp(both, both != -torch.inf, dim=0) + distances).relu().square()


def generalized_lifted_losses(
    distances: Tensor, positives: Tensor, negatives: Tensor, margin: float
) -> Tensor:
    """max(0, log Σ_p exp(d_ap) + log Σ_n exp(margin - d_an)) of each anchor; (B,).

    0 for an anchor without positives or without negatives.
    Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017 ("lifted, generalized").
    """
    return (masked_logsumexp(distances, positives) + masked_logsumexp(margin - distances, negatives)).relu()
