"""`search` and `count_relevant` against double loops written from the definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metricli.core.exclusion import Exclusion
from metricli.core.ranking import exact_smallest, first_equal_rows
from metricli.core.retrieval import count_relevant, search
from metricli.core.settle import Settler

TINY = 0.001


def naive_distance(x: list[float], y: list[float], distance: str) -> float:
    if distance == "euclidean":
        return math.dist(x, y)
    sizes = math.hypot(*x) * math.hypot(*y)
    return 1 - math.fsum(a * b for a, b in zip(x, y, strict=True)) / sizes if sizes else 1.0


def naive_allowed(i, j, ids, sequences) -> bool:
    if ids and ids[0][i] == ids[1][j]:
        return False
    return not (sequences and sequences[0][i] >= 0 and sequences[0][i] == sequences[1][j])


def naive_search(queries: Tensor, gallery: Tensor, k, distance, ids=None, sequences=None):
    """Pairs (distance, row) for each query; distances rounded so that equal ones are equal."""
    found = []
    for i, query in enumerate(queries.tolist()):
        ranked = sorted(
            (round(naive_distance(query, item, distance), 12), j)
            for j, item in enumerate(gallery.tolist())
            if naive_allowed(i, j, ids, sequences)
        )
        found.append((ranked[:k] + [(math.inf, -1)] * k)[:k])
    return found


def assert_same(result, expected) -> None:
    assert result.indices.tolist() == [[j for _, j in row] for row in expected]
    distances = torch.tensor([[d for d, _ in row] for row in expected], dtype=result.distances.dtype)
    torch.testing.assert_close(result.distances, distances.view_as(result.distances), rtol=1e-5, atol=1e-6)


@st.composite
def problems(draw):
    """Small integer embeddings (so ties are exact and many), with ids and sequences."""
    num, size, dim = draw(st.integers(1, 7)), draw(st.integers(1, 25)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    ids = (integers(0, 12, num), integers(0, 12, size)) if draw(st.booleans()) else None
    sequences = (integers(-1, 3, num), integers(-1, 3, size)) if draw(st.booleans()) else None
    queries, gallery = integers(-2, 3, num, dim).float(), integers(-2, 3, size, dim).float()
    return queries, gallery, ids, sequences


def rules(ids, sequences) -> Exclusion:
    return Exclusion(*(ids or (None, None)), *(sequences or (None, None)))


def lists(pair):
    return [codes.tolist() for codes in pair] if pair else None


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 30), st.sampled_from(["cosine", "euclidean"]))
def test_search_is_the_double_loop(problem, k, distance):
    queries, gallery, ids, sequences = problem
    expected = naive_search(queries, gallery, k, distance, lists(ids), lists(sequences))
    for budget in (64, TINY):
        result = search(
            queries, gallery, k=k, distance=distance, budget_mb=budget, exclude=rules(ids, sequences)
        )
        assert_same(result, expected)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 2**20))
def test_count_relevant_is_the_double_loop(problem, seed):
    queries, gallery, ids, sequences = problem
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (len(queries),), generator=generator)
    others = torch.randint(0, 3, (len(gallery),), generator=generator)
    expected = [
        sum(
            labels[i] == others[j] and naive_allowed(i, j, lists(ids), lists(sequences))
            for j in range(len(gallery))
        )
        for i in range(len(queries))
    ]
    assert count_relevant(labels, others, rules(ids, sequences)).tolist() == expected


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("data", ["spread", "clustered", "collapsed", "tied", "constant", "zeros", "offset"])
def test_the_result_is_the_same_to_the_bit_for_every_budget(distance, data):
    generator = torch.Generator().manual_seed(1)
    queries, gallery = (torch.randn(n, 24, generator=generator) for n in (11, 160))
    if data == "clustered":
        gallery[50:] = gallery[torch.randint(0, 50, (110,), generator=generator)]
    if data == "collapsed":
        queries, gallery = 1 + 1e-6 * queries, 1 + 1e-6 * gallery
    if data == "tied":
        queries, gallery = queries.sign(), gallery.sign()
    if data == "constant":
        queries, gallery = torch.full_like(queries, 0.3), torch.full_like(gallery, 0.3)
    if data == "zeros":
        queries[::3] = 0
        gallery[::2] = 0
    if data == "offset":
        queries, gallery = queries + 1000, gallery + 1000
    one = search(queries, gallery, k=20, distance=distance)
    for budget in (2 * TINY, 0.02, 0.2):
        other = search(queries, gallery, k=20, distance=distance, budget_mb=budget)
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.distances, other.distances)
    direct = torch.cdist(*_prepared(queries, gallery, distance), compute_mode="donot_use_mm_for_euclid_dist")
    if distance == "cosine":
        undirected = (queries.norm(dim=1) == 0)[:, None] | (gallery.norm(dim=1) == 0)
        direct = torch.where(undirected, 1.0, direct.square() / 2)
    values, columns = direct.float().sort(dim=1, stable=True)
    torch.testing.assert_close(one.distances, values[:, :20], rtol=1e-6, atol=1e-14)
    if data != "constant" or distance == "euclidean":
        assert torch.equal(one.indices, columns[:, :20])


def _prepared(queries: Tensor, gallery: Tensor, distance: str) -> list[Tensor]:
    sides = [queries.double(), gallery.double()]
    if distance == "cosine":
        sides = [x / x.norm(dim=1, keepdim=True).clamp_min(1e-30) for x in sides]
    return sides


def test_equal_embeddings_are_at_distance_zero_and_tie_by_gallery_row():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(5, 33, generator=generator) * 7 + 40
    gallery = base.repeat(40, 1)
    for distance in ("cosine", "euclidean"):
        result = search(base, gallery, k=40, distance=distance)
        assert result.distances.eq(0).all()
        assert result.indices.tolist() == [list(range(row, 200, 5)) for row in range(5)]


def test_scaled_copies_tie_in_cosine():
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(-9, 10, (1, 20), generator=generator).float()
    gallery = base * torch.tensor([3.0, 1.0, 7.0, 11.0, 0.5])[:, None]
    assert search(base, gallery, k=5).indices.tolist() == [[0, 1, 2, 3, 4]]
    assert search(torch.ones(1, 20), gallery, k=5).indices.tolist() == [[0, 1, 2, 3, 4]]


def test_a_query_is_excluded_by_its_id_wherever_the_gallery_has_it():
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(50, 8, generator=generator)
    items[10] = items[3]  # a duplicate outranks the item itself: dropping the first would drop it
    ids = torch.arange(50)
    shuffled = torch.randperm(50, generator=generator)
    plain = search(items, items, k=49, exclude=Exclusion(ids, ids))
    moved = search(items, items[shuffled], k=49, exclude=Exclusion(ids, ids[shuffled]))
    assert (plain.indices != ids[:, None]).all()
    assert plain.indices[10, 0] == 3
    assert plain.indices[3, 0] == 10
    content = torch.where(ids == 10, 3, ids)  # the duplicates tie: either may come first
    assert torch.equal(plain.distances, moved.distances)
    assert torch.equal(content[shuffled][moved.indices], content[plain.indices])


def test_an_empty_sequence_hides_nothing():
    items = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    sequences = torch.tensor([-1, -1, 5, 5])
    rule = Exclusion(torch.arange(4), torch.arange(4), sequences, sequences)
    result = search(items, items, k=4, distance="euclidean", exclude=rule)
    assert result.indices.tolist() == [[1, 2, 3, -1], [0, 2, 3, -1], [1, 0, -1, -1], [1, 0, -1, -1]]
    assert result.distances[2].tolist() == [1.0, 2.0, math.inf, math.inf]
    assert count_relevant(torch.zeros(4), torch.zeros(4), rule).tolist() == [3, 3, 2, 2]


def test_one_sequence_for_all_leaves_nothing():
    items = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    same = torch.zeros(90, dtype=torch.int64)
    result = search(items, items, k=2, exclude=Exclusion(query_sequences=same, gallery_sequences=same))
    assert result.indices.eq(-1).all()
    assert result.distances.isinf().all()


@pytest.mark.parametrize("num", [0, 3])
@pytest.mark.parametrize("size", [0, 2])
def test_empty_sides_and_k_above_the_gallery(num, size):
    result = search(torch.ones(num, 4), torch.ones(size, 4), k=5)
    assert result.indices.tolist() == [([0, 1] if size else [-1, -1]) + [-1, -1, -1]] * num
    assert result.indices.dtype == torch.int64
    assert result.distances.shape == (num, 5)
    labels = torch.zeros(num, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
    assert count_relevant(*labels).tolist() == [size] * num


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_types(dtype, distance):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(n, 16, generator=generator).to(dtype) for n in (9, 60))
    result = search(queries, gallery, k=7, distance=distance, budget_mb=0.01)
    assert result.distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_same(result, naive_search(queries.double(), gallery.double(), 7, distance))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_magnitudes_whose_squares_leave_float32(size, distance):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(n, 16, generator=generator) for n in (9, 200))
    expected = search(queries.double(), gallery.double(), k=7, distance=distance)
    result = search(queries * size, gallery * size, k=7, distance=distance)
    assert torch.equal(result.indices, expected.indices)


def test_spread_embeddings_never_need_the_second_look(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(n, 32, generator=generator) for n in (50, 2000))
    monkeypatch.setattr(Settler, "_resolve", None)
    assert search(queries, gallery, k=10).indices.min() >= 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_embeddings_that_are_not_finite_are_refused(value):
    good, bad = torch.ones(4, 3), torch.ones(4, 3)
    bad[2, 1] = value
    with pytest.raises(ValueError) as raised:
        search(good, bad, k=1)
    assert str(raised.value) == (
        "gallery must be finite: row 2 holds NaN, infinity or values too large to be squared "
        "(1 such rows of 4)"
    )
    with pytest.raises(ValueError, match="queries must be finite: row 2"):
        search(bad, good, k=1)


WRONG = [
    ({"k": 0}, "k must be at least 1, got 0"),
    ({"distance": "dot"}, "distance must be 'euclidean' or 'cosine', got 'dot'"),
    ({"budget_mb": 0}, "budget_mb must be positive, got 0"),
    (
        {"gallery": torch.ones(2, 4)},
        "queries and gallery must have shapes (Q, D) and (G, D), got (2, 3) and (2, 4)",
    ),
    (
        {"gallery": torch.ones(2, 3).double()},
        "queries and gallery must have one floating type, got torch.float32 and torch.float64",
    ),
    ({"exclude": Exclusion(torch.arange(2))}, "query_ids and gallery_ids must be given together"),
    (
        {"exclude": Exclusion(query_sequences=torch.arange(2), gallery_sequences=torch.arange(3))},
        "gallery_sequences must have shape (2,), got (3,)",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_arguments(changes, message):
    arguments = {"queries": torch.ones(2, 3), "gallery": torch.ones(2, 3), "k": 1} | changes
    with pytest.raises(ValueError) as raised:
        search(arguments.pop("queries"), arguments.pop("gallery"), **arguments)
    assert str(raised.value) == message


def test_progress_adds_up_to_the_queries():
    done: list[int] = []
    search(torch.ones(30, 4), torch.ones(20, 4), k=3, budget_mb=TINY, on_progress=done.append)
    assert sum(done) == 30
    assert len(done) > 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**20), st.data())
def test_exact_smallest_is_a_stable_sort(num, width, seed, data):
    values = torch.randint(0, 4, (num, width), generator=torch.Generator().manual_seed(seed)).float()
    values[values == 3] = torch.inf
    k = data.draw(st.integers(1, width))
    expected = values.sort(dim=1, stable=True)
    found = exact_smallest(values, k)
    assert torch.equal(found[0], expected.values[:, :k])
    assert torch.equal(found[1], expected.indices[:, :k])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_first_equal_rows(dtype):
    x = torch.tensor([[1.0, 2], [3, 4], [1, 2], [2, 1], [3, 4]], dtype=dtype)
    first, place = first_equal_rows(x, chunk=2)
    assert first.tolist() == [0, 1, 3]
    assert place.tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("scale", [1e-18, 1e16])
def test_embeddings_of_any_scale_are_left_as_they_are(scale: float) -> None:
    """Their norms are out of the range in which they are scaled in their own type."""
    rows = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scaled, before = rows * scale, rows * scale
    found = search(scaled[:10], scaled[10:], k=3, budget_mb=0.001)
    assert torch.equal(scaled, before)
    assert torch.equal(found.indices, search(rows[:10], rows[10:], k=3).indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_budget_too_small_for_a_row_takes_rows_one_by_one(dtype: torch.dtype) -> None:
    rows = torch.randn(30, 1024, generator=torch.Generator().manual_seed(0)).to(dtype)
    small, large = (search(rows[:10], rows[10:], k=2, budget_mb=budget) for budget in (0.02, 64))
    assert torch.equal(small.indices, large.indices)
    assert torch.equal(small.distances, large.distances)
