"""Losses and miners of pytorch-metric-learning by name, against the package used directly."""

from __future__ import annotations

import sys

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor

from metricli.components.losses import MemoryLoss, TripletLoss
from metricli.components.losses.pml import PMLLoss
from metricli.components.miners import HardTriplets
from metricli.components.miners.pml import PMLMiner
from metricli.components.pml import called, known_classes
from metricli.errors import UsageError

LABELS = torch.arange(16) % 4
DIM = 8


def rows(seed: int = 0, count: int = 16) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def same(one: Tensor, other: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        torch.autograd.grad(one, leaves[0])[0], torch.autograd.grad(other, leaves[1])[0]
    )


def test_a_loss_with_all_its_parts_is_the_packages() -> None:
    ours = PMLLoss(
        loss="MultiSimilarityLoss",
        args={"alpha": 1.5, "beta": 20},
        miner=("PairMarginMiner", {"pos_margin": 0.2, "neg_margin": 0.1}),
        distance=("CosineSimilarity", {}),
        reducer=("SumReducer", {}),
        dim=DIM,
        num_labels=4,
    )
    theirs = losses.MultiSimilarityLoss(
        alpha=1.5, beta=20, distance=distances.CosineSimilarity(), reducer=reducers.SumReducer()
    )
    miner = miners.PairMarginMiner(pos_margin=0.2, neg_margin=0.1, distance=distances.CosineSimilarity())
    x, y = rows(), rows()
    same(ours(x, LABELS), theirs(y, LABELS, miner(y, LABELS)), x, y)
    assert not torch.allclose(ours(x, LABELS), theirs(y, LABELS))


def test_a_head_gets_its_sizes_and_is_a_parameter() -> None:
    torch.manual_seed(0)
    ours = PMLLoss(loss="SubCenterArcFaceLoss", args={"sub_centers": 2}, dim=DIM, num_labels=4)
    torch.manual_seed(0)
    theirs = losses.SubCenterArcFaceLoss(num_classes=4, embedding_size=DIM, sub_centers=2)
    assert [tuple(p.shape) for p in ours.parameters()] == [(DIM, 8)]
    x, y = rows(), rows()
    same(ours(x, LABELS), theirs(y, LABELS), x, y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, within the package
@pytest.mark.parametrize("name", sorted(set(known_classes("losses")) - {"HistogramLoss", "RankedListLoss"}))
def test_losses_with_their_defaults_can_be_made_and_called(name: str) -> None:
    loss = PMLLoss(loss=name, dim=DIM, num_labels=4)
    x = rows()
    value = loss(x, LABELS)
    assert value.shape == ()
    assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()


@pytest.mark.parametrize("name", sorted(known_classes("miners")))
@pytest.mark.parametrize("bank", [False, True])
def test_what_a_miner_picks_is_what_the_package_picks(name: str, *, bank: bool) -> None:
    x = torch.nn.functional.normalize(rows().detach())
    reference = torch.nn.functional.normalize(rows(1, 20).detach()) if bank else None
    labels = torch.arange(20) % 4 if bank else None
    torch.manual_seed(0)
    mined = PMLMiner(miner=name)(x, LABELS, reference, labels)
    torch.manual_seed(0)
    theirs = getattr(miners, name)()(x, LABELS, reference, labels)
    found = mined.triplets or (*mined.positive_pairs, *mined.negative_pairs)
    assert len(found) == len(theirs)
    assert all(torch.equal(one, other) for one, other in zip(found, theirs, strict=True))


def test_its_distance_and_arguments_reach_a_miner() -> None:
    x = rows().detach()
    args = {"margin": 0.1, "type_of_triplets": "semihard"}
    mined = PMLMiner(
        miner="TripletMarginMiner", args=args, distance=("LpDistance", {"normalize_embeddings": False})
    )
    theirs = miners.TripletMarginMiner(**args, distance=distances.LpDistance(normalize_embeddings=False))
    expected = theirs(x, LABELS)
    assert all(map(torch.equal, mined(x, LABELS).triplets, expected))
    assert len(PMLMiner(miner="TripletMarginMiner", args=args)(x, LABELS).triplets.anchors) != len(
        expected[0]
    )


def test_our_triplet_loss_with_a_miner_of_the_package_and_a_memory() -> None:
    """Batch-hard mining is the same in both, in the batch and against the bank."""
    plain = ("LpDistance", {"normalize_embeddings": False})
    ours, theirs = (
        MemoryLoss(TripletLoss(miner=miner), size=24, dim=DIM)
        for miner in (HardTriplets(), PMLMiner(miner="BatchHardMiner", distance=plain))
    )
    for seed in range(3):
        x, y = rows(seed), rows(seed)
        same(ours(x, LABELS), theirs(y, LABELS), x, y)


def test_pairs_of_a_miner_make_triplets() -> None:
    loss = TripletLoss(miner=PMLMiner(miner="PairMarginMiner"), margin=0.2)
    x, y = rows(), rows()
    anchors, positives, others, negatives = miners.PairMarginMiner()(y, LABELS)
    gaps = [
        (y[a] - y[p]).norm() - (y[a] - y[n]).norm() + 0.2
        for a, p in zip(anchors, positives, strict=True)
        for b, n in zip(others, negatives, strict=True)
        if a == b
    ]
    same(loss(x, LABELS), torch.stack(gaps).clamp(min=0).mean(), x, y)


def test_what_fails_on_a_batch_is_told_in_one_line() -> None:
    loss = PMLLoss(loss="MarginLoss", args={"learn_beta": True, "num_classes": 2}, dim=DIM, num_labels=4)
    with pytest.raises(UsageError) as caught:
        loss(rows(), LABELS)
    assert caught.value.message.startswith(
        "MarginLoss of pytorch-metric-learning fails on a batch: IndexError: "
    )
    assert caught.value.hint == "look at its arguments"
    for error in (torch.OutOfMemoryError("full"), MemoryError("full")):
        with pytest.raises(type(error)), called(loss.loss):
            raise error


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, within the package
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # the same
@pytest.mark.parametrize("name", sorted(set(known_classes("losses")) - {"RankedListLoss"}))
def test_a_second_step_is_as_good_as_the_first(name: str) -> None:
    loss = PMLLoss(loss=name, dim=DIM, num_labels=4)
    for _ in range(2):
        loss(torch.nn.functional.normalize(rows()), LABELS).backward()


def test_what_cannot_be_named() -> None:
    assert "CrossBatchMemory" not in known_classes("losses")
    assert not any(name.startswith("Base") for kind in ("losses", "miners") for name in known_classes(kind))
    with pytest.raises(ValueError) as caught:
        PMLLoss(loss="os.system", dim=DIM, num_labels=4)
    assert str(caught.value) == "pytorch_metric_learning.losses has no 'os.system' that a spec can name"
    with pytest.raises(ValueError) as caught:
        PMLLoss(loss="NTXentLoss", args={"temprature": 1}, dim=DIM, num_labels=4)
    assert str(caught.value).startswith("NTXentLoss refuses its arguments: ")
    assert "temprature" in str(caught.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    monkeypatch.delitem(sys.modules, "pytorch_metric_learning.losses")
    with pytest.raises(UsageError) as caught:
        PMLLoss(loss="NTXentLoss", dim=DIM, num_labels=4)
    assert str(caught.value) == "'pml' needs pytorch-metric-learning; pip install 'metricli[pml]'"
