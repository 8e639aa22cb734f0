"""The doors to torch.optim, thinly: every optimizer that a plain training step can drive.

Left out: LBFGS (wants a closure), SparseAdam (sparse gradients only) and Muon (matrices only).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.specs.kinds import OptimizerSpec

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from metricli.data.facts import TableFacts

Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]

_BETAS = "decay of the running mean of the gradient and of its square"
_EPS = "added to the denominator"
_DECOUPLED = "decoupled weight decay, as in AdamW"
_HIGHEST = 1e-2
"""Learning rate above which weights that Adam fine-tunes are overwritten; they are some 1e-2 each."""


class _TorchOptimizer(OptimizerSpec):
    """Settings named and defaulted as torch.optim has them."""

    def build(self, params: Iterable[dict[str, Any]]) -> Optimizer:
        """The torch optimizer of the class's name; each group brings its own lr and weight_decay."""
        import torch.optim

        settings = self.model_dump(exclude={"name", *OptimizerSpec.model_fields})
        optimizer: Optimizer = getattr(torch.optim, type(self).__name__)(list(params), lr=self.lr, **settings)
        return optimizer


class _Adaptive(_TorchOptimizer):
    """Adam and its kin, whose steps have the size of the rate, whatever that of the gradient."""

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """A rate of the size of the weights leaves nothing of what they were trained to."""
        problems = super().check(spec, table)
        extractor = spec.extractor
        trained = getattr(extractor, "pretrained", False) or getattr(extractor, "weights", None)
        if trained and self.lr > _HIGHEST:
            what = (
                f"{self.lr:g} is far too high for trained weights: a step moves each of them by about as "
                "much, and most are smaller; 1e-5 to 1e-3 is usual"
            )
            problems.append(Problem("lr", what, severity="warning"))
        return problems


class Adadelta(_TorchOptimizer):
    """Adadelta (Zeiler 2012)."""

    name: Literal["adadelta"] = "adadelta"
    lr: float = Field(1.0, gt=0, description="learning rate of the backbone")
    rho: float = Field(0.9, ge=0, le=1, description="decay of the running mean of squared gradients")
    eps: float = Field(1e-6, ge=0, description=_EPS)


class Adafactor(_TorchOptimizer):
    """Adafactor (Shazeer and Stern 2018): little memory for its state."""

    name: Literal["adafactor"] = "adafactor"
    lr: float = Field(1e-2, gt=0, description="learning rate of the backbone")
    beta2_decay: float = Field(-0.8, le=0, description="exponent of the decay of the second moment")
    d: float = Field(1.0, ge=1, description="clip the root mean square of an update to this")


class Adagrad(_TorchOptimizer):
    """Adagrad (Duchi et al. 2011)."""

    name: Literal["adagrad"] = "adagrad"
    lr: float = Field(1e-2, gt=0, description="learning rate of the backbone")
    lr_decay: float = Field(0.0, ge=0, description="decay of the learning rate")
    eps: float = Field(1e-10, ge=0, description=_EPS)


class Adam(_Adaptive):
    """Adam (Kingma and Ba 2015)."""

    name: Literal["adam"] = "adam"
    betas: Betas = Field([0.9, 0.999], description=_BETAS)
    eps: float = Field(1e-8, ge=0, description=_EPS)
    amsgrad: bool = Field(False, description="the AMSGrad variant")


class AdamW(_Adaptive):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    weight_decay: float = Field(1e-2, ge=0, description="weight decay")
    betas: Betas = Field([0.9, 0.999], description=_BETAS)
    eps: float = Field(1e-8, ge=0, description=_EPS)
    amsgrad: bool = Field(False, description="the AMSGrad variant")


class Adamax(_Adaptive):
    """Adamax (Kingma and Ba 2015)."""

    name: Literal["adamax"] = "adamax"
    lr: float = Field(2e-3, gt=0, description="learning rate of the backbone")
    betas: Betas = Field([0.9, 0.999], description=_BETAS)
    eps: float = Field(1e-8, ge=0, description=_EPS)


class ASGD(_TorchOptimizer):
    """Averaged stochastic gradient descent (Polyak and Juditsky 1992)."""

    name: Literal["asgd"] = "asgd"
    lr: float = Field(1e-2, gt=0, description="learning rate of the backbone")
    lambd: float = Field(1e-4, ge=0, description="decay term")
    alpha: float = Field(0.75, ge=0, description="power of the learning-rate update")
    t0: float = Field(1e6, ge=0, description="step at which averaging starts")


class NAdam(_Adaptive):
    """Adam with Nesterov momentum (Dozat 2016)."""

    name: Literal["nadam"] = "nadam"
    lr: float = Field(2e-3, gt=0, description="learning rate of the backbone")
    betas: Betas = Field([0.9, 0.999], description=_BETAS)
    eps: float = Field(1e-8, ge=0, description=_EPS)
    momentum_decay: float = Field(4e-3, ge=0, description="decay of the momentum")
    decoupled_weight_decay: bool = Field(False, description=_DECOUPLED)


class RAdam(_Adaptive):
    """Rectified Adam (Liu et al. 2020)."""

    name: Literal["radam"] = "radam"
    betas: Betas = Field([0.9, 0.999], description=_BETAS)
    eps: float = Field(1e-8, ge=0, description=_EPS)
    decoupled_weight_decay: bool = Field(False, description=_DECOUPLED)


class RMSprop(_TorchOptimizer):
    """RMSprop (Hinton 2012)."""

    name: Literal["rmsprop"] = "rmsprop"
    lr: float = Field(1e-2, gt=0, description="learning rate of the backbone")
    alpha: float = Field(0.99, ge=0, description="smoothing of the squared gradient")
    eps: float = Field(1e-8, ge=0, description=_EPS)
    momentum: float = Field(0.0, ge=0, description="momentum")
    centered: bool = Field(False, description="divide by an estimate of the variance")


class Rprop(_TorchOptimizer):
    """Resilient backpropagation (Riedmiller and Braun 1993); it has no weight decay."""

    name: Literal["rprop"] = "rprop"
    lr: float = Field(1e-2, gt=0, description="learning rate of the backbone")

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Weight decay would be ignored in silence."""
        problems = super().check(spec, table)
        if self.weight_decay:
            problems.append(
                Problem("weight_decay", "rprop has no weight decay; remove it or take another optimizer")
            )
        return problems


class SGD(_TorchOptimizer):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: float = Field(0.0, ge=0, description="momentum; 0.9 is usual")
    dampening: float = Field(0.0, ge=0, description="dampening of the momentum")
    nesterov: bool = Field(False, description="Nesterov momentum")

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Nesterov's rule needs momentum."""
        problems = super().check(spec, table)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            problems.append(Problem("nesterov", "needs momentum above 0 and dampening 0"))
        return problems
