from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from oml import miners as miners_of_oml
from oml.losses import TripletLossWithMiner
from pytorch_metric_learning import miners as miners_of_pml

from metricli.components.losses import TripletLoss
from metricli.components.miners import (
    AllTriplets,
    DistanceWeighted,
    EasyPositive,
    HardCluster,
    HardTriplets,
    NHard,
    SemiHard,
)
from metricli.core import selection
from metricli.core.mining import Mined, hard_triplets


def test_all_triplets_are_not_listed() -> None:
    assert AllTriplets()(torch.randn(4, 2), torch.arange(4)) == Mined(everything=True)


@pytest.mark.parametrize("miner", [AllTriplets(), HardTriplets()])
def test_miners_check_their_arguments(miner: torch.nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"^reference and reference_labels come together, got only one of them$"
    ):
        miner(torch.randn(4, 2), torch.arange(4), torch.randn(4, 2))
    assert not list(miner.parameters())


def test_hard_triplets_mine_in_their_distance_and_their_reference() -> None:
    x, labels = torch.tensor([[1.0, 0.0], [5.0, 0.0], [1.0, 1.0], [0.0, 6.0]]), torch.tensor([0, 0, 1, 1])
    bank, of_bank = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])
    for distance, negatives in (("euclidean", [2, 2, 0, 0]), ("cosine", [2, 2, 0, 0])):
        mined = HardTriplets(distance=distance)(x, labels).triplets  # type: ignore[arg-type]
        assert mined.negatives.tolist() == negatives
    near_far = torch.tensor([[1.0, 0.0], [9.0, 9.0], [2.0, 0.5], [1.0, -1.0]])
    assert HardTriplets()(near_far, labels).triplets.negatives[0] == 3
    assert HardTriplets(distance="cosine")(near_far, labels).triplets.negatives[0] == 2
    mined = HardTriplets()(x, labels, bank, of_bank).triplets
    for ours, theirs in zip(mined, hard_triplets(x, labels, bank, of_bank).triplets, strict=True):  # type: ignore[arg-type]
        assert torch.equal(ours, theirs)
    assert mined.positives.tolist() == [1, 1, 2, 2]


def test_an_unknown_distance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^distance must be 'euclidean' or 'cosine', got 'l1'$"):
        HardTriplets(distance="l1")  # type: ignore[arg-type]
    assert repr(HardTriplets(distance="cosine")) == "HardTriplets(distance='cosine')"


def unit_batch(seed: int = 0, dim: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(24, dim, dtype=torch.float64)), torch.arange(24) % 6


def as_set(*index: torch.Tensor | list[int]) -> set[tuple[int, ...]]:
    columns = [list(map(int, one)) for one in index]
    return set(zip(*columns, strict=True))


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), ([1, 2], [2, 5]), (3, [4, 4]), (99, 99)])
def test_n_hard_is_that_of_open_metric_learning(ranks: tuple[Any, Any]) -> None:
    x, labels = unit_batch()
    theirs = miners_of_oml.NHardTripletsMiner(n_positive=ranks[0], n_negative=ranks[1])
    ours = NHard(positives=ranks[0], negatives=ranks[1])(x, labels).triplets
    assert as_set(*ours) == as_set(*theirs._sample(x, labels.tolist()))


def test_n_hard_gives_what_there_is_of_the_ranks() -> None:
    x, labels = torch.tensor([[0.0], [1.0], [3.0], [4.0], [9.0]]), torch.tensor([0, 0, 0, 1, 1])
    assert as_set(*NHard(positives=2, negatives=[2, 3])(x, labels).triplets) == {
        *{(0, p, 4) for p in (1, 2)},
        *{(1, p, 4) for p in (0, 2)},
        *{(2, p, 4) for p in (0, 1)},
        *{(3, 4, n) for n in (0, 1)},
        *{(4, 3, n) for n in (0, 1)},
    }
    assert {a for a, _, _ in as_set(*NHard(positives=[2, 2])(x, labels).triplets)} == {0, 1, 2}
    assert len(NHard(positives=[3, 4])(x, labels).triplets.anchors) == 0
    for wrong in (0, [0, 2], [3, 2], [1, 2, 3]):
        with pytest.raises(ValueError, match=r"^negatives must be a number, 1 or more, or the first and the"):
            NHard(negatives=wrong)


@pytest.mark.parametrize("negative", ["semi_hard", "hard"])
@pytest.mark.parametrize("seed", range(3))
def test_easy_positives_are_those_of_pytorch_metric_learning(negative: Any, seed: int) -> None:
    x, labels = unit_batch(seed, dim=3)
    theirs = miners_of_pml.BatchEasyHardMiner("easy", negative.replace("_", ""))
    anchors, positives, _, negatives = theirs(x, labels)
    ours = EasyPositive(negative=negative)(x, labels).triplets
    assert as_set(*ours) == as_set(anchors, positives, negatives)
    with pytest.raises(ValueError, match=r"^negative must be 'semi_hard' or 'hard', got 'semi'$"):
        EasyPositive(negative="semi")  # type: ignore[arg-type]


def test_semi_hard_takes_the_farthest_where_none_is_beyond() -> None:
    x, labels = torch.tensor([[0.0], [9.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
    assert as_set(*SemiHard()(x, labels).triplets) == {(0, 1, 3), (1, 0, 2), (2, 3, 1), (3, 2, 0)}


def test_semi_hard_in_blocks_is_semi_hard_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = unit_batch()
    expected = as_set(*SemiHard()(x, labels).triplets)
    monkeypatch.setattr(selection, "BLOCK_ELEMENTS", 50)
    assert as_set(*SemiHard()(x, labels).triplets) == expected


@pytest.mark.parametrize("dim", [2, 3, 8, 64])
def test_probabilities_are_those_of_pytorch_metric_learning(
    dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels = unit_batch(dim=dim)
    given: dict[str, torch.Tensor] = {}

    def seen(*_: Any, weights: torch.Tensor, **__: Any) -> tuple[torch.Tensor, ...]:
        given["weights"] = weights
        return (torch.zeros(1, dtype=torch.int64),) * 3

    module = "pytorch_metric_learning.miners.distance_weighted_miner.lmu.get_random_triplet_indices"
    monkeypatch.setattr(module, seen)
    miners_of_pml.DistanceWeightedMiner(cutoff=0.6, nonzero_loss_cutoff=1.3)(x, labels)
    distances = torch.cdist(x, x)
    ours = selection.inverse_density(distances, labels[:, None] != labels, dim, 0.6, 1.3)
    torch.testing.assert_close(ours, given["weights"].nan_to_num())


def test_distance_weighted_draws_by_its_probabilities() -> None:
    angles = torch.tensor([0.0, 0.2, 0.3, 0.9, 1.2, 3.0], dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin(), torch.zeros(6)], dim=1)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    weights = [max(2 * math.sin(angle / 2), 0.5) ** -1 for angle in (0.3, 0.9, 1.2)]
    torch.manual_seed(0)
    miner = DistanceWeighted()
    drawn = [n for _ in range(2000) for a, _, n in as_set(*miner(x, labels).triplets) if a == 0]
    counts = torch.bincount(torch.tensor(drawn), minlength=6) / 2000
    expected = torch.tensor([0, 0, *weights, 0]) / sum(weights)  # in 3 dimensions q(d) = d
    assert (counts - expected).abs().max() < 0.04
    torch.manual_seed(7)
    first = miner(x, labels).triplets
    torch.manual_seed(7)
    assert as_set(*first) == as_set(*miner(x, labels).triplets)
    assert 5 not in first.anchors.tolist()  # all its negatives are too far
    assert sorted(as_set(first.anchors, first.positives)) == [(0, 1), (1, 0), (2, 3), (3, 2), (4, 5)]
    for cutoffs in ((0.0, 1.0), (1.4, 1.4), (0.5, 2.1)):
        with pytest.raises(ValueError, match=r"^expected 0 < cutoff < nonzero_loss_cutoff <= 2, the largest"):
            DistanceWeighted(cutoff=cutoffs[0], nonzero_loss_cutoff=cutoffs[1])


@pytest.mark.parametrize("margin", [0.4, None])
def test_hard_clusters_are_those_of_open_metric_learning(margin: float | None) -> None:
    x, labels = unit_batch()
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = TripletLoss(margin=margin, miner=HardCluster())(one, labels)
    theirs = TripletLossWithMiner(margin=margin, miner=miners_of_oml.HardClusterMiner())(two, labels)
    torch.testing.assert_close(ours, theirs)
    (gradient,), (expected,) = torch.autograd.grad(ours, one), torch.autograd.grad(theirs, two)
    torch.testing.assert_close(gradient, expected)


def test_hard_clusters_by_hand() -> None:
    x = torch.tensor([[0.0], [1.0], [5.0], [4.0], [4.0], [9.0]], requires_grad=True)
    labels = torch.tensor([7, 7, 7, 2, 2, 5])
    clusters = HardCluster()(x, labels).clusters
    assert clusters.groups.tolist() == [2, 2, 2, 0, 0, 1]
    assert [index.tolist() for index in clusters[2:]] == [[0, 2], [3, 2], [2, 0]]  # 5 has a single row
    loss = TripletLoss(margin=2.5, miner=HardCluster(), reduction="sum")
    loss(x, labels).backward()
    # means 4 and 2, 2 apart: 0 - 2 + 2.5 and 3 - 2 + 2.5
    assert loss.stats["triplets"] == 2
    assert x.grad is not None
    # label 2: d_an = 4 - 2; label 7: d_ap = 5 - 2 and d_an = 4 - 2
    expected = [-1 / 3 + 2 / 3, -1 / 3 + 2 / 3, 1 - 1 / 3 + 2 / 3, -1.0, -1.0, 0.0]
    torch.testing.assert_close(x.grad.flatten(), torch.tensor(expected))
    assert repr(HardCluster()) == "HardCluster(distance='euclidean')"


@pytest.mark.parametrize("miner", [SemiHard, NHard, EasyPositive, HardCluster])
def test_each_refuses_an_unknown_distance(miner: Any) -> None:
    with pytest.raises(ValueError, match=r"^distance must be 'euclidean' or 'cosine', got 'l1'$"):
        miner(distance="l1")
