"""The numbers behind pictures, against loops and numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from metricli.core.distances import Distance
from metricli.core.exclusion import NOTHING, Exclusion
from metricli.core.pictures import Side, distance_counts, draw, principal_map, times_found


def sides(queries: int, gallery: int, labels: int, dim: int = 5) -> tuple[Side, Side]:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(queries + gallery, dim, generator=generator)
    words = torch.randint(labels, (queries + gallery,), generator=generator)
    first, second = torch.arange(queries), torch.arange(queries, queries + gallery)
    return Side(rows, first, words[:queries]), Side(rows, second, words[queries:])


def apart(x: Tensor, y: Tensor, distance: Distance) -> float:
    a, b = x.double().numpy(), y.double().numpy()
    if distance == "euclidean":
        return float(math.sqrt(((a - b) ** 2).sum()))
    return float(1 - (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("wide", [(), (0,), (1,)], ids=["float32", "wide queries", "wide gallery"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_counts_of_all_pairs_are_those_of_a_loop(distance: Distance, wide: tuple[int, ...]) -> None:
    both = list(sides(13, 17, 4))
    for place in wide:  # features of a file may be float64
        both[place] = replace(both[place], source=both[place].source.double())
    queries, gallery = both
    ids = torch.arange(13), torch.arange(17) + 5  # gallery row i is query i + 5
    sequences = torch.arange(13) % 6 - 1, torch.arange(17) % 5
    found = distance_counts(queries, gallery, exclude=Exclusion(*ids, *sequences), distance=distance, bins=7)
    kinds: tuple[list[float], list[float]] = ([], [])
    for q in range(13):
        for g in range(17):
            if q == g + 5 or (q % 6 - 1 == g % 5 and q % 6 > 0):
                continue
            kind = kinds[0] if queries.labels[q] == gallery.labels[g] else kinds[1]
            kind.append(apart(queries.source[q], gallery.source[13 + g], distance))
    assert found.is_exact
    edges = found.edges.numpy()
    assert edges[0] == pytest.approx(min(map(min, kinds)), abs=1e-6)
    assert edges[-1] == pytest.approx(max(map(max, kinds)), abs=1e-6)
    bins = np.array([edges[0] - 1e-5, *edges[1:-1], edges[-1] + 1e-5])
    for counts, values in ((found.genuine, kinds[0]), (found.impostor, kinds[1])):
        assert counts.tolist() == np.histogram(values, bins)[0].tolist()
        assert int(counts.sum()) == len(values)


def test_a_sample_has_the_shape_of_all_pairs_and_leaves_out_what_is_excluded() -> None:
    queries, gallery = sides(60, 80, 3)
    gallery = Side(
        queries.source,
        torch.cat([queries.places, gallery.places[20:]]),
        torch.cat([queries.labels, gallery.labels[20:]]),
    )
    exclude = Exclusion(torch.arange(60), torch.arange(120))  # the first 60 are the queries themselves
    every = distance_counts(queries, gallery, exclude=exclude, distance="cosine", bins=8)
    some = distance_counts(
        queries, gallery, exclude=exclude, distance="cosine", bins=8, all_pairs=100, sample=40_000
    )
    assert (every.is_exact, some.is_exact) == (True, False)
    assert some.edges[0] > 1e-3  # no query with itself
    assert every.edges == pytest.approx(some.edges, abs=1e-5)
    for kind in ("genuine", "impostor"):
        a, b = (getattr(each, kind).double() / getattr(each, kind).sum() for each in (every, some))
        assert (a - b).abs().max() < 0.012  # some five standard errors
    assert some.genuine.sum() > 39_000 * 0.97


def test_no_pair_of_one_label_is_no_error() -> None:
    rows = torch.eye(4)
    lone = (
        Side(rows, torch.arange(2), torch.tensor([0, 1])),
        Side(rows, torch.arange(2, 4), torch.tensor([2, 3])),
    )
    for most in (1_000, 0):
        found = distance_counts(*lone, exclude=NOTHING, distance="cosine", all_pairs=most, sample=50)
        assert found.genuine.sum() == 0
        assert found.impostor.sum() == (4 if most else 50)


@pytest.mark.parametrize("shape", [(30, 6), (6, 30)])
def test_the_map_is_that_of_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 0] *= 9
    rows[:, 1] *= 4
    found = principal_map(rows, 3)
    left, values, _ = np.linalg.svd(rows.numpy() - rows.numpy().mean(0), full_matrices=False)
    assert np.abs(found.scores.numpy()) == pytest.approx(np.abs(left[:, :3] * values[:3]), abs=1e-4)
    assert found.shares.numpy() == pytest.approx(values[:3] ** 2 / (values**2).sum())
    assert (found.scores.pow(3).sum(0) >= 0).all()


def test_equal_rows_have_a_map_without_variance() -> None:
    found = principal_map(torch.ones(5, 3), 2)
    assert found.scores.abs().max() == 0
    assert found.shares.tolist() == [0, 0]


def test_times_found_are_counted_as_by_a_loop() -> None:
    indices = torch.tensor([[0, 2, -1], [2, 1, 0], [2, -1, -1]])
    relevant = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    times, wrong = times_found(indices, 4, relevant)
    assert times.tolist() == [2, 1, 3, 0]
    assert wrong.tolist() == [1, 0, 2, 0]


def test_a_draw_is_of_different_places_and_the_same_each_time() -> None:
    assert draw(5, 9).tolist() == [0, 1, 2, 3, 4]
    some = draw(1000, 50)
    assert len(set(some.tolist())) == 50
    assert some.tolist() == sorted(some.tolist()) == draw(1000, 50).tolist()
    assert 300 < some.double().mean() < 700


def test_pairs_are_drawn_of_one_label_and_of_two() -> None:
    words = torch.arange(40) % 7
    rows = torch.eye(7)[words]  # genuine pairs are at distance 0, impostor pairs at 1
    sides = Side(rows, torch.arange(15), words[:15]), Side(rows, torch.arange(15, 40), words[15:])
    found = distance_counts(*sides, exclude=NOTHING, distance="cosine", bins=2, all_pairs=0, sample=500)
    assert found.genuine.tolist() == [500, 0]
    assert found.impostor[0] == 0
    assert 350 < found.impostor[1] < 500
