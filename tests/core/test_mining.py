from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metricli.core.mining import (
    Mined,
    Pairs,
    Triplets,
    all_triplets,
    hard_triplets,
    label_masks,
    triplets_of_pairs,
)


def listed(mined: Mined) -> list[tuple[int, ...]]:
    assert mined.triplets is not None
    return list(zip(*(index.tolist() for index in mined.triplets), strict=True))


def distance_between(x: Tensor, y: Tensor, distance: str) -> float:
    if distance == "euclidean":
        return float((x - y).norm())
    return float(1 - (x @ y) / (x.norm() * y.norm()))


def naive_hard(
    x: Tensor, labels: Tensor, reference: Tensor | None, reference_labels: Tensor | None, distance: str
):
    others, of_others = (x, labels) if reference is None else (reference, reference_labels)
    assert of_others is not None
    found = []
    for a in range(len(x)):
        far, near = (-1.0, -1), (float("inf"), -1)
        for o in range(len(others)):
            if reference is None and o == a:
                continue
            d = distance_between(x[a], others[o], distance)
            if labels[a] == of_others[o] and d > far[0]:
                far = (d, o)
            elif labels[a] != of_others[o] and d < near[0]:
                near = (d, o)
        if far[1] >= 0 and near[1] >= 0:
            found.append((a, far[1], near[1]))
    return found


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_hard_triplets_are_those_of_a_triple_loop(distance: str, with_reference: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x, labels = torch.randn(14, 5, dtype=torch.float64), torch.randint(0, 5, (14,))
    reference = torch.randn(20, 5, dtype=torch.float64) if with_reference else None
    of_reference = torch.randint(0, 6, (20,)) if with_reference else None
    expected = naive_hard(x, labels, reference, of_reference, distance)
    assert listed(hard_triplets(x, labels, reference, of_reference, distance)) == expected  # type: ignore[arg-type]


def test_hard_triplets_by_hand() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [4.0], [9.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert listed(hard_triplets(x, labels)) == [(0, 2, 3), (1, 2, 3), (2, 0, 3), (3, 4, 2), (4, 3, 2)]


def test_hard_triplets_take_the_first_of_equals() -> None:
    x = torch.tensor([[0.0], [2.0], [-2.0], [1.0], [-1.0]])
    assert listed(hard_triplets(x, torch.tensor([0, 0, 0, 1, 2])))[0] == (0, 1, 3)
    assert listed(hard_triplets(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]))) == [
        (0, 1, 2),
        (1, 0, 2),
        (2, 3, 0),
        (3, 2, 0),
    ]


def test_hard_triplets_leave_out_anchors_without_positive_or_negative() -> None:
    x = torch.randn(4, 2)
    assert [anchor for anchor, _, _ in listed(hard_triplets(x, torch.tensor([3, 8, 3, 9])))] == [0, 2]
    assert listed(hard_triplets(x, torch.tensor([7, 7, 7, 7]))) == []
    assert listed(hard_triplets(x, torch.arange(4))) == []
    assert listed(hard_triplets(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))) == []
    empty = torch.empty(0, 2), torch.empty(0, dtype=torch.int64)
    assert listed(hard_triplets(x, torch.arange(4), *empty)) == []


def test_a_reference_is_not_the_batch_so_equal_positions_are_positives() -> None:
    x, labels = torch.eye(2), torch.tensor([0, 1])
    assert listed(hard_triplets(x, labels, x.clone(), labels)) == [(0, 0, 1), (1, 1, 0)]


def test_hard_triplets_have_no_gradient_and_see_small_differences_far_from_the_origin() -> None:
    x = (torch.tensor([[0.0], [0.01], [0.03], [0.04]]) + 100).expand(4, 64).clone().requires_grad_()
    assert listed(hard_triplets(x, torch.tensor([0, 0, 1, 1]))) == [
        (0, 1, 2),
        (1, 0, 2),
        (2, 3, 1),
        (3, 2, 1),
    ]
    assert x.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hard_triplets_of_half_types_are_those_of_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, labels = (100 * torch.randn(24, 64)).to(dtype), torch.arange(8).repeat(3)
    expected = listed(hard_triplets(x.float(), labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert listed(hard_triplets(x, labels)) == expected
    assert listed(hard_triplets(x, labels, x.float(), labels)) == listed(
        hard_triplets(x.float(), labels, x.float(), labels)
    )


@pytest.mark.parametrize("with_reference", [False, True])
def test_all_triplets_are_those_of_a_triple_loop(with_reference: bool) -> None:
    labels = torch.tensor([2, 0, 2, 1, 0, 2])
    others = torch.tensor([0, 2, 2, 5]) if with_reference else labels
    expected = [
        (a, p, n)
        for a in range(6)
        for p in range(len(others))
        for n in range(len(others))
        if labels[a] == others[p] and labels[a] != others[n] and (with_reference or a != p)
    ]
    assert listed(all_triplets(labels, others if with_reference else None)) == expected


def test_masks_exclude_self_by_index_only_without_a_reference() -> None:
    labels = torch.tensor([0, 0, 1])
    positives, negatives = label_masks(labels)
    assert positives.int().tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert negatives.int().tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert label_masks(labels, labels)[0].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_triplets_of_pairs_join_on_the_anchor() -> None:
    positive = Pairs(torch.tensor([4, 1, 4, 0]), torch.tensor([5, 6, 7, 8]))
    negative = Pairs(torch.tensor([2, 4, 1, 4]), torch.tensor([0, 1, 2, 3]))
    triplets = triplets_of_pairs(positive, negative)
    assert listed(Mined(triplets=triplets)) == [(4, 5, 1), (4, 5, 3), (1, 6, 2), (4, 7, 1), (4, 7, 3)]


def test_pairs_of_all_triplets_give_all_triplets() -> None:
    labels = torch.tensor([2, 0, 2, 1, 0, 2])
    pairs = [Pairs(*mask.nonzero(as_tuple=True)) for mask in label_masks(labels)]
    assert listed(Mined(triplets=triplets_of_pairs(*pairs))) == listed(all_triplets(labels))


def test_mined_has_one_form() -> None:
    index, pairs = torch.arange(3), Pairs(torch.arange(2), torch.arange(2))
    with pytest.raises(
        ValueError, match=r"^expected triplets, pairs, clusters or everything=True, exactly one, got 0 of"
    ):
        Mined()
    with pytest.raises(ValueError, match="got 2 of them"):
        Mined(everything=True, triplets=Triplets(index, index, index))
    with pytest.raises(
        ValueError, match=r"^positive_pairs and negative_pairs come together, one of them may be empty$"
    ):
        Mined(positive_pairs=pairs)
    with pytest.raises(
        ValueError, match=r"^index tensors must share one shape \(T,\), got \(3,\), \(3,\), \(2,\)$"
    ):
        Mined(triplets=Triplets(index, index, index[:2]))


def test_shapes_that_do_not_fit_are_named() -> None:
    x, labels = torch.randn(4, 3), torch.arange(4)
    for arguments, message in [
        ((x, labels[:3]), "labels must be of shape (4,), one a row of embeddings, got (3,)"),
        ((x[0], labels), "embeddings must be a float tensor (rows, dim), got torch.float32 (3,)"),
        ((x.long(), labels), "embeddings must be a float tensor (rows, dim), got torch.int64 (4, 3)"),
        ((x, labels, x), "reference and reference_labels come together, got only one of them"),
        ((x, labels, x[:, :2], labels), "reference must have embeddings' 3 columns, got 2"),
        (
            (x, labels, x, labels[:1]),
            "reference_labels must be of shape (4,), one a row of reference, got (1,)",
        ),
    ]:
        with pytest.raises(ValueError) as caught:
            hard_triplets(*arguments)
        assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"^distance must be 'euclidean' or 'cosine', got 'cos'$"):
        hard_triplets(x, labels, distance="cos")  # type: ignore[arg-type]
