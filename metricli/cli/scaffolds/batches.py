"""New losses, miners and samplers."""

from __future__ import annotations

from metricli.cli.scaffolds.parts import Parts

__all__ = ["LOSSES", "MINERS", "SAMPLERS"]

LOSSES = Parts(
    door='''\
"""The door: what a spec may say. No torch until `build` is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from metricli.specs.kinds import LossSpec
from pydantic import Field

if TYPE_CHECKING:
    from torch import nn


class $Class(LossSpec):
    """Pulls images of one label together, and pushes others apart until their cosine is below a margin."""

    name: Literal["$name"] = "$name"
    margin: float = Field(0.5, ge=-1, le=1, description="cosine of two labels below which nothing is lost")

    needs_positives: ClassVar[bool] = True  # a batch must hold several images of a label; see also `check`

    def build(self, *, dim: int, num_labels: int, label_to_category: Sequence[int] | None) -> nn.Module:
        """The module; one with weights of its own needs the arguments."""
        from $package import components

        del dim, num_labels, label_to_category
        return components.$Class(margin=self.margin)
''',
    component='''\
"""The loss: a plain module with flat arguments that knows nothing of specs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class $Class(nn.Module):
    """The mean over all pairs: 1 - cosine within a label, what the cosine exceeds the margin by elsewhere."""

    def __init__(self, *, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = margin
        self.stats: dict[str, Tensor] = {}

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings (B, D) with labels (B,), a scalar; a run logs what stands in `stats`."""
        unit = F.normalize(embeddings)
        cosines = unit @ unit.T
        same = labels[:, None] == labels[None, :]
        pairs = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        lost = torch.where(same, 1 - cosines, (cosines - self.margin).clamp(min=0))
        self.stats = {"active": (lost[pairs] > 0).float().sum().detach() / pairs.sum().clamp(min=1)}
        return (lost * pairs).sum() / pairs.sum().clamp(min=1)
''',
    test="""\
def test_a_value_by_hand() -> None:
    import pytest
    import torch
    from $package.components import $Class

    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    value = $Class(margin=0.5)(embeddings, torch.tensor([0, 0, 1]))
    assert value.item() == pytest.approx((1 + 0.5 + 0) / 3)  # cosines 0 of one label, 1 and 0 of two
""",
    usage="loss: {name: $name, margin: 0.4}",
)

MINERS = Parts(
    door='''\
"""The door: what a spec may say. No torch until `build` is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from metricli.specs.kinds import MinerSpec
from pydantic import Field

if TYPE_CHECKING:
    from torch import nn


class $Class(MinerSpec):
    """Every positive pair with the negative that is most like its anchor, if that is like it at all."""

    name: Literal["$name"] = "$name"
    least: float = Field(-1.0, ge=-1, le=1, description="cosine below which a negative is left out")

    def build(self) -> nn.Module:
        """The module."""
        from $package import components

        return components.$Class(least=self.least)
''',
    component='''\
"""The miner: a plain module with flat arguments that knows nothing of specs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from metricli.core.mining import Mined, Triplets, label_masks
from torch import Tensor, nn


class $Class(nn.Module):
    """Every positive pair of an anchor with the negative of the highest cosine."""

    def __init__(self, *, least: float = -1.0) -> None:
        super().__init__()
        self.least = least

    @torch.no_grad()
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        reference: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Mined:
        """Triplets from embeddings (B, D) with labels (B,), and a reference: the batch itself, or a bank."""
        others = embeddings if reference is None else reference
        cosines = F.normalize(embeddings) @ F.normalize(others).T
        positives, negatives = label_masks(labels, reference_labels)
        highest, nearest = cosines.masked_fill(~negatives, -2.0).max(dim=1)
        anchors, found = torch.nonzero(positives, as_tuple=True)
        kept = highest[anchors] >= self.least
        return Mined(triplets=Triplets(anchors[kept], found[kept], nearest[anchors[kept]]))
''',
    test="""\
def test_triplets_by_hand() -> None:
    import torch
    from $package.components import $Class

    embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.4]])
    mined = $Class()(embeddings, torch.tensor([0, 0, 1, 2]))
    assert mined.triplets is not None
    assert [side.tolist() for side in mined.triplets] == [[0, 1], [1, 0], [3, 3]]
""",
    usage="loss: {name: triplet, miner: $name}",
)

SAMPLERS = Parts(
    door='''\
"""The door: what a spec may say. No torch until `build` is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from metricli.specs.kinds import BatchSampler, SamplerSpec
from pydantic import Field

if TYPE_CHECKING:
    import numpy as np
    from metricli.data.facts import TableFacts


class $Class(SamplerSpec):
    """Every batch holds two images of each of `n_labels` labels, drawn in another order in every epoch."""

    name: Literal["$name"] = "$name"
    n_labels: int = Field(16, ge=2, description="labels in a batch")

    @property
    def instances_per_label(self) -> int:
        """Images of one label that every batch holds."""
        return 2

    @property
    def images_per_batch(self) -> int | None:
        """Images of a batch."""
        return 2 * self.n_labels

    def batches_per_epoch(self, table: TableFacts) -> int | None:
        """Batches of an epoch over this table."""
        return max(1, table.train_labels // self.n_labels)

    def build(self, *, labels: np.ndarray, categories: np.ndarray | None, seed: int) -> BatchSampler:
        """The batch sampler."""
        from $package import components

        del categories
        return components.$Class(labels=labels, n_labels=self.n_labels, seed=seed)
''',
    component='''\
"""The sampler: a plain object with flat arguments that knows nothing of specs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class $Class:
    """Batches of positions, two of each of `n_labels` labels; a function of (seed, epoch) alone."""

    def __init__(self, *, labels: np.ndarray, n_labels: int, seed: int) -> None:
        self.rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self.n_labels, self.seed, self.epoch = n_labels, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, len(self.rows) // self.n_labels)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.rows))
        for batch in range(len(self)):
            chosen = order[batch * self.n_labels : (batch + 1) * self.n_labels]
            yield [int(row) for label in chosen for row in self._two(random, self.rows[label])]

    def _two(self, random: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        return random.choice(rows, 2, replace=len(rows) < 2)
''',
    test="""\
def test_a_batch_holds_two_images_of_each_label() -> None:
    import numpy as np
    from $package.components import $Class

    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    batches = list($Class(labels=labels, n_labels=2, seed=0))
    counts = [np.unique(labels[batch], return_counts=True)[1].tolist() for batch in batches]
    assert counts == [[2, 2], [2, 2]]
""",
    usage="sampler: {name: $name, n_labels: 8}",
    needs=("numpy",),
)
