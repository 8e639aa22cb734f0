from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from metricli.components.losses import ArcFaceLoss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_arcface_is_the_published_formula(smoothing: float) -> None:
    torch.manual_seed(0)
    loss = ArcFaceLoss(dim=6, num_labels=5, scale=20, margin=0.4, label_smoothing=smoothing).double()
    x, labels = (
        torch.randn(7, 6, dtype=torch.float64, requires_grad=True),
        torch.tensor([0, 1, 2, 3, 4, 0, 1]),
    )
    angles = torch.acos(F.normalize(x) @ F.normalize(loss.weight).T)
    assert angles.max() < math.pi - 0.4
    enlarged = angles + 0.4 * F.one_hot(labels, 5)
    expected = F.cross_entropy(20 * enlarged.cos(), labels, label_smoothing=smoothing)
    value = loss(x, labels)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected)
    for gradient, other in zip(
        torch.autograd.grad(value, (x, loss.weight)),
        torch.autograd.grad(expected, (x, loss.weight)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, other)
    assert loss.stats["accuracy"].item() == (angles.argmin(1) == labels).double().mean().item()
    assert loss.stats["target_cosine"].item() == pytest.approx(
        angles.detach().cos().gather(1, labels[:, None]).mean().item()
    )


def test_arcface_gradcheck_with_both_smoothings() -> None:
    torch.manual_seed(0)
    loss = ArcFaceLoss(
        dim=4, num_labels=5, label_smoothing=0.1, category_smoothing=0.2, label_to_category=[0, 1, 0, 1, 7]
    ).double()
    x, labels = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 3, 4, 0])
    assert torch.autograd.gradcheck(lambda e, _: loss(e, labels), (x, loss.weight))


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_arcface_is_finite_on_its_centres_opposite_them_and_at_zero(sign: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    loss = ArcFaceLoss(dim=16, num_labels=8)
    x = (sign * loss.weight.detach()).to(dtype).requires_grad_()
    value = loss(x, torch.arange(8))
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert loss.weight.grad is not None
    assert x.grad.isfinite().all()
    assert loss.weight.grad.isfinite().all()
    assert x.grad.abs().max() < 1000
    assert loss.stats["target_cosine"].item() == pytest.approx(sign, abs=0.01)


def test_arcface_learns_and_its_state_is_its_centres() -> None:
    torch.manual_seed(0)
    loss = ArcFaceLoss(dim=8, num_labels=4, scale=16, label_to_category=torch.tensor([0, 0, 1, 1]))
    assert list(loss.state_dict()) == ["weight", "chosen"]
    assert loss.weight.norm(dim=1).mean().item() == pytest.approx(1, abs=0.3)
    x, labels = torch.randn(32, 8), torch.arange(32) % 4
    x += 3 * F.one_hot(labels, 8)
    for _ in range(30):
        (gradient,) = torch.autograd.grad(loss(x, labels), loss.weight)
        loss.weight.data -= 0.1 * gradient
    assert loss.stats["accuracy"].item() > 0.9


def test_arcface_of_an_empty_batch_is_a_zero() -> None:
    value = ArcFaceLoss(dim=4, num_labels=3)(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0


def test_arcface_settings_that_make_no_sense() -> None:
    for settings, message in [
        ({"dim": 0}, "dim must be 1 or more, got 0"),
        ({"num_labels": 0}, "num_labels must be 1 or more, got 0"),
        ({"scale": 0}, "scale must be a finite number above 0, got 0"),
        ({"margin": 28.6}, "margin must be in radians, from 0 to π/2, got 28.6"),
        (
            {"label_smoothing": 0.5, "category_smoothing": 0.5},
            "label_smoothing and category_smoothing must be 0 or more and below 1 in sum, got 0.5 and 0.5",
        ),
        ({"category_smoothing": 0.1}, "category_smoothing=0.1 needs label_to_category"),
        (
            {"label_to_category": [0, 1]},
            "label_to_category must hold one category for each of 3 labels, got shape (2,)",
        ),
        ({"label_to_category": [0, 1, -1]}, "label_to_category must hold integers, 0 or more"),
        ({"label_to_category": [0.0, 1.0, 2.0]}, "label_to_category must hold integers, 0 or more"),
    ]:
        with pytest.raises(ValueError) as caught:
            ArcFaceLoss(**{"dim": 4, "num_labels": 3, **settings})  # type: ignore[arg-type]
        assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"^embeddings must have dim=4 columns, got 5$"):
        ArcFaceLoss(dim=4, num_labels=3)(torch.randn(2, 5), torch.arange(2))
