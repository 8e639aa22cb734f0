"""Losses over pairs beyond their contract: a reference, extreme settings, too few pairs, what is mined."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from pytorch_metric_learning import losses as pml
from torch import Tensor

from metricli.components.losses import (
    CircleLoss,
    ContrastiveLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NPairsLoss,
    NTXentLoss,
    SupConLoss,
)
from metricli.core.mining import Mined, Pairs, Triplets
from tests.components.losses.case import DIM, Case
from tests.components.losses.pairs import CASES, REFERENCED

LABELS = torch.tensor([0, 0, 1, 1, 2, 3])
BANK_LABELS = torch.tensor([1, 0, 0, 2, 2, 4, 1, 0])


def rows_of(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("case", REFERENCED, ids=lambda case: case.name)
def test_a_reference_is_what_a_loop_says(case: Case):
    module = case.make()
    rows, bank = rows_of(6, 0).requires_grad_(), rows_of(8, 1).requires_grad_()
    expected = case.naive(module, rows, LABELS, bank, BANK_LABELS)
    loss = module(rows, LABELS, bank, BANK_LABELS)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)
    wanted = torch.autograd.grad(expected, (rows, bank))
    for found, one in zip(torch.autograd.grad(loss, (rows, bank)), wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("bank_labels", [[], [9, 9], [0, 0]])
def test_a_reference_without_pairs_is_finite(case: Case, bank_labels: list[int]):
    rows, bank = rows_of(3, 0).float().requires_grad_(), rows_of(len(bank_labels), 1).float()
    labels = torch.tensor([0, 0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the mode that refuses NaN within the backward pass
        with torch.autograd.detect_anomaly(check_nan=True):
            loss = case.make()(rows, labels, bank, torch.tensor(bank_labels, dtype=torch.int64))
            (gradient,) = torch.autograd.grad(loss, rows)
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_autocast_takes_no_digits(case: Case):
    rows = rows_of(6, 0).float()
    expected = case.make()(rows, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(case.make()(rows, LABELS), expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_embeddings_that_are_nan_are_not_hidden(case: Case):
    rows = torch.full((6, DIM), torch.nan)
    assert bool(torch.isnan(case.make()(rows, LABELS)))


@pytest.mark.parametrize(
    "make", [NTXentLoss, SupConLoss, CircleLoss, NPairsLoss, LiftedStructureLoss, MultiSimilarityLoss]
)
@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 1, 2, 3], []])
def test_a_batch_without_both_kinds_of_pairs_is_a_zero_without_gradient(make, labels):
    rows = rows_of(len(labels), 0).requires_grad_()
    loss = make()(rows, torch.tensor(labels, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(loss, rows)
    assert float(loss.detach()) == 0
    assert not bool(gradient.any())


def test_an_anchor_without_a_positive_does_not_dilute_the_mean():
    """Against a reference the anchors do not meet, so that the others' losses stay as they are."""
    rows, bank = rows_of(6, 0), rows_of(8, 1)
    for make in (NTXentLoss, SupConLoss, CircleLoss, NPairsLoss):
        expected = make()(rows[:5], LABELS[:5], bank, BANK_LABELS)
        torch.testing.assert_close(make()(rows, LABELS, bank, BANK_LABELS), expected)
    for form in ("pairwise", "generalized"):
        module = LiftedStructureLoss(form=form)
        assert bool(module(rows[5:], LABELS[5:], bank, BANK_LABELS) == 0)


@pytest.mark.parametrize(
    "module",
    [
        NTXentLoss(temperature=1e-4),
        SupConLoss(temperature=1e-4),
        CircleLoss(gamma=1e5),
        MultiSimilarityLoss(alpha=1e4, beta=1e5),
        NTXentLoss(temperature=1e4),
        SupConLoss(temperature=1e4),
        CircleLoss(gamma=1e-4),
        MultiSimilarityLoss(alpha=1e-4, beta=1e-4),
    ],
    ids=str,
)
def test_extreme_settings_in_float32_are_those_of_float64(module):
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    rows = rows_of(6, 0)
    narrow = rows.float().requires_grad_()
    exact = rows.requires_grad_()
    loss = module(narrow, labels)
    wanted = module(exact, labels)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-3, atol=1e-6)
    (found,), (expected,) = torch.autograd.grad(loss, narrow), torch.autograd.grad(wanted, exact)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=1e-2, atol=1e-3)


def test_n_pairs_of_drawn_pairs_is_the_papers():
    anchors, positives, labels = rows_of(4, 0), rows_of(4, 1), torch.arange(4)
    loss = NPairsLoss()(anchors, labels, positives, labels)
    logits = anchors @ positives.T
    by_hand = [
        math.log1p(sum(math.exp(logits[i, j] - logits[i, i]) for j in range(4) if j != i)) for i in range(4)
    ]
    assert float(loss) == pytest.approx(sum(by_hand) / 4)
    theirs = pml.NPairsLoss()
    theirs.distance.normalize_embeddings = False
    pairs = (torch.arange(4), torch.arange(4, 8), torch.empty(0).long(), torch.empty(0).long())
    expected = theirs(torch.cat([anchors, positives]), labels.repeat(2), pairs)
    assert float(loss) == pytest.approx(float(expected))


def test_n_pairs_stats_and_penalty():
    rows = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    module, labels = NPairsLoss(l2_penalty=0.5), torch.tensor([0, 0, 1])
    loss = module(rows, labels)
    terms = [math.log1p(math.exp(0 - 2)), math.log1p(math.exp(3 - 2))]
    assert float(loss) == pytest.approx(sum(terms) / 2 + 0.5 * (4 + 2 + 9) / 3)
    assert {key: float(value) for key, value in module.stats.items()} == pytest.approx(
        {"positive_product": 2.0, "negative_product": 1.5, "squared_norm": 5.0}
    )


def on_a_line() -> tuple[Tensor, Tensor]:
    """Rows at 0, 1 (label 0), 3, 3.5 (label 1)."""
    return torch.tensor([[0.0], [1.0], [3.0], [3.5]]), torch.tensor([0, 0, 1, 1])


def test_contrastive_by_hand():
    rows, labels = on_a_line()
    module = ContrastiveLoss(neg_margin=3.2, pos_margin=0.5)
    loss = module(rows, labels)
    near = [0.5**2, 0.0]
    far = [0.2**2, 0.0, 1.2**2, 0.7**2]
    assert float(loss) == pytest.approx(sum(near) / 2 / 2 + sum(far) / 4 / 2)
    assert {key: float(value) for key, value in module.stats.items()} == pytest.approx(
        {
            "active_positives": 0.5,
            "active_negatives": 0.75,
            "positive_distance": 0.75,
            "negative_distance": 2.75,
        }
    )
    active = ContrastiveLoss(neg_margin=3.2, pos_margin=0.5, reduction="mean_active")(rows, labels)
    assert float(active) == pytest.approx(sum(near) / 1 / 2 + sum(far) / 3 / 2)
    total = ContrastiveLoss(neg_margin=3.2, pos_margin=0.5, reduction="sum")(rows, labels)
    assert float(total) == pytest.approx(sum(near) + sum(far))


def mined(**forms: object) -> ContrastiveLoss:
    return ContrastiveLoss(neg_margin=3.2, miner=lambda *_: Mined(**forms))


def indices(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_contrastive_of_listed_triplets_counts_each_pair_once():
    rows, labels = on_a_line()
    module = mined(triplets=Triplets(indices(0, 0, 2), indices(1, 1, 3), indices(2, 3, 1)))
    loss = module(rows, labels)
    assert float(loss) == pytest.approx((1**2 + 0.5**2) / 2 / 2 + (0.2**2 + 0 + 1.2**2) / 3 / 2)
    assert float(module.stats["positive_distance"]) == pytest.approx(0.75)
    assert float(module.stats["negative_distance"]) == pytest.approx((3 + 3.5 + 2) / 3)


def test_contrastive_of_listed_pairs():
    rows, labels = on_a_line()
    listed = Pairs(indices(1, 1), indices(2, 3))
    nothing = Pairs(indices(), indices())
    loss = mined(positive_pairs=nothing, negative_pairs=listed)(rows, labels)
    assert float(loss) == pytest.approx((1.2**2 + 0.7**2) / 2 / 2)
    listed = Pairs(indices(0, 0), indices(1, 1))
    assert float(mined(positive_pairs=listed, negative_pairs=nothing)(rows, labels)) == pytest.approx(1 / 2)
    assert float(mined(positive_pairs=nothing, negative_pairs=nothing)(rows, labels)) == 0


def test_contrastive_gives_the_miner_rows_and_reference_without_gradient():
    seen = []

    def miner(embeddings: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor) -> Mined:
        seen.append((embeddings.requires_grad, reference.requires_grad, reference_labels is BANK_LABELS))
        return Mined(triplets=Triplets(indices(0), indices(1), indices(7)))

    rows, bank = rows_of(6, 0).requires_grad_(), rows_of(8, 1).requires_grad_()
    loss = ContrastiveLoss(neg_margin=9.0, miner=miner)(rows, LABELS, bank, BANK_LABELS)
    expected = ((rows[0] - bank[1]).norm() ** 2 + (9 - (rows[0] - bank[7]).norm()) ** 2) / 2
    torch.testing.assert_close(loss, expected)
    assert seen == [(False, False, True)]


def test_multi_similarity_says_what_it_keeps():
    """Cosines to the anchor (1, 0): 0.8 of its positive, 0.6 and -1 of the negatives."""
    rows = torch.tensor([[1.0, 0.0]])
    bank = torch.tensor([[0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]])
    for epsilon, kept in ((0.3, (1.0, 0.5)), (0.1, (0.0, 0.0)), (2.0, (1.0, 1.0))):
        module = MultiSimilarityLoss(epsilon=epsilon)
        loss = module(rows, torch.tensor([0]), bank, torch.tensor([0, 1, 1]))
        assert (float(module.stats["positives_kept"]), float(module.stats["negatives_kept"])) == kept
        assert (float(loss) > 0) == (epsilon > 0.2)


def test_lifted_says_the_active_share():
    rows, labels = on_a_line()
    module = LiftedStructureLoss(margin=1.0)
    loss = module(rows, labels)
    first = math.log(sum(math.exp(1 - d) for d in (3, 3.5, 2, 2.5))) + 1
    second = math.log(sum(math.exp(1 - d) for d in (3, 3.5, 2, 2.5))) + 0.5
    assert float(loss) == pytest.approx((first**2 + second**2) / 2 / 2)
    assert float(module.stats["active"]) == 1
    far = LiftedStructureLoss(margin=0.0, form="generalized")
    assert float(far(rows * torch.tensor([[1.0], [1.0], [9.0], [9.0]]), labels)) == 0
    assert float(far.stats["active"]) == 0


WRONG = {
    "temperature must be a finite number above 0, got 0": [
        lambda: NTXentLoss(temperature=0),
        lambda: SupConLoss(temperature=0),
    ],
    "l2_penalty must be a finite number, 0 or more, got -1": [lambda: NPairsLoss(l2_penalty=-1)],
    "alpha must be a finite number above 0, got 0": [lambda: MultiSimilarityLoss(alpha=0)],
    "beta must be a finite number above 0, got inf": [lambda: MultiSimilarityLoss(beta=math.inf)],
    "base must be a finite number, got nan": [lambda: MultiSimilarityLoss(base=math.nan)],
    "m must be 0 or more and below 1, got 1": [lambda: CircleLoss(m=1)],
    "gamma must be a finite number above 0, got 0": [lambda: CircleLoss(gamma=0)],
    "margin must be a finite number, 0 or more, got -1": [lambda: LiftedStructureLoss(margin=-1)],
    "form must be 'pairwise' or 'generalized', got 'smooth'": [lambda: LiftedStructureLoss(form="smooth")],
    "distance must be 'euclidean' or 'cosine', got 'dot'": [
        lambda: LiftedStructureLoss(distance="dot"),
        lambda: ContrastiveLoss(distance="dot"),
    ],
    "margins must be finite with 0 <= pos_margin < neg_margin, got 1 and 1.0": [
        lambda: ContrastiveLoss(pos_margin=1)
    ],
    "reduction must be 'mean', 'mean_active' or 'sum', got 'none'": [
        lambda: ContrastiveLoss(reduction="none")
    ],
    "miner must be a module or function that returns Mined, got 'hard'": [
        lambda: ContrastiveLoss(miner="hard")
    ],
    "the miner must return metricli.core.mining.Mined, got tuple": [
        lambda: ContrastiveLoss(miner=lambda *_: ())(*on_a_line())
    ],
    "reference and reference_labels come together, got only one of them": [
        lambda: NPairsLoss()(*on_a_line(), on_a_line()[0])
    ],
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_settings_are_refused(message):
    for make in WRONG[message]:
        with pytest.raises(ValueError) as caught:
            make()
        assert str(caught.value) == message
