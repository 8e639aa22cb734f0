from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricli.components.losses import ArcFaceLoss, TripletLoss, triplet
from metricli.components.miners import AllTriplets, HardTriplets
from metricli.core.mining import Mined, Pairs, all_triplets, label_masks

MINERS = [AllTriplets(), HardTriplets()]


def list_all(_x: Tensor, labels: Tensor, _reference: Any = None, reference_labels: Any = None) -> Mined:
    return all_triplets(labels, reference_labels)


def pair_all(_x: Tensor, labels: Tensor, _reference: Any = None, reference_labels: Any = None) -> Mined:
    positive, negative = (
        Pairs(*mask.nonzero(as_tuple=True)) for mask in label_masks(labels, reference_labels)
    )
    return Mined(positive_pairs=positive, negative_pairs=negative)


def naive_loss(
    x: Tensor, labels: Tensor, margin: float | None, distance: str, squared: bool, reduction: str, hard: bool
) -> Tensor:
    """By a triple loop over differences of rows."""

    def between(a: int, b: int) -> Tensor:
        if distance == "cosine":
            return 1 - F.cosine_similarity(x[a], x[b], dim=0)
        return (x[a] - x[b]).square().sum() if squared else (x[a] - x[b]).norm()

    losses = []
    for a in range(len(x)):
        near = [between(a, p) for p in range(len(x)) if p != a and labels[p] == labels[a]]
        far = [between(a, n) for n in range(len(x)) if labels[n] != labels[a]]
        if hard and near and far:
            near, far = [max(near, key=Tensor.item)], [min(far, key=Tensor.item)]
        for d_ap in near:
            for d_an in far:
                gap = d_ap - d_an
                losses.append(torch.log1p(gap.exp()) if margin is None else (gap + margin).clamp(min=0))
    stacked = torch.stack(losses)
    if reduction == "sum":
        return stacked.sum()
    return stacked.mean() if reduction == "mean" else stacked[stacked > 0].mean()


@pytest.mark.parametrize("reduction", ["mean", "mean_active", "sum"])
@pytest.mark.parametrize(
    ("distance", "squared"), [("euclidean", False), ("euclidean", True), ("cosine", False)]
)
@pytest.mark.parametrize("margin", [0.4, None])
def test_triplet_loss_is_that_of_a_triple_loop(
    margin: float | None, distance: Any, squared: bool, reduction: Any
) -> None:
    torch.manual_seed(1)
    x, labels = torch.randn(9, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 0, 3, 1, 0])
    miners: list[Callable[..., Mined]] = [AllTriplets(), list_all, pair_all, HardTriplets(distance=distance)]
    for miner in miners:
        hard = isinstance(miner, HardTriplets)
        loss = TripletLoss(
            margin=margin, miner=miner, distance=distance, squared=squared, reduction=reduction
        )
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        value = loss(one, labels)
        expected = naive_loss(two, labels, margin, distance, squared, reduction, hard)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(*torch.autograd.grad(value, one), *torch.autograd.grad(expected, two))


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("margin", [0.4, None])
def test_triplet_gradcheck_with_and_without_reference(miner: nn.Module, margin: float | None) -> None:
    torch.manual_seed(2)
    x, labels = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 0, 1, 1, 2, 0])
    bank, of_bank = torch.randn(8, 3, dtype=torch.float64, requires_grad=True), torch.arange(8) % 3
    loss = TripletLoss(margin=margin, miner=miner)
    assert torch.autograd.gradcheck(lambda e: loss(e, labels), x)
    assert torch.autograd.gradcheck(lambda e, r: loss(e, labels, r, of_bank), (x, bank))


def test_triplet_by_hand() -> None:
    x, labels = torch.tensor([[0.0], [1.0], [1.5]], requires_grad=True), torch.tensor([0, 0, 1])
    loss = TripletLoss(margin=0.25, miner=AllTriplets())
    value = loss(x, labels)
    assert value.item() == pytest.approx((0 + 0.75) / 2)
    assert {name: stat.item() for name, stat in loss.stats.items()} == pytest.approx(
        {"active": 0.5, "positive_distance": 1.0, "negative_distance": 1.0, "triplets": 2}
    )
    value.backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([-0.5, 1.0, -0.5])
    assert all(stat.ndim == 0 and not stat.requires_grad for stat in loss.stats.values())


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 1, 2, 3]])
@pytest.mark.parametrize("miner", [*MINERS, list_all, pair_all])
@pytest.mark.parametrize("margin", [0.4, None])
@pytest.mark.parametrize("reduction", ["mean", "mean_active", "sum"])
def test_without_a_triplet_the_loss_is_a_connected_zero(
    labels: list[int], miner: Any, margin: float | None, reduction: Any
) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    loss = TripletLoss(margin=margin, miner=miner, reduction=reduction)
    value = loss(x, torch.tensor(labels))
    value.backward()
    assert value.item() == 0
    assert x.grad is not None
    assert not x.grad.any()
    assert {name: stat.item() for name, stat in loss.stats.items()} == {
        "active": 0,
        "positive_distance": 0,
        "negative_distance": 0,
        "triplets": 0,
    }


@pytest.mark.parametrize("miner", MINERS)
def test_an_empty_batch_is_a_zero(miner: nn.Module) -> None:
    x = torch.empty(0, 3, requires_grad=True)
    value = TripletLoss(miner=miner)(x, torch.empty(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("rows", ["equal", "zero", "huge"])
@pytest.mark.parametrize("margin", [0.4, None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_triplet_is_finite_at_degenerate_rows(
    miner: nn.Module, distance: Any, rows: str, margin: float | None, dtype: torch.dtype
) -> None:
    start = {"equal": torch.full((6, 8), 0.7), "zero": torch.zeros(6, 8), "huge": torch.randn(6, 8) * 1e4}[
        rows
    ]
    x = start.to(dtype).requires_grad_()
    value = TripletLoss(margin=margin, miner=miner, distance=distance)(x, torch.arange(6) % 2)
    value.backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    if rows != "huge":
        assert value.item() == pytest.approx(0.4 if margin else math.log(2), rel=1e-5)
        assert x.grad.abs().max() < 10


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_and_autocast_compute_in_float32(miner: nn.Module, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    half, labels = torch.randn(16, 32).to(dtype), torch.arange(16) % 4
    loss, arcface = TripletLoss(miner=miner), ArcFaceLoss(dim=32, num_labels=4)
    for module in (loss, arcface):
        expected = module(half.float(), labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(module(half.float(), labels), expected)
            assert torch.equal(module(half, labels), expected)
    assert arcface.weight.dtype == torch.float32


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("margin", [0.4, None])
def test_permuting_the_batch_changes_nothing(miner: nn.Module, margin: float | None) -> None:
    torch.manual_seed(0)
    x, labels, order = torch.randn(24, 5, dtype=torch.float64), torch.arange(24) % 5, torch.randperm(24)
    loss = TripletLoss(margin=margin, miner=miner)
    one, two = x.clone().requires_grad_(), x[order].clone().requires_grad_()
    value, permuted = loss(one, labels), loss(two, labels[order])
    torch.testing.assert_close(value, permuted)
    (gradient,), (of_permuted,) = torch.autograd.grad(value, one), torch.autograd.grad(permuted, two)
    torch.testing.assert_close(gradient[order], of_permuted)


def test_all_triplets_of_1024_embeddings_need_no_cube() -> None:
    torch.manual_seed(0)
    x = F.normalize(torch.randn(1024, 64)).requires_grad_()
    loss = TripletLoss(miner=AllTriplets())
    with torch.profiler.profile(profile_memory=True) as profile:
        loss(x, torch.arange(1024) // 4).backward()
    largest = max(abs(event.self_cpu_memory_usage) for event in profile.events())
    assert 4 * 1024**2 <= largest <= 16 * 1024**2
    assert loss.stats["triplets"].item() == 1024 * 3 * 1020


def test_many_listed_triplets_take_their_distances_from_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(12, 5, dtype=torch.float64, requires_grad=True), torch.arange(12) % 3
    loss = TripletLoss(miner=list_all)
    paired = loss(x, labels)
    monkeypatch.setattr(triplet, "PAIRED_ELEMENTS", 0)
    torch.testing.assert_close(loss(x, labels), paired)


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("margin", [0.4, None])
def test_a_nan_embedding_is_not_hidden(miner: nn.Module, distance: Any, margin: float | None) -> None:
    x, labels = torch.randn(6, 3), torch.arange(6) // 2
    x[4, 1] = torch.nan
    assert TripletLoss(margin=margin, miner=miner, distance=distance)(x, labels).isnan()
    assert ArcFaceLoss(dim=3, num_labels=3)(x, labels).isnan()


def test_a_miner_is_given_rows_without_gradient() -> None:
    seen: list[Tensor] = []

    def miner(*tensors: Tensor) -> Mined:
        seen.extend(tensors)
        return Mined(everything=True)

    x, labels = torch.randn(4, 2, requires_grad=True), torch.arange(4) // 2
    TripletLoss(miner=miner)(x, labels, x * 2, labels)
    assert [tensor.requires_grad for tensor in seen] == [False] * 4
    assert torch.equal(seen[2], x.detach() * 2)


def test_triplet_settings_that_make_no_sense() -> None:
    for settings, message in [
        (
            {"margin": -0.1},
            "margin must be a finite number, 0 or more, or None for the soft margin, got -0.1",
        ),
        (
            {"margin": math.inf},
            "margin must be a finite number, 0 or more, or None for the soft margin, got inf",
        ),
        ({"distance": "l2"}, "distance must be 'euclidean' or 'cosine', got 'l2'"),
        ({"reduction": "none"}, "reduction must be 'mean', 'mean_active' or 'sum', got 'none'"),
        ({"squared": True, "distance": "cosine"}, "squared needs distance 'euclidean', got 'cosine'"),
        ({"miner": "hard"}, "miner must be a module or function that returns Mined, got 'hard'"),
    ]:
        with pytest.raises(ValueError) as caught:
            TripletLoss(**{"miner": AllTriplets(), **settings})  # type: ignore[arg-type]
        assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"^the miner must return metricli.core.mining.Mined, got NoneType$"):
        TripletLoss(miner=lambda *_: None)(torch.randn(4, 2), torch.arange(4))  # type: ignore[arg-type, return-value]
