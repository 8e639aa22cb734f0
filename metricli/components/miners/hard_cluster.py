"""Alex et al., Cluster Loss for Person Re-Identification, 2018: hard mining over means of labels."""

from __future__ import annotations

import torch
from torch import Tensor

from metricli.components.miners.by_distance import MinerOfDistance
from metricli.core.mining import Mined, check_batch
from metricli.core.selection import hard_clusters

__all__ = ["HardCluster"]


class HardCluster(MinerOfDistance):
    """For each label its mean, the row farthest from it, and the nearest mean of another label.

    Anchors and negatives are means of the rows of a label in the batch, so a batch gives a triplet a label;
    a label with a single row is no anchor. The gradient reaches all rows of a mean. Only a loss over triplets
    takes these.
    Alex et al., Cluster Loss for Person Re-Identification, 2018.
    """

    @torch.no_grad()
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Mined:
        """Choose a triplet for each label of embeddings (B, D) with labels (B,), without gradient.

        With a reference (R, D), a memory bank that must not hold the batch, the positives are its rows and
        the negatives means of its rows.

        Raises:
            ValueError: shapes that do not fit, or a reference without its labels.
        """
        check_batch(embeddings, labels, reference, reference_labels)
        return Mined(clusters=hard_clusters(embeddings, labels, reference, reference_labels, self.distance))
