"""A batch forward and back: at once, or in micro-batches by gradient caching.

Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from metricli.errors import UsageError

__all__ = ["Model", "cached", "compile_errors", "parts_of", "taken", "whole_batch"]


def _as_they_are(embeddings: Tensor) -> Tensor:
    return embeddings


@dataclass(frozen=True)
class Model:
    """What a batch goes through.

    `forward` is the extractor, compiled or not. `gather` makes the embeddings of all processes (B, D) from
    those of this one, with gradient; `loss` is of the whole batch in each of them. `recomputes` says that the
    extractor's backward runs parts of the forward pass again (gradient checkpointing), which must not count
    for the statistics of batch norm a second time.
    """

    extractor: nn.Module
    forward: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    accelerator: Accelerator
    dtype: torch.dtype
    recomputes: bool = False
    gather: Callable[[Tensor], Tensor] = _as_they_are

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) in the type that the loss is computed in, from the precision of the run."""
        with self.accelerator.autocast():
            found = self.forward(images)
        return found.to(self.dtype)

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Within this, a backward pass through the extractor leaves its buffers alone."""
        with buffers_kept(self.extractor) if self.recomputes else nullcontext():
            yield


def taken(model: Model, images: Tensor, labels: Tensor, parts: int = 1) -> tuple[Tensor, Tensor]:
    """Embeddings (B, D) and loss of a batch with labels (B,), detached; the gradients lie in the parameters.

    `images` are those of this process; they go through the extractor in so many parts, one after the other.
    """
    return whole_batch(model, images, labels) if parts == 1 else cached(model, images, labels, parts)


def whole_batch(model: Model, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Forward, loss, backward."""
    embeddings = model.gather(model.embed(images))
    loss = model.loss(embeddings, labels)
    with model.backward():
        model.accelerator.backward(loss)
    return embeddings.detach(), loss.detach()


def cached(model: Model, images: Tensor, labels: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """The same gradient with the activations of only one part of the images in memory.

    The embeddings of all parts first; the loss of the whole batch gives their gradients and those of its own
    parameters; then each part once more, from the same state of the generators, to send its share of them
    back. Parts are of nearly equal size, so that batch norm does not meet one image left over. In the first
    pass nothing that the extractor keeps (the running statistics of batch norm) changes, and its graph is
    made, and dropped, because without one other kernels could draw other masks.
    """
    pieces = images.tensor_split(parts)
    states, found = [], []
    with buffers_kept(model.extractor):
        for piece in pieces:
            states.append(_generators(images.device))
            found.append(model.embed(piece).detach())
    own = torch.cat(found).requires_grad_()
    embeddings = model.gather(own)
    loss = model.loss(embeddings, labels)
    model.accelerator.backward(loss)
    gradient = torch.zeros_like(own) if own.grad is None else own.grad
    shares = torch.split(gradient, [len(piece) for piece in pieces])
    for piece, state, share in zip(pieces, states, shares, strict=True):
        _put_back(state, images.device)
        again = model.embed(piece)
        if again.requires_grad:
            with model.backward():
                torch.autograd.backward([again], [share])  # fp16's scale is in it already
    return embeddings.detach(), loss.detach()


def parts_of(sizes: Sequence[int], micro_batch: int | None) -> int:
    """How many parts each process cuts its images into, all of them as many: batch norm meets in each.

    `sizes` are the images of each process; `micro_batch` is the most that go through the extractor at once.
    Where one process has an image less than it takes to fill as many parts, the others' hold one more.
    """
    return 1 if micro_batch is None else min(-(-max(sizes) // micro_batch), min(sizes))


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """The buffers of a module stand afterwards as they stood before."""
    held = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, was in held:
                buffer.copy_(was)


def _generators(device: torch.device) -> tuple[Tensor, Tensor | None]:
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    return torch.get_rng_state(), own


def _put_back(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1])


@contextmanager
def compile_errors() -> Iterator[None]:
    """What torch.compile cannot do, in one line.

    Raises:
        UsageError: in place of its own error.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        what = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        raise UsageError(
            f"training.compile: torch cannot compile the extractor: {what}",
            hint="set training.compile=false",
        ) from error
