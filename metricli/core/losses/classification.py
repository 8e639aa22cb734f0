"""Losses of classifying labels, as functions of cosines and logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metricli.core.distances import safe_sqrt

__all__ = [
    "adacos_scale",
    "arcface_logits",
    "cosface_logits",
    "fixed_adacos_scale",
    "smoothed_cross_entropy",
]


def arcface_logits(cosines: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Logits (B, L): scale * cos θ, and scale * cos(θ + margin) for the target; margin in [0, π/2] radians.

    cos(θ + m) = cos θ cos m - sin θ sin m needs no arccos, whose gradient is infinite at cos θ = ±1; the
    sine's gradient there is taken as 0. Where θ + m exceeds π, and cos(θ + m) would rise again, the
    logit goes on falling as cos θ - m sin m. `cosines` (B, L), `labels` (B,) int64.
    Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019, and its official code.
    """
    column = labels[:, None]
    target = cosines.gather(1, column)
    sines = safe_sqrt((1 - target) * (1 + target))
    shifted = target * math.cos(margin) - sines * math.sin(margin)
    falling = target - margin * math.sin(margin)
    return scale * cosines.scatter(1, column, torch.where(target >= -math.cos(margin), shifted, falling))


def cosface_logits(cosines: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Logits (B, L): scale * cos θ, and scale * (cos θ - margin) for the target.

    `cosines` (B, L), `labels` (B,) int64.
    Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, 2018, equation 4.
    """
    column = labels[:, None]
    return scale * cosines.scatter(1, column, cosines.gather(1, column) - margin)


def fixed_adacos_scale(num_labels: int) -> float:
    """√2 log(num_labels - 1), AdaCos's scale before it has seen a batch (Zhang et al. 2019, equation 11)."""
    return math.sqrt(2) * math.log(num_labels - 1)


def adacos_scale(cosines: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """AdaCos's scale (0-dim) for a batch: log B / cos(min(π/4, θ)), from the scale before it.

    B is the mean over the batch of Σ exp(scale * cos) over the labels that are not the target, and θ the
    median angle to the target, the lower one of two. It is kept within a tenth and ten times the start,
    `fixed_adacos_scale`, and is the scale before it if a cosine is NaN. `cosines` (B, L) in float32 or
    wider, B at least 1, L at least 3; `labels` (B,) int64.
    Zhang et al., AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face
    Representations, 2019, equations 12 and 13.
    """
    column = labels[:, None]
    others = (scale * cosines).scatter(1, column, -torch.inf)
    log_mean = others.logsumexp((0, 1)) - math.log(len(labels))
    median = cosines.gather(1, column).squeeze(1).sort().values[len(labels) // 2]
    start = fixed_adacos_scale(cosines.shape[1])
    found = (log_mean / median.clamp(min=math.sqrt(0.5))).clamp(start / 10, 10 * start)
    return torch.where(found.isfinite(), found, scale)


def smoothed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    category_smoothing: float = 0.0,
    label_to_category: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of `logits` (B, L) against `labels` (B,), smoothed over all labels and a category.

    The target gives `label_smoothing` to all labels evenly, `category_smoothing` evenly to the labels of
    the target's category (the target among them), the rest to the target.
    `label_to_category` (L,) int64 holds categories 0..C-1.
    """
    if category_smoothing == 0 or label_to_category is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    log_probabilities = logits.log_softmax(1)
    own = log_probabilities.gather(1, labels[:, None]).squeeze(1)
    sizes = torch.bincount(label_to_category)
    sums = logits.new_zeros(len(logits), len(sizes)).index_add(1, label_to_category, log_probabilities)
    category = label_to_category[labels]
    within = sums.gather(1, category[:, None]).squeeze(1) / sizes[category]
    rest = 1 - label_smoothing - category_smoothing
    return -(rest * own + label_smoothing * log_probabilities.mean(1) + category_smoothing * within).mean()
