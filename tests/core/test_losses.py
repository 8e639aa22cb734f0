from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metricli.core.losses import triplet as core_losses
from metricli.core.losses.classification import arcface_logits, smoothed_cross_entropy
from metricli.core.losses.triplet import (
    all_triplets_sums,
    listed_triplets_sums,
)
from metricli.core.mining import label_masks


def naive_sums(distances: Tensor, positives: Tensor, negatives: Tensor, margin: float | None):
    """Loss (with gradient), triplets, active, sums of distances, by a triple loop."""
    loss, triplets, active, near, far = distances.sum() * 0, 0, 0, 0.0, 0.0
    rows, columns = distances.shape
    for a in range(rows):
        for p in range(columns):
            for n in range(columns):
                if positives[a, p] and negatives[a, n]:
                    gap = distances[a, p] - distances[a, n]
                    value = torch.log1p(torch.exp(gap)) if margin is None else (gap + margin).clamp(min=0)
                    loss, triplets, active = loss + value, triplets + 1, active + int(value.item() > 0)
                    near, far = near + distances[a, p].item(), far + distances[a, n].item()
    return loss, triplets, active, near, far


@pytest.mark.parametrize("margin", [0.0, 0.3, None])
@pytest.mark.parametrize("searched", [0, 100])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 2, 1], [0, 1, 2], [5, 5, 5], [0]])
def test_all_triplets_sums_are_those_of_a_triple_loop(
    margin: float | None, searched: int, labels: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_losses, "SEARCHED_POSITIVES", searched)
    torch.manual_seed(len(labels))
    distances = torch.rand(len(labels), len(labels), dtype=torch.float64, requires_grad=True)
    positives, negatives = label_masks(torch.tensor(labels))
    loss, triplets, active, near, far = naive_sums(distances, positives, negatives, margin)
    (expected,) = torch.autograd.grad(loss, distances)
    sums = all_triplets_sums(distances, positives, negatives, margin)
    (gradient,) = torch.autograd.grad(sums.loss, distances)
    assert (int(sums.triplets), int(sums.active)) == (triplets, active)
    torch.testing.assert_close(sums.loss, loss)
    torch.testing.assert_close(gradient, expected)
    assert float(sums.positive_distance) == pytest.approx(near)
    assert float(sums.negative_distance) == pytest.approx(far)


@pytest.mark.parametrize("margin", [0.3, None])
def test_a_reference_of_another_size(margin: float | None) -> None:
    torch.manual_seed(0)
    distances = torch.rand(4, 9, dtype=torch.float64, requires_grad=True)
    masks = label_masks(torch.tensor([0, 1, 2, 7]), torch.tensor([0, 0, 1, 2, 2, 2, 2, 3, 1]))
    assert torch.autograd.gradcheck(lambda d: all_triplets_sums(d, *masks, margin).loss, distances)
    expected = naive_sums(distances, *masks, margin)[0]
    torch.testing.assert_close(all_triplets_sums(distances, *masks, margin).loss, expected)


@pytest.mark.parametrize("searched", [0, 100])
def test_a_triplet_exactly_at_the_margin_is_not_active(
    searched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_losses, "SEARCHED_POSITIVES", searched)
    distances = torch.tensor(
        [[0.0, 1.0, 1.0, 1.5], [1, 0, 1, 1], [9, 9, 9, 9], [9, 9, 9, 9]], requires_grad=True
    )
    positives = torch.zeros(4, 4, dtype=torch.bool)
    positives[0, 1] = positives[0, 2] = positives[1, 0] = True
    negatives = torch.zeros(4, 4, dtype=torch.bool)
    negatives[0, 3] = negatives[1, 3] = True
    sums = all_triplets_sums(distances, positives, negatives, 0.5)
    sums.loss.backward()
    assert (sums.triplets.item(), sums.active.item(), sums.loss.item()) == (3, 1, 0.5)
    assert distances.grad is not None
    assert distances.grad.tolist() == [[0, 0, 0, 0], [1, 0, 0, -1], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("elements", [1, 1000, 2**20])
def test_blocks_and_many_positives_change_nothing(
    margin: float | None, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_losses, "BLOCK_ELEMENTS", elements)
    torch.manual_seed(0)
    distances = (6 * torch.rand(7, 200, dtype=torch.float64)).requires_grad_()
    labels = torch.arange(200) % 2
    positives, negatives = label_masks(torch.tensor([0, 1, 0, 1, 1, 0, 5]), labels)
    gaps = distances[:, :, None] - distances[:, None, :]
    losses = F.softplus(gaps) if margin is None else (gaps + margin).relu()
    loss = losses[positives[:, :, None] & negatives[:, None, :]].sum()
    (expected,) = torch.autograd.grad(loss, distances)
    sums = all_triplets_sums(distances, positives, negatives, margin)
    torch.testing.assert_close(sums.loss, loss)
    torch.testing.assert_close(torch.autograd.grad(sums.loss, distances)[0], expected)
    assert int(sums.triplets) == 6 * 100 * 100


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 300.0])
def test_soft_margin_in_float32_is_near_that_in_float64(scale: float) -> None:
    torch.manual_seed(0)
    exact = (scale * torch.rand(40, 40, dtype=torch.float64)).requires_grad_()
    masks = label_masks(torch.arange(40) % 4)
    loss = all_triplets_sums(exact, *masks, None).loss
    single = exact.detach().float().requires_grad_()
    found = all_triplets_sums(single, *masks, None).loss
    torch.testing.assert_close(found.double(), loss, rtol=1e-6, atol=0)
    (gradient,), (expected,) = torch.autograd.grad(found, single), torch.autograd.grad(loss, exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    distances = torch.rand(4, 4, requires_grad=True)
    sums = all_triplets_sums(distances, *label_masks(torch.tensor([0, 0, 1, 1])), None)
    (gradient,) = torch.autograd.grad((sums.loss * distances.sum()), distances, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("margin", [0.3, None])
def test_a_nan_distance_is_not_hidden(margin: float | None) -> None:
    for cell in ((0, 1), (0, 2)):
        distances = torch.rand(4, 4)
        distances[cell] = torch.nan
        assert all_triplets_sums(distances, *label_masks(torch.tensor([0, 0, 1, 1])), margin).loss.isnan()


@pytest.mark.parametrize("margin", [0.3, None])
def test_listed_sums_by_hand(margin: float | None) -> None:
    near, far = torch.tensor([1.0, 2.0, 0.1]), torch.tensor([1.5, 1.0, 0.2])
    sums = listed_triplets_sums(near, far, margin)
    expected = 1.3 + 0.2 if margin else sum(math.log1p(math.exp(gap)) for gap in (-0.5, 1.0, -0.1))
    assert float(sums.loss) == pytest.approx(expected, rel=1e-6)
    assert (int(sums.triplets), int(sums.active)) == (3, 2 if margin else 3)
    assert (float(sums.positive_distance), float(sums.negative_distance)) == pytest.approx((3.1, 2.7))


def test_soft_margin_of_far_distances_does_not_overflow() -> None:
    distances = torch.tensor([[0.0, 5000.0, 0.0], [5000, 0, 9000], [0, 9000, 0]], requires_grad=True)
    sums = all_triplets_sums(distances, *label_masks(torch.tensor([0, 0, 1])), None)
    sums.loss.backward()
    assert float(sums.loss.detach()) == 5000
    assert distances.grad is not None
    assert distances.grad.tolist() == [[0, 1, -1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, math.pi / 2])
def test_arcface_logits_are_the_cosine_of_the_enlarged_angle(margin: float) -> None:
    angles = torch.linspace(0.01, math.pi - margin - 0.01, 50, dtype=torch.float64)
    cosines = torch.stack([angles.cos(), -0.3 * torch.ones_like(angles)], dim=1).requires_grad_()
    labels = torch.zeros(50, dtype=torch.int64)
    logits = arcface_logits(cosines, labels, 30.0, margin)
    enlarged = torch.cos(torch.acos(cosines[:, 0]) + margin)
    torch.testing.assert_close(logits, 30 * torch.stack([enlarged, cosines[:, 1]], dim=1))
    weights = torch.randn_like(logits)
    (gradient,) = torch.autograd.grad((logits * weights).sum(), cosines)
    (expected,) = torch.autograd.grad(
        (30 * torch.stack([enlarged, cosines[:, 1]], 1) * weights).sum(), cosines
    )
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.2, math.pi / 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_target_logit_never_falls_as_the_cosine_rises(margin: float, dtype: torch.dtype) -> None:
    cosines = torch.linspace(-1, 1, 4001, dtype=dtype)[:, None].requires_grad_()
    logits = arcface_logits(cosines, torch.zeros(4001, dtype=torch.int64), 1.0, margin)
    assert (logits.detach().diff(dim=0) >= -1e-6).all()
    logits.sum().backward()
    assert cosines.grad is not None
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize("cosine", [1.0, -1.0, 1.0000001, -1.0000001])
def test_arcface_at_the_ends(cosine: float) -> None:
    cosines = torch.tensor([[cosine, 0.2]], requires_grad=True)
    logits = arcface_logits(cosines, torch.tensor([0]), 64.0, 0.5)
    logits[0, 0].backward()
    slope = math.cos(0.5) if cosine > 0 else 1.0
    expected = math.cos(0.5) if cosine > 0 else -1 - 0.5 * math.sin(0.5)
    assert logits[0, 0].item() == pytest.approx(64 * expected, rel=1e-6)
    assert cosines.grad is not None
    assert cosines.grad.tolist() == [pytest.approx([64 * slope, 0.0], rel=1e-6)]


@pytest.mark.parametrize(("everywhere", "within"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.3), (0.1, 0.3)])
def test_smoothed_cross_entropy_is_that_of_the_written_out_target(everywhere: float, within: float) -> None:
    torch.manual_seed(0)
    categories = torch.tensor([0, 0, 3, 0, 3, 1])
    logits, labels = torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 2, 5, 4, 1])
    target = torch.zeros(5, 6, dtype=torch.float64)
    for row, label in enumerate(labels.tolist()):
        same = (categories == categories[label]).double()
        target[row] = everywhere / 6 + within * same / same.sum()
        target[row, label] += 1 - everywhere - within
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(
        smoothed_cross_entropy(logits, labels, everywhere, within, categories), expected
    )
    if within == 0:
        torch.testing.assert_close(expected, F.cross_entropy(logits, labels, label_smoothing=everywhere))


def test_one_category_of_all_labels_is_plain_label_smoothing() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 6), torch.tensor([0, 2, 5, 4, 1])
    smoothed = smoothed_cross_entropy(logits, labels, 0.0, 0.2, torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(smoothed, F.cross_entropy(logits, labels, label_smoothing=0.2))
