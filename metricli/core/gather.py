"""One global batch from the slices of several processes, with its gradient, and gradients summed over them.

Every process computes the same loss from the same gathered batch. Its gradient on a process's own rows is
then that of the global loss, and parameter gradients, each made of one slice, add up to those of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["broadcast_from_main", "gather_rows", "mean_gradients", "sum_gradients"]

BUCKET = 2**24
"""Numbers that one all-reduce carries at most."""


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
        rank, most = dist.get_rank(), max(sizes)
        first = sum(sizes[:rank])
        ctx.own = slice(first, first + sizes[rank])
        padded = rows.contiguous()
        if len(rows) < most:
            padded = torch.cat([padded, padded.new_zeros(most - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0][ctx.own].contiguous(), None


def gather_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows (b, ...) of all processes (B, ...), in the order of ranks, with gradient to those given.

    Slices may differ in length; the shorter ones are padded on the way, and the padding is dropped.

    Args:
        rows: those of this process.
        sizes: rows of each process, by rank.

    Raises:
        ValueError: `rows` are not as many as `sizes` says.
    """
    if len(rows) != sizes[dist.get_rank()]:
        raise ValueError(f"process {dist.get_rank()} has {len(rows)} rows, and sizes are {list(sizes)}")
    gathered: Tensor = _GatherRows.apply(rows, tuple(sizes))
    return gathered


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place; a parameter that none of them used keeps None."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    unused = {i for i, parameter in enumerate(trained) if parameter.grad is None}
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets(trained):
        used = torch.tensor([i not in unused for i, _ in bucket])
        flat = torch.cat([grad.flatten() for _, grad in bucket] + [used.to(bucket[0][1])])
        dist.all_reduce(flat)
        grads, counts = flat[: -len(bucket)], flat[-len(bucket) :]
        sizes = [grad.numel() for _, grad in bucket]
        parts = [
            part.view_as(grad) for part, (_, grad) in zip(torch.split(grads, sizes), bucket, strict=True)
        ]
        torch._foreach_copy_([grad for _, grad in bucket], parts)
        if unused:  # only then is it worth waiting for the device
            for (i, _), count in zip(bucket, counts.tolist(), strict=True):
                if count == 0:
                    trained[i].grad = None


def mean_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of parameters that every process computes in full, so that they stay equal."""
    owned = list(parameters)
    sum_gradients(owned)
    grads = [parameter.grad for parameter in owned if parameter.grad is not None]
    if grads:
        torch._foreach_div_(grads, float(dist.get_world_size()))


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[tuple[int, Tensor]]]:
    """Places and gradients of parameters, cut into groups of one type and of `BUCKET` numbers at most."""
    buckets: list[list[tuple[int, Tensor]]] = []
    held = 0
    for i, parameter in enumerate(parameters):
        grad = parameter.grad
        assert grad is not None
        fits = buckets and held + grad.numel() <= BUCKET and buckets[-1][0][1].dtype == grad.dtype
        if not fits:
            buckets.append([])
            held = 0
        buckets[-1].append((i, grad))
        held += grad.numel()
    return buckets


@torch.no_grad()
def broadcast_from_main(tensors: Iterable[Tensor]) -> None:
    """Give every process the values that these tensors (parameters, buffers) have in the main one."""
    for tensor in tensors:
        sent = tensor.detach().contiguous()
        dist.broadcast(sent, src=0)
        tensor.copy_(sent)
