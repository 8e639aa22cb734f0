from __future__ import annotations

import pytest
import torch

from metricli.components.miners import AllTriplets, HardTriplets
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
