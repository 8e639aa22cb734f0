from __future__ import annotations

import itertools
import math

import pytest
import torch

from metricli.core.collapse import mean_pair_distances, spread


def test_spread_by_hand() -> None:
    # the mean is (2, 0); both are 1 from it; their squared norms are 1 and 9
    assert spread(torch.tensor([[1.0, 0.0], [3.0, 0.0]])) == pytest.approx(math.sqrt(2 / 10))
    assert spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == 1
    assert math.isnan(spread(torch.zeros(0, 3)))


@pytest.mark.parametrize("row", [[0.1, 0.2, 0.3], [0.0, 0.0, 0.0], [1e30, 1.0, -1e-30]])
def test_equal_rows_have_no_spread(row: list[float]) -> None:
    assert spread(torch.tensor([row] * 7)) == 0


def test_spread_does_not_depend_on_the_scale_and_is_that_of_the_cosines() -> None:
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(1)).double()
    assert spread(1e-20 * rows) == pytest.approx(spread(rows), rel=1e-12)
    unit = torch.nn.functional.normalize(rows + 5, dim=1)
    cosines = [float(unit[i] @ unit[j]) for i, j in itertools.product(range(9), repeat=2)]
    assert spread(unit) ** 2 == pytest.approx(1 - sum(cosines) / 81, rel=1e-9)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_mean_pair_distances_are_those_of_loops(distance: str) -> None:
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(2)) + 3
    labels = [0, 1, 0, 2, 1, 0, 3, 2]
    own: list[float] = []
    other: list[float] = []
    for i, j in itertools.combinations(range(8), 2):
        x, y = rows[i].double(), rows[j].double()
        apart = 1 - x @ y / (x.norm() * y.norm()) if distance == "cosine" else (x - y).norm()
        (own if labels[i] == labels[j] else other).append(float(apart))
    expected = (sum(own) / len(own), sum(other) / len(other))
    found = mean_pair_distances(rows, torch.tensor(labels), distance)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, rel=1e-6)


def test_without_a_pair_there_is_no_mean() -> None:
    rows = torch.eye(3)
    positive, negative = mean_pair_distances(rows, torch.tensor([0, 1, 2]), "euclidean")
    assert math.isnan(positive)
    assert negative == pytest.approx(math.sqrt(2))
    positive, negative = mean_pair_distances(rows, torch.tensor([4, 4, 4]), "euclidean")
    assert math.isnan(negative)
    assert positive == pytest.approx(math.sqrt(2))
