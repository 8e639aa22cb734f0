"""ArcFace: classification of labels by angle, with an additive angular margin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metricli.core.distances import at_least_float32, unit_rows
from metricli.core.losses.classification import arcface_logits, smoothed_cross_entropy
from metricli.core.mining import check_batch

__all__ = ["ArcFaceLoss"]


class ArcFaceLoss(nn.Module):
    """Cross-entropy over scaled cosines to a learnt centre for each label, with an angular margin.

    The centres are `weight` (num_labels, dim), a parameter of the loss: give it to the optimizer. Only
    their directions count; they start at length about 1 whatever dim and num_labels, since the length
    sets how fast they turn. Logits are at least float32, whatever the embeddings or autocast.
    After each call `stats` holds detached 0-dim tensors: `accuracy`, the share of embeddings nearest to
    their own centre (without margin), and `target_cosine`, the mean cosine to it.
    Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019.

    Args:
        dim: size of an embedding.
        num_labels: labels are 0..num_labels-1.
        scale: the cosines' multiplier; 64 is the paper's, found on 85 thousand labels, and the peers'
            default. Some 30 gives a softer loss that suits a few thousand labels or less.
        margin: in radians, in [0, π/2].
        label_smoothing: share of the target spread evenly over all labels.
        category_smoothing: share of the target spread evenly over the labels of its category.
        label_to_category: (num_labels,) the category of each label, 0 or more.

    Raises:
        ValueError: dim or num_labels below 1, scale not above 0, a margin outside [0, π/2], smoothing
            below 0 or 1 and more in sum, or a label_to_category that is missing or does not fit.
    """

    stats: dict[str, Tensor]
    label_to_category: Tensor | None

    def __init__(
        self,
        *,
        dim: int,
        num_labels: int,
        scale: float = 64.0,
        margin: float = 0.5,
        label_smoothing: float = 0.0,
        category_smoothing: float = 0.0,
        label_to_category: Tensor | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("num_labels", num_labels)):
            if size < 1:
                raise ValueError(f"{name} must be 1 or more, got {size!r}")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be a finite number above 0, got {scale!r}")
        if not 0 <= margin <= math.pi / 2:
            raise ValueError(f"margin must be in radians, from 0 to π/2, got {margin!r}")
        if not (
            label_smoothing >= 0 and category_smoothing >= 0 and label_smoothing + category_smoothing < 1
        ):
            raise ValueError(
                "label_smoothing and category_smoothing must be 0 or more and below 1 in sum, "
                f"got {label_smoothing!r} and {category_smoothing!r}"
            )
        if category_smoothing > 0 and label_to_category is None:
            raise ValueError(f"category_smoothing={category_smoothing!r} needs label_to_category")
        self.scale = float(scale)
        self.margin = float(margin)
        self.label_smoothing = float(label_smoothing)
        self.category_smoothing = float(category_smoothing)
        self.weight = nn.Parameter(torch.randn(num_labels, dim) / math.sqrt(dim))
        categories = None if label_to_category is None else _checked_categories(label_to_category, num_labels)
        self.register_buffer("label_to_category", categories, persistent=False)
        self.stats = {}

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss of embeddings (B, dim) with labels (B,) in 0..num_labels-1.

        Raises:
            ValueError: shapes that do not fit.
        """
        check_batch(embeddings, labels)
        if embeddings.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"embeddings must have dim={self.weight.shape[1]} columns, got {embeddings.shape[1]}"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            rows, centres = at_least_float32(embeddings), at_least_float32(self.weight)
            dtype = torch.promote_types(rows.dtype, centres.dtype)
            cosines = unit_rows(rows.to(dtype)) @ unit_rows(centres.to(dtype)).T
            labels = labels.long()
            logits = arcface_logits(cosines, labels, self.scale, self.margin)
            self._note(cosines.detach(), labels)
            if len(labels) == 0:
                return logits.sum()
            return smoothed_cross_entropy(
                logits, labels, self.label_smoothing, self.category_smoothing, self.label_to_category
            )

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        num_labels, dim = self.weight.shape
        return f"dim={dim}, num_labels={num_labels}, scale={self.scale}, margin={self.margin}"

    def _note(self, cosines: Tensor, labels: Tensor) -> None:
        count = max(1, len(labels))
        self.stats = {
            "accuracy": (cosines.argmax(1) == labels).sum().to(cosines.dtype) / count,
            "target_cosine": cosines.gather(1, labels[:, None]).sum() / count,
        }


def _checked_categories(label_to_category: Tensor | Sequence[int], num_labels: int) -> Tensor:
    categories = torch.as_tensor(label_to_category)
    if categories.shape != (num_labels,):
        raise ValueError(
            f"label_to_category must hold one category for each of {num_labels} labels, "
            f"got shape {tuple(categories.shape)}"
        )
    if categories.is_floating_point() or categories.is_complex() or bool((categories < 0).any()):
        raise ValueError("label_to_category must hold integers, 0 or more")
    return categories.long().clone()
