"""Every miner keeps one contract: what loops choose, any order, a reference, half types, degenerate rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distribution

import pytest
import torch
from torch import Tensor, nn

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
from metricli.core.mining import Mined, all_triplets

Triple = tuple[object, ...]
Near = list[tuple[float, int]]
"""(distance, row) of the candidates of an anchor, in the order of the rows."""


def distance_of(x: Tensor, y: Tensor, kind: str) -> float:
    if kind == "cosine":
        return 1 - float(x @ y / (x.norm() * y.norm()))
    return float((x - y).norm())


def chosen_hard(near: Near, far: Near) -> list[tuple[int, int]]:
    return [(max(near, key=lambda pair: pair[0])[1], min(far)[1])]


def chosen_semi_hard(near: Near, far: Near) -> list[tuple[int, int]]:
    found = []
    for d, row in near:
        beyond = [pair for pair in far if pair[0] > d]
        found.append((row, min(beyond)[1] if beyond else max(far, key=lambda pair: pair[0])[1]))
    return found


def chosen_of_ranks(near: Near, far: Near) -> list[tuple[int, int]]:
    hardest = sorted(near, reverse=True)[:2]
    return [(p, n) for _, p in hardest for _, n in sorted(far)[1:4]]


def chosen_easy(near: Near, far: Near) -> list[tuple[int, int]]:
    return [(min(near)[1], min(far)[1])]


def chosen_easy_semi_hard(near: Near, far: Near) -> list[tuple[int, int]]:
    beyond = [pair for pair in far if pair[0] > min(near)[0]]
    return [(min(near)[1], min(beyond)[1])] if beyond else []


def chosen_all(near: Near, far: Near) -> list[tuple[int, int]]:
    return [(p, n) for _, p in near for _, n in far]


@dataclass(frozen=True)
class Case:
    """A miner, and what it chooses for one anchor from its positives and its negatives."""

    name: str
    miner: nn.Module
    chosen: Callable[[Near, Near], list[tuple[int, int]]] | None = None
    distance: str = "euclidean"
    random: bool = False


CASES = [
    Case("all_triplets", AllTriplets(), chosen_all),
    Case("hard_triplets", HardTriplets(), chosen_hard),
    Case("hard_triplets cosine", HardTriplets(distance="cosine"), chosen_hard, "cosine"),
    Case("semi_hard", SemiHard(), chosen_semi_hard),
    Case("semi_hard cosine", SemiHard(distance="cosine"), chosen_semi_hard, "cosine"),
    Case("n_hard", NHard(positives=2, negatives=[2, 4]), chosen_of_ranks),
    Case("n_hard cosine", NHard(positives=2, negatives=[2, 4], distance="cosine"), chosen_of_ranks, "cosine"),
    Case("easy_positive", EasyPositive(), chosen_easy_semi_hard),
    Case("easy_positive hard", EasyPositive(negative="hard", distance="cosine"), chosen_easy, "cosine"),
    Case("hard_cluster", HardCluster()),
    Case("hard_cluster cosine", HardCluster(distance="cosine"), None, "cosine"),
    Case("distance_weighted", DistanceWeighted(nonzero_loss_cutoff=2.0), random=True),
]
every_miner = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
LABELS = [0, 3, 0, 1, 2, 1, 0, 2, 2, 1, 0, 2, 4, 1]


def naive(
    case: Case, x: Tensor, labels: list[int], others: Tensor, of_others: list[int], alone: bool
) -> set[Triple]:
    """The triplets by loops over anchors and candidates."""
    if case.name.startswith("hard_cluster"):
        return naive_clusters(case, x, labels, others, of_others, alone)
    assert case.chosen is not None
    found: set[Triple] = set()
    for a in range(len(x)):
        near: Near = []
        far: Near = []
        for o in range(len(others)):
            if not (alone and o == a):
                side = near if labels[a] == of_others[o] else far
                side.append((distance_of(x[a], others[o], case.distance), o))
        if near and far:
            found |= {(a, p, n) for p, n in case.chosen(near, far)}
    return found


def naive_clusters(
    case: Case, x: Tensor, labels: list[int], others: Tensor, of_others: list[int], alone: bool
) -> set[Triple]:
    found: set[Triple] = set()
    for label in set(labels):
        own = [i for i, of in enumerate(labels) if of == label]
        rows = [i for i, of in enumerate(of_others) if of == label]
        strangers = set(of_others) - {label}
        if len(own) < (2 if alone else 1) or not rows or not strangers:
            continue
        mean = x[own].mean(0)
        far = max(rows, key=lambda i: distance_of(mean, others[i], case.distance))
        means = {s: others[[i for i, of in enumerate(of_others) if of == s]].mean(0) for s in strangers}
        near = min(sorted(strangers), key=lambda s: distance_of(mean, means[s], case.distance))
        found.add((label, far, near))
    return found


def mined(case: Case, *given: Tensor) -> set[Triple]:
    """The triplets of a call, none twice; those of clusters by label in place of the group."""
    outcome: Mined = case.miner(*given)
    if outcome.everything:
        outcome = all_triplets(given[1], *given[3:])
    if outcome.clusters is not None:
        names = dict(zip(outcome.clusters.groups.tolist(), given[1].tolist(), strict=True))
        names |= dict(zip(outcome.clusters.reference_groups.tolist(), given[-1].tolist(), strict=True))
        anchors, positives, negatives = (index.tolist() for index in outcome.clusters[2:])
        listed = [(names[a], p, names[n]) for a, p, n in zip(anchors, positives, negatives, strict=True)]
    else:
        assert outcome.triplets is not None
        assert all(index.dtype == torch.int64 for index in outcome.triplets)
        listed = list(zip(*(index.tolist() for index in outcome.triplets), strict=True))
        if not case.random:
            assert listed == sorted(listed, key=lambda triple: triple[0]), "anchors are not in order"
    found: set[Triple] = set(listed)
    assert case.random or len(found) == len(listed), "a triplet comes twice"
    return found


def batch(labels: list[int], seed: int = 0, dim: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(labels), dim, generator=generator, dtype=torch.float64), torch.tensor(labels)


def test_every_miner_has_a_case() -> None:
    installed = {
        entry.name for entry in distribution("metricli").entry_points if entry.group == "metricli.miners"
    }
    assert installed - {"pml"} == {case.name.split(" ")[0] for case in CASES}


@every_miner
@pytest.mark.parametrize("seed", range(4))
def test_what_is_chosen_is_what_loops_choose(case: Case, seed: int) -> None:
    if case.random:
        pytest.skip("random; see test_miners.py")
    x, labels = batch(LABELS, seed)
    expected = naive(case, x, LABELS, x, LABELS, alone=True)
    assert expected
    assert mined(case, x, labels) == expected
    bank_labels = [0, 1, 1, 2, 5, 0, 3, 2]
    bank, of_bank = batch(bank_labels, seed + 10)
    assert mined(case, x, labels, bank, of_bank) == naive(case, x, LABELS, bank, bank_labels, alone=False)


@every_miner
def test_the_order_of_the_batch_changes_nothing(case: Case) -> None:
    if case.random:
        pytest.skip("random")
    x, labels = batch(LABELS)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    place = order.tolist()
    moved = mined(case, x[order], labels[order])
    if case.name.startswith("hard_cluster"):
        assert {(a, place[p], n) for a, p, n in moved} == mined(case, x, labels)  # type: ignore[index]
    else:
        assert {tuple(place[i] for i in triple) for triple in moved} == mined(case, x, labels)  # type: ignore[index]


@every_miner
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_choose_what_float32_chooses(case: Case, dtype: torch.dtype) -> None:
    x, labels = batch(LABELS, dim=32)
    halves = (50 * x).to(dtype)
    torch.manual_seed(0)
    expected = mined(case, halves.float(), labels)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mined(case, halves, labels) == expected
    assert expected
    torch.manual_seed(0)
    assert mined(case, halves, labels, halves.float(), labels)


@every_miner
@pytest.mark.parametrize("labels", [[7, 7, 7, 7], [0, 1, 2, 3], [5], []])
def test_without_a_positive_or_a_negative_there_is_no_triplet(case: Case, labels: list[int]) -> None:
    x, of_x = batch(labels)
    of_x = of_x.long()
    assert mined(case, x, of_x) == set()
    nothing = torch.empty(0, 5, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    assert mined(case, x, of_x, *nothing) == set()


ROWS = {
    "equal": torch.ones(8, 4),
    "zero": torch.zeros(8, 4),
    "opposite": torch.ones(8, 4) * torch.tensor([1.0, -1] * 4)[:, None],
    "far": torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) * 1e18,
}


@every_miner
@pytest.mark.parametrize("what", ROWS)
def test_degenerate_rows_give_triplets_that_are_triplets(case: Case, what: str) -> None:
    x, labels = ROWS[what].clone().requires_grad_(), torch.arange(8) // 2
    for _ in range(3):
        for a, p, n in mined(case, x, labels):
            if case.name.startswith("hard_cluster"):
                assert labels[p] == a != n
            else:
                assert a != p
                assert labels[a] == labels[p] != labels[n]
    if what == "far":
        return
    loss = TripletLoss(miner=case.miner)(x, labels)
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@every_miner
def test_there_is_no_gradient_and_arguments_are_checked(case: Case) -> None:
    x, labels = batch(LABELS)
    x.requires_grad_()
    outcome = case.miner(x, labels)
    for form in (outcome.triplets, outcome.clusters):
        assert form is None or not any(index.requires_grad for index in form)
    assert not list(case.miner.parameters())
    with pytest.raises(
        ValueError, match=r"^reference and reference_labels come together, got only one of them$"
    ):
        case.miner(x, labels, x)
