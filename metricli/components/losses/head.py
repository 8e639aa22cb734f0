"""What losses with learnt centres share: the matrix of centres, cosines to it, smoothing, statistics."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricli.core.distances import at_least_float32, unit_rows
from metricli.core.losses.classification import smoothed_cross_entropy
from metricli.core.mining import check_batch

__all__ = [
    "HeadLoss",
    "HeadOptions",
    "SoftmaxHeadLoss",
    "SoftmaxHeadOptions",
    "check_cosine_margin",
    "check_positive",
]


class HeadOptions(TypedDict):
    """The keyword arguments of `HeadLoss`."""

    dim: int
    num_labels: int
    mlp: NotRequired[Sequence[int]]


class SoftmaxHeadOptions(HeadOptions):
    """The keyword arguments of `SoftmaxHeadLoss`."""

    label_smoothing: NotRequired[float]
    category_smoothing: NotRequired[float]
    label_to_category: NotRequired[Tensor | Sequence[int] | None]


class HeadLoss(nn.Module):
    """A loss over the cosines of a batch to learnt centres, one or several for each label.

    The centres are `weight` (num_labels * centers_per_label, D), those of a label side by side: a parameter
    of the loss, give it to the optimizer. Only their directions count; they start at length about 1 whatever
    D and num_labels, since the length sets how fast they turn. With `mlp` the embeddings pass through linear
    layers, with ReLU between, before they meet the centres, and D is its last size; what is searched with
    are the embeddings before it. Cosines are at least float32, whatever the embeddings or autocast.

    After each call `stats` holds detached 0-dim tensors: `accuracy`, the share of embeddings nearest to
    their own label, and `target_cosine`, the mean cosine to it, both without margin. `chosen`
    (num_labels * centers_per_label,) int64, saved with the weights, counts in training how often each
    centre was the nearest to an embedding; whoever reads it zeroes it.

    Args:
        dim: size of an embedding.
        num_labels: labels are 0..num_labels-1.
        centers_per_label: centres of each label.
        mlp: hidden and output sizes of the layers before the centres; none by default.

    Raises:
        ValueError: dim, num_labels or centers_per_label below 1, or a size in mlp below 2.
    """

    stats: dict[str, Tensor]
    chosen: Tensor

    def __init__(
        self, *, dim: int, num_labels: int, centers_per_label: int = 1, mlp: Sequence[int] = ()
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "num_labels": num_labels, "centers_per_label": centers_per_label}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be 1 or more, got {size!r}")
        if any(size < 2 for size in mlp):
            raise ValueError(f"mlp must hold sizes of 2 or more, got {list(mlp)!r}")
        self.dim, self.num_labels, self.centers_per_label = dim, num_labels, centers_per_label
        widths = [dim, *mlp]
        count = num_labels * centers_per_label
        self.weight = nn.Parameter(torch.randn(count, widths[-1]) / math.sqrt(widths[-1]))
        self.mlp = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.register_buffer("chosen", torch.zeros(count, dtype=torch.int64))
        self.stats = {}

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss of embeddings (B, dim) with labels (B,) in 0..num_labels-1.

        Raises:
            ValueError: shapes that do not fit.
        """
        check_batch(embeddings, labels)
        if embeddings.shape[1] != self.dim:
            raise ValueError(f"embeddings must have dim={self.dim} columns, got {embeddings.shape[1]}")
        with torch.autocast(embeddings.device.type, enabled=False):
            labels = labels.long()
            to_centres = self._cosines(embeddings)
            self._count(to_centres.detach())
            cosines = self.of_labels(to_centres)
            self._note(cosines.detach(), labels)
            return self.of_cosines(cosines, labels)

    def of_labels(self, cosines: Tensor) -> Tensor:
        """Similarities to labels (B, num_labels) from cosines to centres (B, num_labels * centers_per_label).

        Here a label is as near as its nearest centre.
        """
        return cosines if self.centers_per_label == 1 else self.by_label(cosines).amax(2)

    def by_label(self, centres: Tensor) -> Tensor:
        """Columns (B, num_labels * centers_per_label) as (B, num_labels, centers_per_label)."""
        return centres.reshape(len(centres), self.num_labels, self.centers_per_label)

    @abstractmethod
    def of_cosines(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss of cosines (B, num_labels) with labels (B,) int64."""

    def unchosen(self) -> Tensor:
        """The share of centres, 0-dim, that were nearest to no embedding since `chosen` was zeroed."""
        return (self.chosen == 0).float().mean()

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        several = f", centers_per_label={self.centers_per_label}" if self.centers_per_label > 1 else ""
        return f"dim={self.dim}, num_labels={self.num_labels}{several}"

    def _cosines(self, embeddings: Tensor) -> Tensor:
        dtype = torch.promote_types(at_least_float32(embeddings).dtype, at_least_float32(self.weight).dtype)
        rows = embeddings.to(dtype)
        for depth, layer in enumerate(self.mlp):
            weight, bias = (parameter.to(dtype) for parameter in layer.parameters())
            rows = F.linear(rows.relu() if depth else rows, weight, bias)
        return unit_rows(rows) @ unit_rows(self.weight.to(dtype)).T

    def _count(self, cosines: Tensor) -> None:
        if self.training:
            nearest = cosines.argmax(1)
            self.chosen.index_add_(0, nearest, torch.ones_like(nearest))

    def _note(self, cosines: Tensor, labels: Tensor) -> None:
        count = max(1, len(labels))
        self.stats = {
            "accuracy": (cosines.argmax(1) == labels).sum().to(cosines.dtype) / count,
            "target_cosine": cosines.gather(1, labels[:, None]).sum() / count,
        }


class SoftmaxHeadLoss(HeadLoss):
    """A `HeadLoss` that is the cross-entropy of logits made of the cosines, with smoothed targets.

    Args:
        dim: size of an embedding.
        num_labels: labels are 0..num_labels-1.
        centers_per_label: centres of each label.
        label_smoothing: share of the target spread evenly over all labels.
        category_smoothing: share of the target spread evenly over the labels of its category.
        label_to_category: (num_labels,) the category of each label, 0 or more.
        mlp: hidden and output sizes of the layers before the centres.

    Raises:
        ValueError: as `HeadLoss`; smoothing below 0 or 1 and more in sum, or a label_to_category that is
            missing or does not fit.
    """

    label_to_category: Tensor | None

    def __init__(
        self,
        *,
        dim: int,
        num_labels: int,
        centers_per_label: int = 1,
        label_smoothing: float = 0.0,
        category_smoothing: float = 0.0,
        label_to_category: Tensor | Sequence[int] | None = None,
        mlp: Sequence[int] = (),
    ) -> None:
        super().__init__(dim=dim, num_labels=num_labels, centers_per_label=centers_per_label, mlp=mlp)
        if not (
            label_smoothing >= 0 and category_smoothing >= 0 and label_smoothing + category_smoothing < 1
        ):
            raise ValueError(
                "label_smoothing and category_smoothing must be 0 or more and below 1 in sum, "
                f"got {label_smoothing!r} and {category_smoothing!r}"
            )
        if category_smoothing > 0 and label_to_category is None:
            raise ValueError(f"category_smoothing={category_smoothing!r} needs label_to_category")
        self.label_smoothing = float(label_smoothing)
        self.category_smoothing = float(category_smoothing)
        categories = None if label_to_category is None else _checked_categories(label_to_category, num_labels)
        self.register_buffer("label_to_category", categories, persistent=False)

    @abstractmethod
    def logits(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, num_labels) from cosines of that shape and labels (B,) int64."""

    def of_cosines(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy; a zero for an empty batch."""
        logits = self.logits(cosines, labels)
        if len(labels) == 0:
            return logits.sum()
        return smoothed_cross_entropy(
            logits, labels, self.label_smoothing, self.category_smoothing, self.label_to_category
        )


def check_positive(name: str, value: float) -> float:
    """A scale or temperature as a float.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    return float(value)


def check_cosine_margin(margin: float) -> float:
    """A margin between cosines as a float.

    Raises:
        ValueError: it is not in [0, 1).
    """
    if not 0 <= margin < 1:
        raise ValueError(f"margin must be a difference of cosines, 0 or more and below 1, got {margin!r}")
    return float(margin)


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
