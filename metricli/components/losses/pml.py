"""Any loss of pytorch-metric-learning, with its miner, distance and reducer (extra `pml`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metricli.components.pml import called, known_classes, made, sizes_asked
from metricli.core.distances import at_least_float32
from metricli.core.mining import check_batch

__all__ = ["PMLLoss"]

Part = tuple[str, Mapping[str, Any]]
"""A class of the package by its name, and its arguments."""


class PMLLoss(nn.Module):
    """A loss of pytorch-metric-learning on the batch, or on what a miner of the package picks from it.

    A loss with a head gets its `num_classes` and `embedding_size` from `num_labels` and `dim`; the head is a
    parameter of this module. The arithmetic is at least float32, whatever the embeddings or autocast. `stats`
    is empty.

    Args:
        loss: the name of a class in `pytorch_metric_learning.losses`.
        args: its arguments.
        miner: a class in `pytorch_metric_learning.miners` and its arguments; None mines nothing.
        distance: a class in `pytorch_metric_learning.distances` and its arguments, for the loss and the
            miner; None leaves each its own.
        reducer: a class in `pytorch_metric_learning.reducers` and its arguments; None: the loss's own.
        dim: size of an embedding.
        num_labels: labels are 0..num_labels-1.

    Raises:
        UsageError: the package is not installed.
        ValueError: no such class, or one that refuses its arguments.
    """

    stats: dict[str, Tensor]

    def __init__(
        self,
        *,
        loss: str,
        args: Mapping[str, Any] | None = None,
        miner: Part | None = None,
        distance: Part | None = None,
        reducer: Part | None = None,
        dim: int,
        num_labels: int,
    ) -> None:
        super().__init__()
        classes = known_classes("losses")
        sizes = sizes_asked(classes[loss], dim=dim, num_labels=num_labels) if loss in classes else {}
        parts = {"reducer": made("reducers", *reducer)} if reducer else {}
        self.miner = made("miners", miner[0], {**miner[1], **_distance(distance)}) if miner else None
        self.loss = made("losses", loss, {**(args or {}), **sizes, **parts, **_distance(distance)})
        self.stats = {}

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss of embeddings (B, dim) with labels (B,).

        Raises:
            UsageError: the loss or its miner cannot work with its arguments.
            ValueError: shapes that do not fit.
        """
        check_batch(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            rows, mined = at_least_float32(embeddings), None
            if self.miner is not None:
                with called(self.miner):
                    mined = self.miner(rows.detach(), labels)
            with called(self.loss):
                value: Tensor = self.loss(rows, labels, mined)
            return value


def _distance(part: Part | None) -> dict[str, nn.Module]:
    return {"distance": made("distances", *part)} if part else {}
