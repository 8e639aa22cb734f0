"""Batch norm over the global batch of several processes, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metricli.components.timm_alone import BatchNormAct2d

__all__ = ["GlobalBatchNorm", "synchronise_batch_norm"]


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, mean and var over all processes.

    The gradient is that of Ioffe & Szegedy, Batch Normalization, 2015, whose two sums go over all processes;
    those of weight and bias are of this process's images, like those of every other parameter.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind = torch.promote_types(x.dtype, torch.float32)
        shape, over = (1, -1) + (1,) * (x.ndim - 2), [0, *range(2, x.ndim)]
        mean = x.mean(over, dtype=kind)
        var = (x - mean.view(shape)).square_().mean(over)  # many times faster than torch.var_mean
        count = torch.full_like(mean[:1], x.numel() // len(mean))
        own = torch.cat([mean, var, count])
        told = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(told, own)
        means, variances, counts = torch.split(torch.stack(told), [len(mean), len(mean), 1], dim=1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        var = ((variances + (means - mean).square()) * counts).sum(0) / total
        y = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), total)
        ctx.mark_non_differentiable(mean, var, total)
        return y, mean, var, total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, scale, total = ctx.saved_tensors
        shape = (1, -1) + (1,) * (x.ndim - 2)
        over = [0, *range(2, x.ndim)]
        dy = gradients[0].to(mean.dtype)
        normal = (x - mean.view(shape)).mul_(scale.view(shape))
        sums = torch.stack([dy.sum(over), (dy * normal).sum(over)])
        of_bias, of_weight = sums.clone()
        dist.all_reduce(sums)
        sums /= total
        dx = normal.mul_(-sums[1].view(shape)).add_(dy).sub_(sums[0].view(shape))  # no more temporaries
        dx.mul_((scale if weight is None else scale * weight).view(shape))
        has_weight, has_bias = ctx.needs_input_grad[1:3]
        return dx.to(x.dtype), of_weight if has_weight else None, of_bias if has_bias else None, None


class GlobalBatchNorm(_BatchNorm):
    """What a batch norm becomes: in training its statistics are those of all processes; else as it was.

    Every process must call it at the same moment, with one image at least.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape.

        Raises:
            ValueError: there is one value for each channel in all, which has no variance.
        """
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        told: tuple[Tensor, ...] = _Normalise.apply(x, self.weight, self.bias, self.eps)
        y, mean, var, total = told
        if x.numel() == x.shape[1] and total == 1:  # only then is it worth waiting for the device
            raise ValueError(f"expected more than 1 value per channel when training, got {tuple(x.shape)}")
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), share)
                self.running_var.lerp_((var * (total / (total - 1))).to(self.running_var), share)
        return y


class _Global1d(GlobalBatchNorm, nn.BatchNorm1d):
    pass


class _Global2d(GlobalBatchNorm, nn.BatchNorm2d):
    pass


class _Global3d(GlobalBatchNorm, nn.BatchNorm3d):
    pass


class _GlobalAct2d(GlobalBatchNorm, BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape, through timm's dropout and activation."""
        if not self.training:
            own: Tensor = BatchNormAct2d.forward(self, x)
            return own
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


_GLOBAL: dict[type, type] = {
    nn.BatchNorm1d: _Global1d,
    nn.BatchNorm2d: _Global2d,
    nn.BatchNorm3d: _Global3d,
    BatchNormAct2d: _GlobalAct2d,
}


def synchronise_batch_norm(module: nn.Module) -> list[str]:
    """Make every batch norm in a module global, in place; the names of kinds that are not known come back.

    Parameters, buffers and their names stay as they are.
    """
    unknown = set()
    for part in module.modules():
        if type(part) in _GLOBAL:
            part.__class__ = _GLOBAL[type(part)]
        elif isinstance(part, _BatchNorm) and not isinstance(part, GlobalBatchNorm):
            unknown.add(type(part).__name__)
    return sorted(unknown)
