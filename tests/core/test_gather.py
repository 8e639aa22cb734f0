"""Rows of several processes in one, with gradient, and gradients summed over processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from metricli.core import gather
from metricli.core.gather import broadcast_from_main, gather_rows, mean_gradients, sum_gradients
from metricli.runs.processes import joined
from tests.worlds import Worlds

pytestmark = pytest.mark.xdist_group("worlds")
SIZES = [3, 0, 2]


def _gathered() -> tuple[Any, ...]:
    with joined("cpu") as world:
        first = sum(SIZES[: world.rank])
        rows = torch.arange(first, first + SIZES[world.rank], dtype=torch.float64)[:, None] * torch.ones(2)
        rows.requires_grad_()
        whole = gather_rows(rows, SIZES)
        weights = torch.arange(10, dtype=torch.float64).view(5, 2)
        (whole * weights).square().sum().backward()
        with pytest.raises(ValueError, match="rows, and sizes are"):
            gather_rows(torch.zeros(9, 2), SIZES)
        return whole.detach(), rows.grad


def test_rows_and_their_gradients_find_their_place(worlds: Worlds) -> None:
    told = worlds.run(3, _gathered)
    expected = (torch.arange(5, dtype=torch.float64)[:, None] * torch.ones(2)).requires_grad_()
    (expected * torch.arange(10, dtype=torch.float64).view(5, 2)).square().sum().backward()
    assert expected.grad is not None
    first = 0
    for size, (whole, gradient) in zip(SIZES, told, strict=True):
        assert torch.equal(whole, expected.detach())
        assert torch.equal(gradient, expected.grad[first : first + size])
        first += size


def _summed(bucket: int) -> list[Any]:
    with joined("cpu") as world, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "BUCKET", bucket)
        shapes = [(2, 3), (4,), (1,), (5,)]
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        parameters += [nn.Parameter(torch.zeros(2, dtype=torch.float64)), nn.Parameter(torch.zeros(1))]
        for i, parameter in enumerate(parameters):
            if i == 1:
                parameter.requires_grad_(False)
            elif i == 2 and world.rank != 1:
                continue  # one process alone used it
            elif i != 3:  # nobody used that
                parameter.grad = torch.full_like(parameter, 10.0**world.rank + i)
        sum_gradients(parameters[:-1])
        mean_gradients(parameters[-1:])
        return [None if p.grad is None else p.grad.clone() for p in parameters]


@pytest.mark.parametrize("bucket", [2**24, 3])
def test_gradients_add_up(worlds: Worlds, bucket: int) -> None:
    for found in worlds.run(3, _summed, bucket):
        assert found[1] is None, "it is frozen"
        assert found[3] is None, "an optimizer passes over what nobody used, weight decay included"
        assert torch.equal(found[0], torch.full((2, 3), 111.0))
        assert torch.equal(found[2], torch.full((1,), 12.0))
        assert torch.equal(found[4], torch.full((2,), 123.0, dtype=torch.float64))
        assert torch.allclose(found[5], torch.full((1,), (111 + 15) / 3))


def _broadcast() -> dict[str, Any]:
    with joined("cpu") as world:
        torch.manual_seed(world.rank)
        module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        module[1].running_mean.fill_(world.rank)
        broadcast_from_main([*module.parameters(), *module.buffers()])
        return dict(module.state_dict())


def test_all_begin_as_the_main_process(worlds: Worlds) -> None:
    one, two = worlds.run(2, _broadcast)
    torch.manual_seed(0)
    expected = nn.Linear(3, 2)
    assert torch.equal(one["0.weight"], expected.weight)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert float(one["1.running_mean"].sum()) == 0
