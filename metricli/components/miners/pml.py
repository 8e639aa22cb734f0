"""Any miner of pytorch-metric-learning (extra `pml`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metricli.components.pml import called, made
from metricli.core.distances import at_least_float32
from metricli.core.mining import Mined, Pairs, Triplets, check_batch

__all__ = ["PMLMiner"]


class PMLMiner(nn.Module):
    """The triplets or pairs that a miner of pytorch-metric-learning picks, in float32 at least.

    Args:
        miner: the name of a class in `pytorch_metric_learning.miners`.
        args: its arguments.
        distance: a class in `pytorch_metric_learning.distances` and its arguments; None: the miner's own.

    Raises:
        UsageError: the package is not installed.
        ValueError: no such class, or one that refuses its arguments.
    """

    def __init__(
        self,
        *,
        miner: str,
        args: Mapping[str, Any] | None = None,
        distance: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        given = {"distance": made("distances", *distance)} if distance else {}
        self.miner = made("miners", miner, {**(args or {}), **given})

    @torch.no_grad()
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Mined:
        """Choose from embeddings (B, D) with labels (B,), against a reference (R, D) if given.

        Raises:
            UsageError: the miner cannot work with its arguments.
            ValueError: shapes that do not fit, or a reference without its labels.
        """
        check_batch(embeddings, labels, reference, reference_labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            rows = at_least_float32(embeddings)
            others = None if reference is None else reference.to(rows.dtype)
            with called(self.miner):
                found = [indices.long() for indices in self.miner(rows, labels, others, reference_labels)]
        if len(found) == 3:
            return Mined(triplets=Triplets(*found))
        return Mined(positive_pairs=Pairs(*found[:2]), negative_pairs=Pairs(*found[2:]))
