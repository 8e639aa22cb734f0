"""Losses of proxies and of several centres for a label, as functions of cosines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metricli.core.distances import safe_sqrt

__all__ = ["center_spread", "proxy_anchor_loss", "soft_similarities"]


def proxy_anchor_loss(cosines: Tensor, labels: Tensor, alpha: float, margin: float) -> Tensor:
    """The scalar Proxy-Anchor loss of `cosines` (B, L) between embeddings and proxies, labels (B,) int64.

    The mean over proxies with a positive in the batch of log(1 + Σ exp(-alpha (s - margin))) over their
    positives, and the mean over all proxies of log(1 + Σ exp(alpha (s + margin))) over their negatives;
    0 for an empty batch.
    Kim et al., Proxy Anchor Loss for Deep Metric Learning, 2020, equation 4.
    """
    positives = F.one_hot(labels, cosines.shape[1]).bool()
    of_positives = _log1p_sum_exp(-alpha * (cosines - margin), positives)
    of_negatives = _log1p_sum_exp(alpha * (cosines + margin), ~positives)
    return of_positives.sum() / positives.any(0).sum().clamp(min=1) + of_negatives.mean()


def soft_similarities(cosines: Tensor, gamma: float) -> Tensor:
    """Similarities (B, L) to labels: cosines (B, L, K) to their centres, averaged by softmax(cos / gamma).

    Qian et al., SoftTriple Loss: Deep Metric Learning Without Triplet Sampling, 2019, equation 6.
    """
    return ((cosines / gamma).softmax(2) * cosines).sum(2)


def center_spread(centres: Tensor) -> Tensor:
    """The mean distance, 0-dim, between two centres of one label, of unit vectors `centres` (L, K, D).

    0 where K is 1. The gradient at equal centres is 0. Half of it is SoftTriple's regulariser without tau,
    which divides the sum over the K (K - 1) / 2 pairs of each label by L K (K - 1).
    """
    labels, count, _ = centres.shape
    squared = 2 - 2 * centres @ centres.transpose(1, 2)
    pairs = torch.triu_indices(count, count, offset=1, device=centres.device)
    return safe_sqrt(squared[:, pairs[0], pairs[1]]).sum() / max(1, labels * pairs.shape[1])


def _log1p_sum_exp(exponents: Tensor, mask: Tensor) -> Tensor:
    """log(1 + Σ exp(exponents)) of each column (L,) over the rows of `mask` (B, L)."""
    return F.pad(exponents.masked_fill(~mask, -torch.inf), (0, 0, 1, 0)).logsumexp(0)
