"""Every loss keeps one contract: value, gradient, half precision, order of the batch, degenerate batches."""

from __future__ import annotations

from importlib.metadata import distribution

import pytest
import torch
from torch import Tensor

from tests.components.losses import classification, pairs, pml, proxies, rankings, triplets
from tests.components.losses.case import DIM, NUM_LABELS, Case

CASES: list[Case] = [
    *triplets.CASES,
    *classification.CASES,
    *proxies.CASES,
    *rankings.CASES,
    *pairs.CASES,
    *pml.CASES,
]
LABELS = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4]
every_loss = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def batch(labels: list[int], dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(labels), DIM, generator=generator, dtype=torch.float64)
    return rows.to(dtype).requires_grad_(), torch.tensor(labels)


def made(case: Case, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    torch.manual_seed(0)
    return case.make().to(dtype)


def gradients(loss: Tensor, module: torch.nn.Module, rows: Tensor) -> list[Tensor]:
    wanted = [rows, *module.parameters()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]


def test_every_loss_has_a_case() -> None:
    installed = {e.name for e in distribution("metricli").entry_points if e.group == "metricli.losses"}
    assert installed == {case.plugin for case in CASES}


@every_loss
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_gradient_are_those_of_the_definition(case: Case, seed: int) -> None:
    module = made(case)
    rows, labels = batch(LABELS, seed=seed)
    expected = case.naive(module, rows, labels)
    loss = module(rows, labels)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)
    assert float(expected.detach().abs()) > 1e-6, "the case tests nothing"
    found = gradients(loss, module, rows)
    for one, wanted in zip(found, gradients(expected, made_like(module), rows), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-6, atol=1e-8)


def made_like(module: torch.nn.Module) -> torch.nn.Module:
    """The same module: its parameters are the leaves of the naive value too."""
    return module


@every_loss
def test_a_peer_agrees(case: Case) -> None:
    if case.peer is None:
        pytest.skip("no peer defines it alike")
    module = made(case)
    rows, labels = batch(LABELS)
    expected = case.peer(module, rows, labels)
    torch.testing.assert_close(module(rows, labels), expected.double(), rtol=1e-5, atol=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_near(case: Case, dtype: torch.dtype) -> None:
    rows, labels = batch(LABELS, torch.float32)
    exact = made(case, torch.float32)(rows, labels)
    module = made(case, torch.float32)
    halves = (rows.detach() * 8).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        loss = module(halves, labels)
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(x).all() for x in [loss, *gradients(loss, module, halves)])
    near = made(case, torch.float32)(rows.detach().to(dtype), labels)
    torch.testing.assert_close(near, exact, rtol=0.1, atol=0.05)


@every_loss
def test_the_order_of_the_batch_changes_nothing(case: Case) -> None:
    rows, labels = batch(LABELS)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    module = made(case)
    loss = module(rows, labels)
    (expected,) = torch.autograd.grad(loss, rows)
    again = made(case)
    moved = rows.detach()[order].requires_grad_()
    shuffled = again(moved, labels[order])
    (found,) = torch.autograd.grad(shuffled, moved)
    torch.testing.assert_close(shuffled, loss)
    torch.testing.assert_close(found, expected[order])


@every_loss
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_shows_in_the_loss(case: Case, value: float) -> None:
    """Whoever trains stops at a loss that is not finite; an error in its place would not name the images."""
    rows, labels = batch(LABELS, torch.float32)
    broken = rows.detach().clone()
    broken[3] = value
    assert not torch.isfinite(made(case, torch.float32)(broken.requires_grad_(), labels))


DEGENERATE = {
    "equal": (torch.ones(6, DIM), [0, 0, 1, 1, 2, 2]),
    "zero": (torch.zeros(6, DIM), [0, 0, 1, 1, 2, 2]),
    "opposite": (torch.ones(4, DIM) * torch.tensor([1.0, -1, 1, -1])[:, None], [0, 0, 1, 1]),
    "along the axes": (
        torch.eye(DIM)[:4].repeat(2, 1) * torch.tensor([1.0] * 4 + [-1] * 4)[:, None],
        [0, 1, 2, 3] * 2,
    ),
    "one label": (torch.randn(4, DIM, generator=torch.Generator().manual_seed(0)), [1, 1, 1, 1]),
    "all distinct": (torch.randn(5, DIM, generator=torch.Generator().manual_seed(0)), [0, 1, 2, 3, 4]),
    "one row": (torch.randn(1, DIM, generator=torch.Generator().manual_seed(0)), [0]),
    "far apart": (torch.randn(6, DIM, generator=torch.Generator().manual_seed(0)) * 1e4, [0, 0, 1, 1, 2, 2]),
}


@every_loss
@pytest.mark.parametrize("what", DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_degenerate_batches_are_finite(case: Case, what: str, dtype: torch.dtype) -> None:
    values, labels = DEGENERATE[what]
    assert max(labels) < NUM_LABELS
    module = made(case, torch.float32)
    rows = values.to(dtype).requires_grad_()
    loss = module(rows, torch.tensor(labels))
    found = gradients(loss, module, rows)
    assert torch.isfinite(loss), (what, loss)
    assert all(torch.isfinite(x).all() for x in found), what
    stats = module.stats
    assert all(
        value.ndim == 0 and not value.requires_grad and torch.isfinite(value) for value in stats.values()
    )
