"""`survey`: ranks against a double loop, histograms against all distances, turned blocks against plain."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from metricli.core import relevant
from metricli.core.exclusion import Exclusion
from metricli.core.ranking import Space
from metricli.core.retrieval import count_relevant, search, survey
from metricli.core.scan import Plan

TINY = 0.001


def allowed_pairs(num: int, size: int, exclude: Exclusion) -> Tensor:
    """(num, size) bool, from the words of `Exclusion`."""
    allowed = torch.ones(num, size, dtype=torch.bool)
    for i in range(num):
        for j in range(size):
            if exclude.query_ids is not None and exclude.query_ids[i] == exclude.gallery_ids[j]:
                allowed[i, j] = False
            if exclude.query_sequences is not None:
                sequence = exclude.query_sequences[i]
                if sequence >= 0 and sequence == exclude.gallery_sequences[j]:
                    allowed[i, j] = False
            if exclude.query_groups is not None and exclude.query_groups[i] != exclude.gallery_groups[j]:
                allowed[i, j] = False
    return allowed


def direct(queries: Tensor, gallery: Tensor, distance: str) -> Tensor:
    """All distances by direct differences, rounded as results are."""
    x, y = queries.double(), gallery.double()
    wide = (x[:, None] - y).square().sum(2).sqrt()
    if distance == "cosine":
        sizes = x.norm(dim=1)[:, None] * y.norm(dim=1)
        wide = torch.where(sizes > 0, 1 - (x @ y.T) / sizes.clamp_min(1e-300), 1.0)
    return wide.to(torch.promote_types(queries.dtype, torch.float32))


def naive_rankings(distances: Tensor, allowed: Tensor) -> list[list[int]]:
    rankings = []
    for i in range(len(distances)):
        columns = [j for j in range(distances.shape[1]) if allowed[i, j]]
        rankings.append(sorted(columns, key=lambda j: (round(float(distances[i, j]), 6), j)))
    return rankings


def naive_ranks(rankings, query_labels: Tensor, gallery_labels: Tensor) -> tuple[list[int], list[int]]:
    first, last = [], []
    for i, ranking in enumerate(rankings):
        places = [at + 1 for at, j in enumerate(ranking) if gallery_labels[j] == query_labels[i]]
        first.append(min(places, default=0))
        last.append(max(places, default=0))
    return first, last


def assert_counts_below_every_edge(pairs, distances, allowed, labels, groups, num_groups, scale):
    """Pairs below each edge, by group (all in one row if None), but for edges that a pair is too near to."""
    same = labels[0][:, None] == labels[1]
    compared = 0
    for at, edge in enumerate(pairs.edges.tolist()):
        if bool(((distances.square() - edge**2).abs() < 1e-5 * scale**2)[allowed].any()):
            continue
        compared += 1
        below = allowed & (distances < edge)
        for group in range(num_groups):
            mine = torch.ones(len(distances), dtype=torch.bool) if groups is None else groups == group
            for counts, kind in ((pairs.genuine, same), (pairs.impostor, ~same)):
                assert int(counts[group, :at].sum()) == int((below & kind)[mine].sum())
    assert compared > 10  # the far edges at least


def integers(generator, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=generator)


@st.composite
def problems(draw):
    """Small integer embeddings, so that ties are exact and many; sometimes of one set against itself."""
    num, size, dim = draw(st.integers(1, 12)), draw(st.integers(1, 40)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    same = draw(st.booleans())
    gallery = integers(generator, -2, 3, size, dim).float()
    queries = gallery if same else integers(generator, -2, 3, num, dim).float()
    codes: dict[str, Tensor] = {}
    for what, low, high in (("ids", 0, 12), ("sequences", -1, 3), ("groups", 0, 3), ("labels", 0, 4)):
        if what == "labels" or draw(st.booleans()):
            codes[f"gallery_{what}"] = integers(generator, low, high, size)
            codes[f"query_{what}"] = codes[f"gallery_{what}"] if same else integers(generator, low, high, num)
    labels = codes.pop("query_labels"), codes.pop("gallery_labels")
    return queries, gallery, Exclusion(**codes), labels


@pytest.fixture(params=["listed", "by label"])
def way(request, monkeypatch):
    """Both ways to find the nearest and the farthest relevant item."""
    if request.param == "by label":
        monkeypatch.setattr(relevant, "_FEW", -1)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    problems(),
    st.integers(1, 45),
    st.sampled_from(["cosine", "euclidean"]),
    st.sampled_from([64, TINY, 0.01]),
)
def test_results_and_ranks_are_the_double_loop(way, problem, k, distance, budget):
    queries, gallery, exclude, labels = problem
    distances = direct(queries, gallery, distance)
    rankings = naive_rankings(distances, allowed_pairs(len(queries), len(gallery), exclude))
    found = survey(
        queries,
        gallery,
        k=k,
        distance=distance,
        exclude=exclude,
        query_labels=labels[0],
        gallery_labels=labels[1],
        ranks=True,
        budget_mb=budget,
    )
    assert found.result.indices.tolist() == [(row + [-1] * k)[:k] for row in rankings]
    assert (found.first.tolist(), found.last.tolist()) == naive_ranks(rankings, *labels)


def assert_same_order(found, whole) -> None:
    """The indices are those of a search that measures all, and what is measured is the same to the bit."""
    assert torch.equal(found.indices, whole.indices)
    assert torch.equal(found.distances[:, :1], whole.distances[:, :1])
    measured = ~found.distances.isnan()
    assert torch.equal(found.distances[measured], whole.distances[measured])
    assert bool((measured | whole.distances.isfinite()).all())


@settings(max_examples=80, deadline=None)
@given(
    problems(),
    st.integers(1, 12),
    st.sampled_from(["cosine", "euclidean"]),
    st.sampled_from([64, TINY, 0.01]),
)
def test_the_order_without_the_distances(problem, k, distance, budget):
    queries, gallery, exclude, _ = problem
    rules = {"k": k, "distance": distance, "exclude": exclude}
    found = survey(queries, gallery, **rules, distances=False, budget_mb=budget).result
    assert_same_order(found, search(queries, gallery, **rules))


@settings(max_examples=60, deadline=None)
@given(
    problems(),
    st.integers(0, 2**20),
    st.sampled_from([64, TINY, 0.01]),
    st.sampled_from(["euclidean", "cosine"]),
)
def test_histograms_count_every_pair(problem, seed, budget, distance):
    queries, gallery, exclude, labels = problem
    groups = integers(torch.Generator().manual_seed(seed), -1, 3, len(queries))
    found = survey(
        queries,
        gallery,
        k=1,
        distance=distance,
        exclude=exclude,
        query_labels=labels[0],
        gallery_labels=labels[1],
        resolution=4,
        groups=groups,
        num_groups=3,
        group_resolution=2,
        budget_mb=budget,
    )
    distances = direct(queries, gallery, distance).double()
    allowed = allowed_pairs(len(queries), len(gallery), exclude)
    assert (found.pairs.edges.shape, found.group_pairs.edges.shape) == ((129,), (65,))
    assert float(found.pairs.edges[-1]) >= float(distances.max()) - 1e-12
    scale = max(1.0, float(distances.max()))
    assert_counts_below_every_edge(found.pairs, distances, allowed, labels, None, 1, scale)
    assert_counts_below_every_edge(found.group_pairs, distances, allowed, labels, groups, 3, scale)
    assert int(found.pairs.genuine.sum() + found.pairs.impostor.sum()) == int(allowed.sum())


@pytest.mark.parametrize("same", [False, True])
def test_histograms_of_directions_and_zeros(same):
    generator = torch.Generator().manual_seed(3)
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 0.0], [0.6, 0.8]])
    gallery = directions[integers(generator, 0, 6, 200)] * torch.rand(200, 1, generator=generator).add(0.5)
    queries = gallery if same else gallery[:70].clone()
    labels = integers(generator, 0, 5, 200)
    groups = integers(generator, -1, 2, 200)[: len(queries)]
    ids = torch.arange(200)
    exclude = Exclusion(ids[: len(queries)], ids)
    # distances are 0, 0.2, 0.4, 1, 1.6, 1.8 and 2
    found = survey(
        queries,
        gallery,
        k=3,
        exclude=exclude,
        query_labels=labels[: len(queries)],
        gallery_labels=labels,
        resolution=64,
        groups=groups,
        num_groups=2,
        budget_mb=0.02,
    )
    distances = direct(queries, gallery, "cosine").double().clamp(0, 2)
    allowed = allowed_pairs(len(queries), 200, exclude)
    sides = labels[: len(queries)], labels
    assert_counts_below_every_edge(found.pairs, distances, allowed, sides, None, 1, 2)
    assert_counts_below_every_edge(found.group_pairs, distances, allowed, sides, groups, 2, 2)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_crowded_embeddings_are_told_apart(distance):
    """Distances a thousand times smaller than the embeddings fill bins of their own."""
    x = 1 + 1e-3 * torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 30
    found = survey(
        x, x, k=1, distance=distance, query_labels=labels, gallery_labels=labels, resolution=256
    ).pairs
    distances = direct(x, x, distance).double().flatten()
    for share in (0.01, 0.3, 0.9):
        edge = int((found.edges < distances.quantile(share)).sum())
        below = int((found.genuine + found.impostor)[0, :edge].sum())
        assert below / len(distances) == pytest.approx(share, rel=0.02)


DATA = ["spread", "clustered", "collapsed", "tied", "constant", "zeros", "offset", "outlier"]


def embeddings(data: str, num: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 24, generator=generator)
    if data == "clustered":
        x[num // 4 :] = x[torch.randint(0, num // 4, (num - num // 4,), generator=generator)]
    if data == "collapsed":
        x = 1 + 1e-6 * x
    if data == "tied":
        x = x.sign()
    if data == "constant":
        x = torch.full_like(x, 0.3)
    if data == "zeros":
        x[::3] = 0
    if data == "offset":
        x = x + 1000
    if data == "outlier":
        x[7] *= 1e6
    return x


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_order_of_every_kind_of_data_without_the_distances(distance, data, dtype):
    x = embeddings(data, 300).to(dtype)
    if not bool(x.isfinite().all()):
        return
    ids = torch.arange(300)
    rules = {"k": 25, "distance": distance, "exclude": Exclusion(ids, ids)}
    assert_same_order(survey(x, x, **rules, distances=False).result, search(x, x, **rules))


def test_few_distances_are_measured_where_only_the_order_is_asked_for(monkeypatch):
    x = embeddings("spread", 3000)
    measured = []
    measure = Space.measure

    def spied(self, rows, items, *, chunk):
        measured.append(items.numel())
        return measure(self, rows, items, chunk=chunk)

    monkeypatch.setattr(Space, "measure", spied)
    survey(x, x, k=20, distances=False)
    assert sum(measured) < 3 * len(x)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("data", DATA)
def test_turned_blocks_give_what_plain_ones_do_to_the_bit(distance, data, monkeypatch):
    x = embeddings(data, 150)
    labels = torch.arange(150) % 40
    ids, sequences = torch.arange(150), torch.arange(150) // 3 % 13
    taken: list[bool] = []
    plan_of = Plan.of

    def surveyed(turned: bool, budget: float):
        def forced(*args, mirrored, **kwargs):
            plan = replace(plan_of(*args, mirrored=mirrored, **kwargs), symmetric=turned)
            taken.append(plan.symmetric)
            return plan

        monkeypatch.setattr(Plan, "of", staticmethod(forced))
        return survey(
            x,
            x,
            k=12,
            distance=distance,
            exclude=Exclusion(ids, ids, sequences, sequences),
            query_labels=labels,
            gallery_labels=labels,
            ranks=True,
            budget_mb=budget,
        )

    plain = surveyed(False, 64)
    for turned, budget in ((True, 64), (True, 0.1), (False, 0.05)):
        other = surveyed(turned, budget)
        assert torch.equal(plain.result.indices, other.result.indices)
        assert torch.equal(plain.result.distances, other.result.distances)
        assert torch.equal(plain.first, other.first)
        assert torch.equal(plain.last, other.last)
    assert taken == [False, True, True, False]
    everything = search(
        x, x.clone(), k=150, distance=distance, exclude=Exclusion(ids, ids, sequences, sequences)
    )
    hits = (labels[everything.indices.clamp_min(0)] == labels[:, None]) & (everything.indices >= 0)
    assert torch.equal(plain.first, (hits.int().argmax(1) + 1) * hits.any(1))
    assert torch.equal(plain.last, (150 - hits.flip(1).int().argmax(1)) * hits.any(1))


def test_self_retrieval_is_turned_by_itself_and_other_rules_are_not(monkeypatch):
    x = embeddings("spread", 60)
    ids = torch.arange(60)
    seen: list[bool] = []
    plan_of = Plan.of

    def spied(*args, **kwargs):
        plan = plan_of(*args, **kwargs)
        seen.append(plan.symmetric)
        return plan

    monkeypatch.setattr(Plan, "of", staticmethod(spied))
    search(x, x, k=3, exclude=Exclusion(ids, ids))
    search(x, x.view(60, 24), k=3)
    search(x, x.clone(), k=3, exclude=Exclusion(ids, ids))
    search(x, x, k=3, exclude=Exclusion(ids, ids.flip(0)))
    search(x, x, k=3, exclude=Exclusion(ids, ids), budget_mb=TINY)
    assert seen == [True, True, False, False, False]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_ranks_of_every_type_agree_with_a_search_of_all(dtype, distance, size):
    generator = torch.Generator().manual_seed(5)
    queries, gallery = (torch.randn(n, 16, generator=generator).mul(size).to(dtype) for n in (40, 700))
    labels = integers(generator, 0, 30, 40), integers(generator, 0, 30, 700)
    found = survey(
        queries,
        gallery,
        k=5,
        distance=distance,
        query_labels=labels[0],
        gallery_labels=labels[1],
        ranks=True,
        budget_mb=0.3,
    )
    order = search(queries, gallery, k=700, distance=distance).indices
    hits = labels[1][order] == labels[0][:, None]
    assert torch.equal(found.first, hits.int().argmax(1) + 1)
    assert torch.equal(found.last, 700 - hits.flip(1).int().argmax(1))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_histograms_and_ranks_of_extreme_magnitudes(size):
    x, y = embeddings("spread", 90), embeddings("clustered", 200)
    labels = {"query_labels": torch.arange(90) % 9, "gallery_labels": torch.arange(200) % 9}
    plain = survey(x, y, k=1, distance="euclidean", **labels, ranks=True, resolution=1)
    other = survey(x * size, y * size, k=1, distance="euclidean", **labels, ranks=True, resolution=1)
    assert torch.equal(plain.first, other.first)
    assert torch.equal(plain.last, other.last)
    torch.testing.assert_close(other.pairs.edges, plain.pairs.edges * size, rtol=1e-5, atol=0)
    assert int((plain.pairs.impostor - other.pairs.impostor).abs().sum()) < 40


@pytest.mark.usefixtures("way")
def test_groups_are_searched_as_if_alone():
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(700, 8, generator=generator), torch.randn(900, 8, generator=generator)
    sizes = torch.tensor([0, 0, 0, 1, 2, 3, 4, 5, 6, 7])  # group 0 large, others small; 8 and 9 on one side
    of_x = sizes[integers(generator, 0, 10, 700)]
    of_y = sizes[integers(generator, 0, 10, 900)]
    of_x[of_x == 6], of_y[of_y == 7] = 8, 9
    done: list[int] = []
    exclude = Exclusion(query_groups=of_x, gallery_groups=of_y)
    labels = integers(generator, 0, 6, 700), integers(generator, 0, 6, 900)
    found = survey(
        x,
        y,
        k=200,
        exclude=exclude,
        query_labels=labels[0],
        gallery_labels=labels[1],
        ranks=True,
        on_progress=done.append,
    )
    assert sum(done) == 700
    for group in of_x.unique().tolist():
        rows, items = (of_x == group).nonzero()[:, 0], (of_y == group).nonzero()[:, 0]
        alone = survey(
            x[rows],
            y[items],
            k=200,
            query_labels=labels[0][rows],
            gallery_labels=labels[1][items],
            ranks=True,
        )
        back = torch.cat([items, torch.tensor([-1])])
        assert torch.equal(found.result.indices[rows], back[alone.result.indices])
        assert torch.equal(found.result.distances[rows], alone.result.distances)
        assert torch.equal(found.first[rows], alone.first)
        assert torch.equal(found.last[rows], alone.last)
    assert torch.equal(found.first > 0, count_relevant(*labels, exclude) > 0)


LABELS = {
    "query_labels": torch.zeros(2, dtype=torch.int64),
    "gallery_labels": torch.zeros(3, dtype=torch.int64),
}
WRONG = [
    ({"ranks": True}, "ranks and a histogram need query_labels and gallery_labels"),
    ({"resolution": 4}, "ranks and a histogram need query_labels and gallery_labels"),
    (
        LABELS | {"query_labels": torch.zeros(5), "ranks": True},
        "query_labels must have shape (2,), got (5,)",
    ),
    (LABELS | {"resolution": -1}, "resolution must be a power of two, at most 65536, or 0, got -1"),
    (LABELS | {"resolution": 3}, "resolution must be a power of two, at most 65536, or 0, got 3"),
    (
        LABELS | {"resolution": 4, "group_resolution": 8},
        "group_resolution must be a power of two, at most 65536, or 0, got 8",
    ),
    (LABELS | {"num_groups": -1}, "num_groups must not be negative, got -1"),
    (LABELS | {"groups": torch.zeros(3)}, "groups must have shape (2,), got (3,)"),
    (LABELS | {"groups": torch.tensor([0, 1]), "num_groups": 1}, "groups must lie in [-1, 0]"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError) as raised:
        survey(torch.ones(2, 3), torch.ones(3, 3), k=1, **changes)
    assert str(raised.value) == message


@pytest.mark.parametrize(("num", "size"), [(0, 0), (0, 3), (3, 0)])
def test_empty_sides(num, size):
    labels = torch.zeros(num, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
    found = survey(
        torch.ones(num, 4),
        torch.ones(size, 4),
        k=2,
        query_labels=labels[0],
        gallery_labels=labels[1],
        ranks=True,
        resolution=1,
    )
    assert found.result.indices.tolist() == [[-1, -1]] * num
    assert found.first.tolist() == [0] * num
    assert found.last.tolist() == [0] * num
    assert found.pairs.genuine.tolist() == [[0] * 32]
    assert found.pairs.impostor.tolist() == [[0] * 32]
