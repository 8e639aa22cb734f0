"""The memory bank against one of Python lists: value, gradient, order, state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metricli.components.losses import ContrastiveLoss, MemoryLoss, TripletLoss
from metricli.components.miners import AllTriplets, HardTriplets

DIM = 4
Rows = list[tuple[Tensor, int]]


def triplet_gaps(rows: Rows, others: Rows, *, same: bool) -> list[list[Tensor]]:
    """For each anchor every d_ap - d_an, ordered as loops give them."""
    found = []
    for a, (x, label) in enumerate(rows):
        near = [(x - y).norm() for i, (y, of) in enumerate(others) if of == label and not (same and i == a)]
        far = [(x - y).norm() for y, of in others if of != label]
        found.append([p - n for p in near for n in far])
    return found


def every_triplet(rows: Rows, others: Rows, *, same: bool) -> Tensor:
    gaps = [gap for anchor in triplet_gaps(rows, others, same=same) for gap in anchor]
    losses = [(gap + 0.5).clamp(min=0) for gap in gaps]
    return torch.stack(losses).mean() if losses else torch.zeros((), dtype=torch.float64)


def hardest_triplet(rows: Rows, others: Rows, *, same: bool) -> Tensor:
    gaps = triplet_gaps(rows, others, same=same)
    losses = [(torch.stack(anchor).max() + 0.5).clamp(min=0) for anchor in gaps if anchor]
    return torch.stack(losses).mean() if losses else torch.zeros((), dtype=torch.float64)


def contrastive(rows: Rows, others: Rows, *, same: bool) -> Tensor:
    near, far = [], []
    for a, (x, label) in enumerate(rows):
        for i, (y, of) in enumerate(others):
            if same and i == a:
                continue
            if of == label:
                near.append((x - y).square().sum() / 2)
            else:
                far.append((1 - (x - y).norm()).clamp(min=0).square() / 2)
    return sum(torch.stack(part).mean() for part in (near, far) if part)


LOSSES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "all": (lambda: TripletLoss(miner=AllTriplets(), margin=0.5), every_triplet),
    "hard": (lambda: TripletLoss(miner=HardTriplets(), margin=0.5), hardest_triplet),
    "contrastive": (lambda: ContrastiveLoss(), contrastive),
}


def batches(count: int, sizes: tuple[int, ...] = (6,), seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for step in range(count):
        size = sizes[step % len(sizes)]
        rows = torch.randn(size, DIM, generator=generator, dtype=torch.float64) / 2
        found.append((rows.requires_grad_(), torch.randint(0, 3, (size,), generator=generator)))
    return found


def pairs_of(rows: Tensor, labels: Tensor) -> Rows:
    return list(zip(rows, labels.tolist(), strict=True))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("size", "start_after", "sizes"),
    [(16, 0, (6,)), (18, 0, (6,)), (16, 4, (6,)), (5, 0, (6, 3, 9)), (100, 2, (6, 5))],
    ids=["wraps", "whole batches", "starts late", "batches beyond the bank", "never full"],
)
def test_values_and_gradients_are_those_of_a_bank_of_lists(
    name: str, size: int, start_after: int, sizes: tuple[int, ...]
) -> None:
    make, naive = LOSSES[name]
    loss = MemoryLoss(make(), size=size, dim=DIM, start_after=start_after).double()
    bank: Rows = []
    added = 0
    for step, (rows, labels) in enumerate(batches(10, sizes)):
        expected = naive(pairs_of(rows, labels), pairs_of(rows, labels), same=True)
        if bank and step >= start_after:
            expected = expected + naive(pairs_of(rows, labels), bank, same=False)
            added += 1
        found = loss(rows, labels)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            torch.autograd.grad(found, rows)[0], torch.autograd.grad(expected, rows)[0], rtol=1e-6, atol=1e-9
        )
        assert float(loss.stats["memory_fill"]) == len(bank) / size
        bank = [*bank, *pairs_of(rows.detach(), labels)][-size:]
    assert added == 10 - max(1, start_after)


def held(loss: MemoryLoss) -> list[tuple[list[float], int]]:
    filled = int(loss.position[1])
    rows = zip(loss.embeddings[:filled].tolist(), loss.labels[:filled].tolist(), strict=True)
    return sorted(rows)


@pytest.mark.parametrize("sizes", [(6,), (4, 7, 20)])
def test_the_bank_holds_the_latest_rows_with_their_labels(sizes: tuple[int, ...]) -> None:
    loss = MemoryLoss(LOSSES["all"][0](), size=16, dim=DIM).double()
    given: list[tuple[list[float], int]] = []
    for rows, labels in batches(7, sizes):
        loss(rows, labels)
        given += list(zip(rows.tolist(), labels.tolist(), strict=True))
        assert held(loss) == sorted(given[-16:])
    assert not loss.embeddings.requires_grad


@pytest.mark.parametrize("cut", [0, 1, 3, 7])
def test_a_state_put_back_goes_on_to_the_bit(cut: int) -> None:
    def made() -> MemoryLoss:
        return MemoryLoss(TripletLoss(miner=HardTriplets()), size=16, dim=DIM, start_after=2)

    whole, before, after = made(), made(), made()
    steps = [(rows.detach().float().requires_grad_(), labels) for rows, labels in batches(10)]
    expected = [torch.autograd.grad(whole(*step), step[0])[0] for step in steps]
    for step in steps[:cut]:
        before(*step)
    after.load_state_dict({name: value.clone() for name, value in before.state_dict().items()})
    for step, gradient in zip(steps[cut:], expected[cut:], strict=True):
        assert torch.equal(torch.autograd.grad(after(*step), step[0])[0], gradient)
    assert after.stats.keys() == whole.stats.keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name


def test_nothing_is_stored_in_eval_mode_or_without_gradient() -> None:
    loss = MemoryLoss(LOSSES["all"][0](), size=16, dim=DIM).double()
    (first, second) = batches(2)
    loss(*first)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    value = loss.eval()(*second).detach()
    with torch.no_grad():
        assert torch.equal(loss.train()(*second), value)
    assert all(torch.equal(loss.state_dict()[name], held) for name, held in before.items())
    assert torch.equal(loss(*second).detach(), value)
    assert not torch.equal(loss.state_dict()["embeddings"], before["embeddings"])


def test_a_batch_that_is_not_finite_is_never_stored() -> None:
    loss = MemoryLoss(LOSSES["all"][0](), size=9, dim=DIM).double()
    steps = batches(4)
    bad = steps[1][0].detach().clone()
    bad[2, 1] = float("nan")
    loss(*steps[0])
    loss(bad.requires_grad_(), steps[1][1])
    kept = held(loss)
    rows = list(zip(steps[0][0].tolist(), steps[0][1].tolist(), strict=True))
    assert kept == sorted([*rows, *[([0.0] * DIM, -1)] * 3])
    assert torch.isfinite(loss(*steps[2]))
    assert torch.isfinite(loss(*steps[3]))


def test_stats_are_of_the_batch_of_the_bank_and_how_stale_it_is() -> None:
    loss = MemoryLoss(ContrastiveLoss(), size=4, dim=2).double()
    rows = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    loss(rows, labels)
    first = {name: float(value) for name, value in loss.stats.items()}
    assert first["memory_fill"] == first["memory_drift"] == first["memory_loss"] == 0
    moved = -torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0]], dtype=torch.float64)
    value = loss(moved.requires_grad_(), labels)
    stats = loss.stats
    assert set(stats) == set(first)
    # By the cosine positives are 1 apart in the batch; those of the bank are 2 and 1 away, half of each.
    assert float(stats["memory_drift"]) == pytest.approx(0.5)
    assert float(stats["positive_distance"]) == pytest.approx(2**0.5)
    assert float(stats["memory_positive_distance"]) == pytest.approx((2 + 2**0.5) / 2)
    assert float(stats["memory_fill"]) == 1
    # Half of the squared distance of positives, and of max(0, 1 - d) of negatives, half of which coincide.
    assert float(value.detach() - stats["memory_loss"]) == pytest.approx(1 + 0.25)
    assert all(stat.ndim == 0 and not stat.requires_grad for stat in stats.values())


def test_half_precision_is_stored_in_float32() -> None:
    loss = MemoryLoss(LOSSES["all"][0](), size=16, dim=DIM)
    rows, labels = batches(1)[0]
    halves = rows.detach().to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss(halves, labels)
        value = loss(halves, labels)
    assert value.dtype == loss.embeddings.dtype == torch.float32
    assert torch.equal(loss.embeddings[:6], halves.detach().float())
    assert torch.isfinite(torch.autograd.grad(value, halves)[0]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0, "dim": 4}, "size must be 1 or more, got 0"),
        ({"size": 4, "dim": 0}, "dim must be 1 or more, got 0"),
        ({"size": 4, "dim": 4, "start_after": -1}, "start_after must be 0 or more, got -1"),
    ],
)
def test_bad_settings(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        MemoryLoss(ContrastiveLoss(), **settings)
    assert str(caught.value) == message


def test_embeddings_of_another_size() -> None:
    with pytest.raises(ValueError) as caught:
        MemoryLoss(ContrastiveLoss(), size=8, dim=3)(torch.zeros(2, 4), torch.tensor([0, 1]))
    assert str(caught.value) == "embeddings must have dim=3 columns, got 4"
