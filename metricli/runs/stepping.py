"""A batch forward and back: at once, or in micro-batches by gradient caching.

Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from metricli.errors import UsageError

__all__ = ["Model", "cached", "compile_errors", "taken", "whole_batch"]


@dataclass(frozen=True)
class Model:
    """What a batch goes through.

    `forward` is the extractor, compiled or not. `recomputes` says that its backward runs parts of the forward
    pass again (gradient checkpointing), which must not count for the statistics of batch norm a second time.
    """

    extractor: nn.Module
    forward: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    accelerator: Accelerator
    dtype: torch.dtype
    recomputes: bool = False

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


def taken(model: Model, images: Tensor, labels: Tensor, micro_batch: int | None) -> tuple[Tensor, Tensor]:
    """Embeddings (B, D) and loss of a batch, detached; the gradients lie in the parameters.

    `micro_batch` is the most images that go through the extractor at once; None: all of them.
    """
    if micro_batch is None or micro_batch >= len(images):
        return whole_batch(model, images, labels)
    return cached(model, images, labels, micro_batch)


def whole_batch(model: Model, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Forward, loss, backward."""
    embeddings = model.embed(images)
    loss = model.loss(embeddings, labels)
    with model.backward():
        model.accelerator.backward(loss)
    return embeddings.detach(), loss.detach()


def cached(model: Model, images: Tensor, labels: Tensor, micro_batch: int) -> tuple[Tensor, Tensor]:
    """The same gradient with the activations of only `micro_batch` images in memory.

    The embeddings of all micro-batches first; the loss of the whole batch gives their gradients and those of
    its own parameters; then each micro-batch once more, from the same state of the generators, to send its
    share of them back. Micro-batches are of nearly equal size, so that batch norm does not meet one image
    left over. In the first pass nothing that the extractor keeps (the running statistics of batch norm)
    changes, and its graph is made, and dropped, because without one other kernels could draw other masks.
    """
    parts = images.tensor_split(-(-len(images) // micro_batch))
    states, found = [], []
    with buffers_kept(model.extractor):
        for part in parts:
            states.append(_generators(images.device))
            found.append(model.embed(part).detach())
    embeddings = torch.cat(found).requires_grad_()
    loss = model.loss(embeddings, labels)
    model.accelerator.backward(loss)
    gradient = torch.zeros_like(embeddings) if embeddings.grad is None else embeddings.grad
    shares = gradient.tensor_split(len(parts))
    for part, state, share in zip(parts, states, shares, strict=True):
        _put_back(state, images.device)
        again = model.embed(part)
        if again.requires_grad:
            with model.backward():
                torch.autograd.backward([again], [share])  # fp16's scale is in it already
    return embeddings.detach(), loss.detach()


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
