"""The weighted sum of losses: value, gradient, stats, state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metricli.components.losses import ArcFaceLoss, MemoryLoss, TripletLoss, WeightedSum
from metricli.components.miners import AllTriplets

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def made(seed: int = 0) -> WeightedSum:
    torch.manual_seed(seed)
    parts = [
        TripletLoss(miner=AllTriplets()),
        ArcFaceLoss(dim=4, num_labels=3, scale=8.0),
        MemoryLoss(TripletLoss(miner=AllTriplets()), size=8, dim=4),
    ]
    return WeightedSum(losses=parts, weights=[0.5, 2, 0.25], names=["triplet_0", "arcface", "triplet_2"])


def test_value_gradient_and_stats_are_those_of_the_parts() -> None:
    loss, again = made(), made()
    given = rows()
    value = loss(given, LABELS)
    values = [part(given, LABELS) for part in again.losses]
    expected = 0.5 * values[0] + 2 * values[1] + 0.25 * values[2]
    torch.testing.assert_close(value, expected)
    assert len(list(loss.parameters())) == 1
    ours = torch.autograd.grad(value, [given, *loss.parameters()])
    theirs = torch.autograd.grad(expected, [given, *again.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    for name, part, single in zip(loss.names, again.losses, values, strict=True):
        assert torch.equal(loss.stats[f"{name}_loss"], single.detach())
        for key, stat in part.stats.items():
            assert torch.equal(loss.stats[f"{name}_{key}"], stat)
    assert len(loss.stats) == 3 + sum(len(part.stats) for part in again.losses)
    assert not any(stat.requires_grad for stat in loss.stats.values())


def test_the_state_of_every_part_goes_with_it() -> None:
    loss, other = made(0), made(1)
    loss(rows(0), LABELS)
    assert {"losses.1.weight", "losses.2.position"} <= set(loss.state_dict())
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(rows(1), LABELS), loss(rows(1), LABELS))


def test_a_loss_without_stats() -> None:
    class Plain(nn.Module):
        def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return embeddings.sum()

    loss = WeightedSum(losses=[Plain()], weights=[3], names=["plain"])
    given = rows()
    torch.testing.assert_close(loss(given, LABELS), 3 * given.sum())
    assert list(loss.stats) == ["plain_loss"]


@pytest.mark.parametrize(
    ("count", "weights", "names", "message"),
    [
        (0, [], [], "losses, weights and names must be of one length, 1 or more, got 0, 0 and 0"),
        (1, [1, 2], ["a"], "losses, weights and names must be of one length, 1 or more, got 1, 2 and 1"),
        (1, [0.0], ["a"], "a weight must be a finite number above 0, got 0.0"),
        (1, [float("nan")], ["a"], "a weight must be a finite number above 0, got nan"),
        (2, [1, 1], ["a", "a"], "names must differ, got ['a', 'a']"),
    ],
)
def test_bad_settings(count: int, weights: list[float], names: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        WeightedSum(losses=[nn.Identity()] * count, weights=weights, names=names)
    assert str(caught.value) == message
