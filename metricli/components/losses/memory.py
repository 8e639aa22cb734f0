"""Wang et al., Cross-Batch Memory for Embedding Learning, 2020: a loss against a bank of past batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metricli.components.losses.pairwise import masked_mean
from metricli.core.distances import batch_distances
from metricli.core.mining import check_batch, label_masks

__all__ = ["MemoryLoss"]


class MemoryLoss(nn.Module):
    """A loss on the batch, plus the same loss of the batch against a bank of past embeddings (XBM).

    The bank is first in, first out. A batch is stored, without gradient, after its loss is taken, so that the
    bank never holds the batch itself; of a batch larger than the bank the last rows stay. It is stored once a
    call in training mode with gradients on, and not in eval mode or under `no_grad`. What the bank holds
    depends on the batches alone: processes that see the same global batches have the same bank.

    A batch with a value that is not finite is never stored, which is decided on the device: its places in the
    bank keep what they held, or, while the bank fills, zero rows of label -1, nobody's positives.

    After each call `stats` holds detached 0-dim tensors: those of the loss on the batch; `memory_loss` and,
    with the prefix `memory_`, the stats of the loss against the bank, all 0 until that begins; `memory_fill`,
    the share of it in use; `memory_drift`, how stale it is: the mean cosine distance to positives in
    the bank minus that to positives in the batch (0 where either has none). It is near 0 while the model
    moves slowly; well above 0, the bank lags behind, and a smaller `size` or a later `start_after` is due.
    Wang et al., Cross-Batch Memory for Embedding Learning, 2020.

    Args:
        loss: a module `(embeddings, labels, reference=None, reference_labels=None) -> scalar`.
        size: embeddings that the bank holds.
        dim: size of an embedding.
        start_after: steps before the loss against the bank is added; the bank fills from the first.

    Raises:
        ValueError: size or dim below 1, or start_after below 0.
    """

    stats: dict[str, Tensor]
    embeddings: Tensor
    labels: Tensor
    position: Tensor

    def __init__(self, loss: nn.Module, *, size: int, dim: int, start_after: int = 0) -> None:
        super().__init__()
        for name, value, least in (("size", size, 1), ("dim", dim, 1), ("start_after", start_after, 0)):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value!r}")
        self.loss = loss
        self.size = size
        self.start_after = start_after
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("labels", torch.full((size,), -1))
        # The pointer, the rows filled and the steps done. The loss reads the integers beside it, which wait
        # for no device; the tensor is what the state keeps.
        self.register_buffer("position", torch.zeros(3, dtype=torch.int64))
        self._pointer = self._filled = self._steps = 0
        self.stats = {}

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss of embeddings (B, dim) with labels (B,), 0 or more.

        Raises:
            ValueError: shapes that do not fit.
        """
        check_batch(embeddings, labels)
        if embeddings.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"embeddings must have dim={self.embeddings.shape[1]} columns, got {embeddings.shape[1]}"
            )
        total: Tensor = self.loss(embeddings, labels)
        inner = dict(getattr(self.loss, "stats", {}))
        of_bank = {f"memory_{name}": torch.zeros_like(total.detach()) for name in ("loss", *inner)}
        bank, bank_labels = self.embeddings[: self._filled], self.labels[: self._filled]
        if self._filled and self._steps >= self.start_after:
            # A copy: the bank is written to before the backward pass.
            added = self.loss(embeddings, labels, bank.clone(), bank_labels.clone())
            of_bank = {f"memory_{name}": stat for name, stat in getattr(self.loss, "stats", {}).items()}
            of_bank["memory_loss"] = added.detach()
            total = total + added
        self.stats = {
            **inner,
            **of_bank,
            "memory_fill": torch.full_like(total.detach(), self._filled / self.size),
            "memory_drift": _drift(embeddings, labels, bank, bank_labels),
        }
        if self.training and torch.is_grad_enabled():
            self._store(embeddings.detach(), labels)
        return total

    def extra_repr(self) -> str:
        """Settings shown by `print(module)`."""
        return f"size={self.size}, dim={self.embeddings.shape[1]}, start_after={self.start_after}"

    @torch.no_grad()
    def _store(self, rows: Tensor, labels: Tensor) -> None:
        sound = rows.isfinite().all()
        rows, labels = rows[-self.size :].to(self.embeddings), labels[-self.size :].to(self.labels)
        first = 0
        while first < len(rows):  # once, or twice where the bank wraps around
            count = min(len(rows) - first, self.size - self._pointer)
            place, part = slice(self._pointer, self._pointer + count), slice(first, first + count)
            self.embeddings[place] = torch.where(sound, rows[part], self.embeddings[place])
            self.labels[place] = torch.where(sound, labels[part], self.labels[place])
            self._pointer = (self._pointer + count) % self.size
            first += count
        self._filled = min(self.size, self._filled + len(rows))
        self._steps += 1
        for i, value in enumerate((self._pointer, self._filled, self._steps)):
            self.position[i].fill_(value)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._pointer, self._filled, self._steps = self.position.tolist()


@torch.no_grad()
def _drift(embeddings: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> Tensor:
    here, _ = label_masks(labels)
    there, _ = label_masks(labels, bank_labels)
    near = masked_mean(batch_distances(embeddings, None, "cosine"), here)
    far = masked_mean(batch_distances(embeddings, bank, "cosine"), there)
    return torch.where(here.any() & there.any(), far - near, 0.0)
