"""Batch norm of several processes is torch's own of one, forward, backward and in what it remembers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from metricli.components.batch_norm import GlobalBatchNorm, synchronise_batch_norm
from metricli.runs.processes import joined
from tests.worlds import Worlds

ROWS = 7
KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (nn.BatchNorm1d(3), (3,)),
    "1d of sequences": (nn.BatchNorm1d(3, momentum=None), (3, 5)),
    "2d": (nn.BatchNorm2d(3, eps=1e-3), (3, 4, 2)),
    "3d": (nn.BatchNorm3d(3, affine=False), (3, 2, 2, 2)),
    "no memory": (nn.BatchNorm2d(3, track_running_stats=False), (3, 4, 2)),
    "timm": (BatchNormAct2d(3), (3, 4, 2)),
}


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Values far from 0, where careless sums of squares go wrong, and their gradients (ROWS, ...)."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64) + 1000
    return values, torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64)


def passed(module: nn.Module, values: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """What two passes give and leave behind."""
    found: dict[str, Tensor] = {}
    for number in range(2):
        x = (values + number).requires_grad_()
        y = module(x)
        y.backward(weights)
        assert x.grad is not None
        found |= {f"y{number}": y.detach(), f"dx{number}": x.grad}
    found |= {f"sum {k}": p.grad for k, p in module.named_parameters() if p.grad is not None}
    return found | {f"kept {k}": buffer for k, buffer in module.named_buffers()}


def in_a_world(dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    with joined("cpu") as world:
        own = slice(ROWS * world.rank // world.size, ROWS * (world.rank + 1) // world.size)
        found = {}
        for name, (module, shape) in KINDS.items():
            module = copy.deepcopy(module).to(dtype)
            assert synchronise_batch_norm(module) == []
            assert isinstance(module, GlobalBatchNorm)
            values, weights = inputs(shape)
            found[name] = passed(module, values[own].to(dtype), weights[own].to(dtype))
            module.eval()
            found[name]["eval"] = module(values.to(dtype)).detach()
        return found


@pytest.mark.xdist_group("worlds")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_processes_normalise_as_one(worlds: Worlds, dtype: torch.dtype, tolerance: float) -> None:
    told = worlds.run(3, in_a_world, dtype)
    for name, (module, shape) in KINDS.items():
        whole = copy.deepcopy(module).to(dtype)
        values, weights = inputs(shape)
        expected = passed(whole, values.to(dtype), weights.to(dtype))
        whole.eval()
        expected["eval"] = whole(values.to(dtype)).detach()
        for key, value in expected.items():
            parts = [found[name][key] for found in told]
            if key.startswith(("y", "dx")):
                found = torch.cat(parts)
            elif key.startswith("sum"):
                found = torch.stack(parts).sum(0)
            else:
                assert all(torch.equal(part, parts[0]) for part in parts)
                found = parts[0]
            torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance, msg=f"{name}: {key}")


def _one_value() -> str:
    with joined("cpu") as world:
        norm = nn.BatchNorm1d(3)
        synchronise_batch_norm(norm)
        fine = norm(torch.randn(1, 3)).shape
        assert tuple(fine) == (1, 3), "one value here, another there"
        return f"{world.size}"


@pytest.mark.xdist_group("worlds")
def test_one_image_in_each_process_is_enough(worlds: Worlds) -> None:
    assert worlds.run(2, _one_value) == ["2", "2"]


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_other_kinds_are_named() -> None:
    module: Any = nn.Sequential(nn.BatchNorm2d(3), OwnNorm(3), nn.LayerNorm(3))
    names = list(module.state_dict())
    assert synchronise_batch_norm(module) == ["OwnNorm"]
    assert synchronise_batch_norm(module) == ["OwnNorm"]
    assert type(module[1]) is OwnNorm
    assert list(module.state_dict()) == names
    assert isinstance(copy.deepcopy(module)[0], GlobalBatchNorm)
