"""Ranking losses: their limits, their peers, a memory bank, and the memory they take."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metricli.components.losses import FastAPLoss, RecallAtKLoss, SmoothAPLoss, SurrogatePrecisionLoss
from metricli.core.losses import rankings as core
from metricli.core.losses.rankings import (
    average_precision,
    fast_ap_loss,
    precision_at_k_loss,
    recall_at_k_loss,
    smooth_ap_loss,
)
from tests.components.losses.case import Case
from tests.components.losses.rankings import CASES

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4])
FINE = 1e-5
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def rows_of(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def value_and_gradient(loss: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss, rows)[0]


@every_case
@pytest.mark.parametrize("elements", [1, 25, 60])
def test_blocks_change_nothing(case: Case, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "BLOCK_ELEMENTS", elements)
    module, rows = case.make().double(), rows_of(len(LABELS))
    expected = value_and_gradient(case.naive(module, rows, LABELS), rows)
    torch.testing.assert_close(value_and_gradient(module(rows, LABELS), rows), expected)


class Largest(TorchDispatchMode):
    """The most elements that any tensor had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return found


@every_case
def test_no_tensor_is_larger_than_the_distances(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "BLOCK_ELEMENTS", 4096)
    rows, labels = rows_of(64), torch.arange(64) % 2
    with Largest() as largest:
        torch.autograd.grad(case.make()(rows, labels), rows)
    assert largest.elements == 64 * 64  # 64 x 31 positive pairs x 64 candidates would be 126,976


@every_case
def test_a_reference_of_the_other_rows_is_the_batch(case: Case) -> None:
    """Anchor by anchor against a bank of the others, and all at once, are the same mean."""
    module, rows = case.make().double(), rows_of(len(LABELS))
    losses = []
    for a in range(len(LABELS)):
        others = torch.arange(len(LABELS)) != a
        if (LABELS[others] == LABELS[a]).any():
            losses.append(module(rows[a, None], LABELS[a, None], rows[others], LABELS[others]))
    expected = value_and_gradient(torch.stack(losses).mean(), rows)
    torch.testing.assert_close(value_and_gradient(module(rows, LABELS), rows), expected)


def test_smooth_ap_is_that_of_pytorch_metric_learning_where_the_anchor_is_ranked_too() -> None:
    """It ranks the anchor as its own positive, in float32, and is right for as many labels as instances."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_metric_learning.losses import SmoothAPLoss as Peer
    rows, labels = rows_of(16), torch.arange(16) // 4
    expected = value_and_gradient(Peer(temperature=0.05)(rows, labels).double(), rows)
    found = value_and_gradient(SmoothAPLoss(temperature=0.05)(rows, labels, rows, labels), rows)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_surrogate_precision_is_that_of_open_metric_learning_where_the_anchor_is_ranked_too(k: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from oml.losses import SurrogatePrecision as Peer
    rows = rows_of(len(LABELS))
    peer = Peer(k=k, temperature1=0.7, temperature2=0.1)
    expected = value_and_gradient(peer(rows, LABELS), rows)
    ours = SurrogatePrecisionLoss(k=k + 1, k_temperature=0.7, rank_temperature=0.1)
    torch.testing.assert_close(value_and_gradient(ours(rows, LABELS, rows, LABELS), rows), expected)


ONE_LABEL = torch.zeros(5, dtype=torch.int64)


@pytest.mark.parametrize("module", [SmoothAPLoss(), FastAPLoss()])
def test_without_negatives_average_precision_has_nothing_to_learn(module: torch.nn.Module) -> None:
    rows = rows_of(5)
    loss, gradient = value_and_gradient(module(rows, ONE_LABEL), rows)
    torch.testing.assert_close(loss, torch.zeros_like(loss))
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    assert float(module.stats["average_precision"]) == 1


@every_case
def test_without_positives_there_is_nothing_to_learn(case: Case) -> None:
    module, rows = case.make(), rows_of(5)
    loss, gradient = value_and_gradient(module(rows, torch.arange(5)), rows)
    assert float(loss) == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert float(module.stats["average_precision"]) == 0


def test_an_average_precision_by_hand() -> None:
    """Positives at ranks 1, 3 and 4 of 5: (1/1 + 2/3 + 3/4) / 3; the second anchor has none; nor self."""
    distances = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]])
    positives = torch.tensor([[False, True, False, True, True, False], [False] * 6])
    negatives = torch.tensor([[False, False, True, False, False, True], [True] * 6])
    found = average_precision(distances, positives, negatives)
    torch.testing.assert_close(found, torch.tensor((1 + 2 / 3 + 3 / 4) / 3))


def test_the_average_precision_of_a_collapsed_batch_is_the_share_of_positives() -> None:
    module = SmoothAPLoss()
    module(torch.ones(6, 4), torch.tensor([0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(module.stats["average_precision"], torch.tensor(2 / 5))


orders = st.lists(st.booleans(), min_size=1, max_size=12).filter(any)
"""Whether the item at each rank, nearest first, is a positive."""


def laid_out(order: list[bool], spacing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Distances (1, R) apart by `spacing`, shuffled, with their masks."""
    shuffled = torch.randperm(len(order), generator=torch.Generator().manual_seed(len(order)))
    distances = (torch.arange(len(order), dtype=torch.float64) * spacing)[shuffled][None]
    positives = torch.tensor(order)[shuffled][None]
    return distances, positives, ~positives


def precision_of(order: list[bool]) -> float:
    ranks = [rank for rank, hit in enumerate(order, start=1) if hit]
    return sum(i / rank for i, rank in enumerate(ranks, start=1)) / len(ranks)


@given(orders)
def test_smooth_ap_tends_to_average_precision(order: list[bool]) -> None:
    loss = float(smooth_ap_loss(*laid_out(order, 0.1), temperature=0.001))
    assert loss == pytest.approx(1 - precision_of(order), abs=FINE)
    assert float(average_precision(*laid_out(order, 0.1))) == pytest.approx(precision_of(order), abs=FINE)


@given(orders)
def test_fast_ap_of_items_in_bins_of_their_own_is_average_precision(order: list[bool]) -> None:
    loss = float(fast_ap_loss(*laid_out(order, 0.1), bins=20, farthest=2.0))
    assert loss == pytest.approx(1 - precision_of(order), abs=FINE)


@given(orders, st.integers(1, 14) | st.none())
def test_precision_tends_to_the_share_of_hits(order: list[bool], k: int | None) -> None:
    k = sum(order) if k is None else k
    loss = float(precision_at_k_loss(*laid_out(order, 0.1), k, 0.01, 0.001))
    assert loss == pytest.approx(1 - sum(order[:k]) / min(k, sum(order)), abs=FINE)


@given(orders, st.integers(1, 14))
def test_recall_tends_to_the_share_of_hits_with_half_for_rank_k(order: list[bool], k: int) -> None:
    loss = float(recall_at_k_loss(*laid_out(order, 0.1), (k,), 0.01, 0.001))
    hits = (sum(order[:k]) + sum(order[: k - 1])) / 2
    assert loss == pytest.approx(1 - hits / min(k, sum(order)), abs=FINE)


def test_recall_at_several_k_is_their_mean() -> None:
    rows = rows_of(len(LABELS))
    several = RecallAtKLoss(k=[1, 3])(rows, LABELS)
    torch.testing.assert_close(
        several, (RecallAtKLoss(k=[1])(rows, LABELS) + RecallAtKLoss(k=[3])(rows, LABELS)) / 2
    )


REFUSED = {
    "temperature must be positive and finite, got 0": lambda: SmoothAPLoss(temperature=0),
    "k must be one or more numbers of at least 1, got []": lambda: RecallAtKLoss(k=[]),
    "k must be one or more numbers of at least 1, got [0, 1]": lambda: RecallAtKLoss(k=[0, 1]),
    "k_temperature must be positive and finite, got -1": lambda: RecallAtKLoss(k_temperature=-1),
    "rank_temperature must be positive and finite, got inf": lambda: RecallAtKLoss(
        rank_temperature=float("inf")
    ),
    "k must be at least 1, or None for the number of positives, got 0": lambda: SurrogatePrecisionLoss(k=0),
    "rank_temperature must be positive and finite, got 0": lambda: SurrogatePrecisionLoss(rank_temperature=0),
    "distance must be 'euclidean' or 'cosine', got 'l1'": lambda: SurrogatePrecisionLoss(distance="l1"),
    "bins must be at least 2, got 1": lambda: FastAPLoss(bins=1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str) -> None:
    with pytest.raises(ValueError) as caught:
        REFUSED[message]()
    assert str(caught.value) == message
