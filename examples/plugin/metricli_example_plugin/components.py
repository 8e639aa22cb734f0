"""The torch code: plain objects with flat arguments that know nothing of specs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LionOptimizer(torch.optim.Optimizer):
    """Lion: `p <- (1 - lr * weight_decay) * p - lr * sign(b1 * m + (1 - b1) * g)`.

    Then `m <- b2 * m + (1 - b2) * g`. From Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms".

    Raises:
        ValueError: `lr` or `weight_decay` is negative, or a beta is outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]] | Iterable[Tensor],
        *,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr must not be negative, got {lr!r}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay!r}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas!r}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; with a `closure`, what it returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        beta_step, beta_momentum = group["betas"]
        direction = state["momentum"].lerp(gradient, 1 - beta_step).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        state["momentum"].lerp_(gradient, 1 - beta_momentum)


class HeatedSoftmaxLoss(nn.Module):
    """Cross entropy over cosines to learnt proxies, divided by a temperature.

    Zhang et al. 2018, "Heated-Up Softmax Embedding".

    Raises:
        ValueError: `temperature` is not positive.
    """

    def __init__(self, *, dim: int, num_labels: int, temperature: float = 0.05) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        self.temperature = temperature
        self.proxies = nn.Parameter(torch.randn(num_labels, dim) / dim**0.5)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of `embeddings` (B, D) with `labels` (B,) in 0..num_labels-1."""
        cosines = F.normalize(embeddings) @ F.normalize(self.proxies).T
        return F.cross_entropy(cosines / self.temperature, labels)
