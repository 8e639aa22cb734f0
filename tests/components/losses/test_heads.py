"""What all heads share (centres, layers before them, the count of chosen ones), and AdaCos's scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from metricli.components.losses import (
    AdaCosLoss,
    ArcFaceLoss,
    CosFaceLoss,
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    SubCenterArcFaceLoss,
)
from metricli.core.losses.classification import adacos_scale, cosface_logits, smoothed_cross_entropy
from metricli.core.losses.proxies import proxy_anchor_loss

HEADS = [
    AdaCosLoss,
    ArcFaceLoss,
    CosFaceLoss,
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    SubCenterArcFaceLoss,
]
every_head = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)


def batch(rows: int = 12, dim: int = 6, labels: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, dim, generator=generator), torch.arange(rows) % labels


def made(head: Callable[..., nn.Module], **settings: Any) -> Any:
    torch.manual_seed(0)
    return head(**{"dim": 6, "num_labels": 5, **settings})


@every_head
def test_the_count_of_chosen_centres_is_that_of_a_loop(head: Any) -> None:
    loss, (rows, labels) = made(head), batch()
    assert loss.unchosen() == 1
    counts = [0] * len(loss.weight)
    for row in rows:
        similarities = [
            float(torch.nn.functional.cosine_similarity(row, centre, 0)) for centre in loss.weight.detach()
        ]
        counts[similarities.index(max(similarities))] += 2
    loss(rows, labels)
    loss(rows, labels)
    assert loss.chosen.tolist() == counts
    assert loss.unchosen().shape == ()
    assert float(loss.unchosen()) == pytest.approx(counts.count(0) / len(counts))
    loss.eval()(rows, labels)
    assert loss.chosen.tolist() == counts, "only training counts"
    again = made(head)
    again.load_state_dict(loss.state_dict())
    assert again.chosen.tolist() == counts
    assert again.double().chosen.dtype == torch.int64


@every_head
def test_a_step_waits_for_no_value(head: Any) -> None:
    """Tensors without values: whatever would make a GPU wait for one (item, bool, nonzero) raises."""
    with FakeTensorMode():
        loss, (rows, labels) = head(dim=6, num_labels=5, mlp=[4]), (torch.randn(12, 6), torch.arange(12) % 5)
        loss(rows, labels).backward()
        assert loss.unchosen().shape == ()


@every_head
def test_layers_before_the_centres(head: Any) -> None:
    loss, (rows, labels) = made(head, mlp=[7, 4]), batch()
    assert loss.weight.shape[1] == 4
    shapes = {name: tuple(p.shape) for name, p in loss.named_parameters() if name != "weight"}
    assert shapes == {
        "mlp.0.weight": (7, 6),
        "mlp.0.bias": (7,),
        "mlp.1.weight": (4, 7),
        "mlp.1.bias": (4,),
    }
    value = loss(rows, labels)
    layers = nn.Sequential(loss.mlp[0], nn.ReLU(), loss.mlp[1])
    plain = made(head, dim=4)
    plain.weight.data = loss.weight.data
    torch.testing.assert_close(plain(layers(rows), labels), value)
    gradients = torch.autograd.grad(value, list(loss.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    with pytest.raises(ValueError, match=r"^embeddings must have dim=6 columns, got 4$"):
        loss(rows[:, :4], labels)


@every_head
def test_an_empty_batch_is_without_a_gradient_to_the_centres_of_labels(head: Any) -> None:
    loss = made(head, **({"tau": 0.0} if head is SoftTripleLoss else {}))
    value = loss(torch.empty(0, 6), torch.empty(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert loss.chosen.sum() == 0


@every_head
def test_half_weights_give_what_their_values_give(head: Any) -> None:
    loss, (rows, labels) = made(head, mlp=[4]).half(), batch()
    value = loss(rows.half(), labels)
    assert value.dtype == torch.float32
    exact = made(head, mlp=[4]).half().float()
    torch.testing.assert_close(value, exact(rows.half().float(), labels), rtol=1e-2, atol=1e-2)


@every_head
def test_training_brings_embeddings_to_their_label(head: Any) -> None:
    loss, (rows, labels) = made(head), batch(40)
    rows = rows + 3 * torch.nn.functional.one_hot(labels, 6)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    history = []
    for _ in range(60):
        value = loss(rows, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append((float(value.detach()), float(loss.stats["target_cosine"])))
    assert history[-1][0] < history[0][0]
    assert history[-1][1] > history[0][1] + 0.1
    assert loss.stats["accuracy"] > 0.95


def test_settings_that_make_no_sense() -> None:
    cosine = "margin must be a difference of cosines, 0 or more and below 1, got "
    for head, settings, message in [
        (ArcFaceLoss, {"mlp": [8, 1]}, "mlp must hold sizes of 2 or more, got [8, 1]"),
        (SubCenterArcFaceLoss, {"centers_per_label": 0}, "centers_per_label must be 1 or more, got 0"),
        (SubCenterArcFaceLoss, {"margin": 28.6}, "margin must be in radians, from 0 to π/2, got 28.6"),
        (CosFaceLoss, {"margin": 1}, cosine + "1"),
        (CosFaceLoss, {"scale": math.inf}, "scale must be a finite number above 0, got inf"),
        (AdaCosLoss, {"num_labels": 2}, "num_labels must be 3 or more, got 2"),
        (NormalizedSoftmaxLoss, {"temperature": 0}, "temperature must be a finite number above 0, got 0"),
        (ProxyNCALoss, {"temperature": -1}, "temperature must be a finite number above 0, got -1"),
        (ProxyAnchorLoss, {"alpha": 0}, "alpha must be a finite number above 0, got 0"),
        (ProxyAnchorLoss, {"margin": -0.1}, cosine + "-0.1"),
        (SoftTripleLoss, {"la": 0}, "la must be a finite number above 0, got 0"),
        (SoftTripleLoss, {"gamma": 0}, "gamma must be a finite number above 0, got 0"),
        (SoftTripleLoss, {"margin": 1.5}, cosine + "1.5"),
        (SoftTripleLoss, {"tau": -1}, "tau must be a finite number, 0 or more, got -1"),
    ]:
        with pytest.raises(ValueError) as caught:
            made(head, **settings)
        assert str(caught.value) == message


def test_several_centres_are_told_apart_by_the_nearest() -> None:
    """Two looks of a label on opposite sides: one centre can serve only one of them."""
    loss = made(SubCenterArcFaceLoss, dim=2, num_labels=2, centers_per_label=2, scale=8.0, margin=0.1)
    loss.weight.data = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    rows = torch.tensor([[2.0, 0], [-2, 0], [0, 2], [0, -2]])
    loss(rows, torch.tensor([0, 0, 1, 1]))
    assert (loss.stats["accuracy"], loss.stats["target_cosine"]) == (1, 1)
    assert loss.chosen.tolist() == [1, 1, 1, 1]
    loss(rows, torch.tensor([1, 1, 0, 0]))
    assert (loss.stats["accuracy"], loss.stats["target_cosine"]) == (0, 0)


def test_cosface_by_hand() -> None:
    cosines = torch.tensor([[0.5, 0.2, -0.1]])
    logits = cosface_logits(cosines, torch.tensor([1]), 10.0, 0.35)
    torch.testing.assert_close(logits, torch.tensor([[5.0, -1.5, -1.0]]))
    value = smoothed_cross_entropy(logits, torch.tensor([1]))
    expected = math.log(math.exp(5) + math.exp(-1.5) + math.exp(-1)) + 1.5
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_soft_triple_merges_centres_that_a_label_does_not_need() -> None:
    rows, labels = batch(40)
    rows = rows * 0.1 + torch.nn.functional.one_hot(labels, 6)
    spreads = []
    for tau in (0.0, 5.0):
        loss = made(SoftTripleLoss, centers_per_label=4, tau=tau)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            loss(rows, labels).backward()
            optimizer.step()
        assert loss.stats["accuracy"] == 1
        spreads.append(float(loss.stats["center_spread"]))
    assert spreads[1] < 0.2 < 0.5 < spreads[0]


def test_soft_triple_regulariser_by_hand() -> None:
    loss = made(SoftTripleLoss, dim=2, num_labels=1, centers_per_label=3, tau=0.6)
    loss.weight.data = torch.tensor([[1.0, 0], [0, 2], [-3, 0]])
    value = loss(torch.tensor([[1.0, 0]]), torch.tensor([0]))
    distances = [math.sqrt(2), 2, math.sqrt(2)]
    assert float(value.detach()) == pytest.approx(0.6 * sum(distances) / (1 * 3 * 2), rel=1e-6)
    assert float(loss.stats["center_spread"]) == pytest.approx(sum(distances) / 3, rel=1e-6)


def test_equal_centres_of_a_label_have_a_finite_gradient() -> None:
    loss, (rows, labels) = made(SoftTripleLoss, centers_per_label=3), batch()
    loss.weight.data = loss.weight.data[:1].repeat(15, 1)
    loss(rows, labels).backward()
    assert loss.weight.grad.isfinite().all()


def test_adacos_starts_at_its_fixed_scale_and_follows_the_batch_in_training_alone() -> None:
    loss, (rows, labels) = made(AdaCosLoss), batch()
    start = math.sqrt(2) * math.log(4)
    assert float(loss.scale) == pytest.approx(start)
    assert "scale" in loss.state_dict()
    loss.eval()(rows, labels)
    assert float(loss.scale) == pytest.approx(start)
    loss.train()(rows, labels)
    followed = float(loss.scale)
    assert followed != pytest.approx(start)
    assert float(loss.stats["scale"]) == followed
    again = made(AdaCosLoss)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.eval()(rows, labels), loss.eval()(rows, labels))


def test_adacos_of_embeddings_on_their_centres_has_the_scale_of_the_paper() -> None:
    """Orthogonal centres, met exactly: B is C - 1 and θ 0, so that the scale is log(C - 1)."""
    loss = made(AdaCosLoss)
    loss.weight.data = torch.eye(6)[:5]
    loss(2 * torch.eye(6)[:5], torch.arange(5))
    assert float(loss.scale) == pytest.approx(math.log(4))


@pytest.mark.parametrize(("count", "median"), [(4, 0.9), (3, 0.8)])
def test_adacos_takes_the_lower_median_angle(count: int, median: float) -> None:
    """Cosines to the target of 0.72, 0.8, 0.9 and 0.99: the angles' median is that of 0.9, of three 0.8."""
    cosines = torch.zeros(count, 5, dtype=torch.float64)
    cosines[:, 0] = torch.tensor([0.72, 0.99, 0.8, 0.9])[[1, 0, 3, 2] if count == 4 else [3, 0, 2]]
    scale = adacos_scale(cosines, torch.zeros(count, dtype=torch.int64), torch.tensor(2.0).double())
    assert float(scale) == pytest.approx(math.log(4) / median, rel=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_adacos_scale_of_equal_embeddings_stays_finite(sign: float) -> None:
    loss = made(AdaCosLoss)
    loss.weight.data = torch.ones(5, 6)
    start = float(loss.scale)
    for _ in range(3000):
        value = loss(sign * torch.ones(3, 6), torch.tensor([0, 1, 2]))
    assert value.isfinite()
    assert start / 10.001 < float(loss.scale) < start * 10.001


def test_adacos_scale_survives_a_batch_that_is_not_finite() -> None:
    loss, (rows, labels) = made(AdaCosLoss), batch()
    loss(rows, labels)
    before = float(loss.scale)
    assert loss(rows * math.nan, labels).isnan()
    assert float(loss.scale) == before


def test_adacos_takes_two_forward_passes_before_a_backward() -> None:
    loss, (rows, labels) = made(AdaCosLoss), batch()
    rows.requires_grad_()
    (loss(rows[:6], labels[:6]) + loss(rows[6:], labels[6:])).backward()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_proxy_anchor_by_hand_where_the_batch_lacks_a_label() -> None:
    """One embedding of label 0 and none of labels 1 and 2: one proxy has a positive, two have a negative."""
    loss = proxy_anchor_loss(torch.tensor([[0.5, 0.2, -0.3]]), torch.tensor([0]), 2.0, 0.1)
    positive = math.log(1 + math.exp(-2 * 0.4))
    negatives = math.log(1 + math.exp(2 * 0.3)) + math.log(1 + math.exp(-2 * 0.2))
    assert float(loss) == pytest.approx(positive + negatives / 3, rel=1e-6)


def test_proxy_anchor_of_an_alpha_that_overflows_is_finite() -> None:
    loss, (rows, labels) = made(ProxyAnchorLoss, alpha=1e4), batch()
    rows.requires_grad_()
    value = loss(rows, labels)
    value.backward()
    assert value.isfinite()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()
