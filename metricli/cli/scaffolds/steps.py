"""New optimizers, schedulers and loggers."""

from __future__ import annotations

from metricli.cli.scaffolds.parts import Parts

__all__ = ["LOGGERS", "OPTIMIZERS", "SCHEDULERS"]

OPTIMIZERS = Parts(
    door='''\
"""The door: what a spec may say. No torch until `build` is called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from metricli.specs.kinds import OptimizerSpec
from pydantic import Field

if TYPE_CHECKING:
    from torch.optim import Optimizer


class $Class(OptimizerSpec):
    """Steps of one size along the sign of a running mean of the gradient."""

    name: Literal["$name"] = "$name"
    lr: float = Field(1e-4, gt=0, description="learning rate of the backbone; lower than that of adamw")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the mean that stays with each step")

    def build(self, params: Iterable[dict[str, Any]]) -> Optimizer:
        """The optimizer; a group's own lr and weight_decay win over these."""
        from $package import components

        return components.$Class(
            params, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
''',
    component='''\
"""The optimizer: a plain torch one with flat arguments that knows nothing of specs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class $Class(torch.optim.Optimizer):
    """`m <- momentum * m + (1 - momentum) * g`, then `p <- (1 - lr * weight_decay) * p - lr * sign(m)`."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-4,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; with a `closure`, what it returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                state["mean"].lerp_(parameter.grad, 1 - group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(state["mean"].sign(), alpha=-group["lr"])
        return loss
''',
    test="""\
def test_a_step_by_hand() -> None:
    import pytest
    import torch
    from $package.components import $Class

    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    weight.grad = torch.tensor([3.0, -4.0])
    $Class([weight], lr=0.1, weight_decay=0.5).step()
    assert weight.tolist() == pytest.approx([0.95 - 0.1, -1.9 + 0.1])
""",
    usage="optimizer: {name: $name, lr: 1e-4}",
)

SCHEDULERS = Parts(
    door='''\
"""The door: what a spec may say. No torch until `build` is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from metricli.specs.kinds import Scheduler, SchedulerSpec
from pydantic import Field

if TYPE_CHECKING:
    from torch.optim import Optimizer


class $Class(SchedulerSpec):
    """Halves the learning rate again and again, smoothly."""

    name: Literal["$name"] = "$name"
    half_life: float = Field(5.0, gt=0, description="epochs after which the rate has halved")

    def build(self, optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int) -> Scheduler:
        """The schedule; a run steps it once every `frequency` steps or epochs."""
        from $package import components

        del total_steps
        each_epoch = (steps_per_epoch if self.interval == "step" else 1) / self.frequency
        return components.$Class(optimizer, half_life=self.half_life * each_epoch)
''',
    component='''\
"""The schedule: a plain torch one with flat arguments that knows nothing of specs."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class $Class(LambdaLR):
    """The base rate times 0.5 ** (intervals / half_life)."""

    def __init__(self, optimizer: Optimizer, *, half_life: float) -> None:
        super().__init__(optimizer, lambda intervals: 0.5 ** (intervals / half_life))
''',
    test="""\
def test_the_rate_halves() -> None:
    import pytest
    import torch
    from $package.plugins import $Class

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.8)
    schedule = $Class(half_life=2).build(optimizer, total_steps=100, steps_per_epoch=3)
    for _ in range(6):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4)
""",
    usage="scheduler: {name: $name, half_life: 5}",
)

LOGGERS = Parts(
    door='''\
"""The door: what a spec may say."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from metricli.specs.kinds import Logger, LoggerSpec
from pydantic import Field


class $Class(LoggerSpec):
    """Writes a line of text for each value into a file of the run directory."""

    name: Literal["$name"] = "$name"
    file: str = Field("$name.txt", description="name of the file in the run directory")

    def build(self, *, run_dir: Path) -> Logger:
        """The logger."""
        from $package import components

        return components.$Class(run_dir / self.file)
''',
    component='''\
"""The logger: a plain object with flat arguments that knows nothing of specs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class $Class:
    """A line `step name value` for each scalar; a picture is only named."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Log scalars at a global step."""
        self.file.writelines(f"{step} {name} {value}\\n" for name, value in values.items())
        self.file.flush()

    def log_figure(self, name: str, figure: Any, *, step: int) -> None:
        """Log an image (H, W, 3) of uint8."""
        height, width = figure.shape[:2]
        self.file.write(f"{step} {name} picture of {width} x {height}\\n")

    def close(self) -> None:
        """The run is over."""
        self.file.close()
''',
    test="""\
def test_what_it_writes(tmp_path) -> None:
    import numpy as np
    from $package.plugins import $Class

    logger = $Class(file="log.txt").build(run_dir=tmp_path)
    logger.log({"loss": 0.5, "lr": 0.1}, step=3)
    logger.log_figure("worst", np.zeros((4, 6, 3), dtype=np.uint8), step=3)
    logger.close()
    assert (tmp_path / "log.txt").read_text() == "3 loss 0.5\\n3 lr 0.1\\n3 worst picture of 6 x 4\\n"
""",
    usage="loggers: [$name]",
    needs=(),
)
