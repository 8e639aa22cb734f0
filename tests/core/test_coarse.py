"""The product in half precision: results with it, without it, and by a double loop are equal to the bit."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from metricli.core import coarse, coarse_blocks, relevant, scan
from metricli.core.coarse import Coarse
from metricli.core.coarse_blocks import CoarseSide, products
from metricli.core.exclusion import NOTHING, Exclusion
from metricli.core.layout import Layout
from metricli.core.ranking import Space
from metricli.core.results import Survey
from metricli.core.retrieval import search, survey
from metricli.core.scan import Plan, Scan

INFINITE = 0x7F80
OPEN = coarse._OPEN


class Switch:
    """Turns the product on and off, for blocks of any size, and counts what it does."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.blocks = self.full = self.turned = 0
        self.made: list[Coarse | None] = []
        patch.setattr(scan, "_LEAST", 1)
        patch.setattr(coarse, "_NARROW", 1)
        patch.setattr(coarse, "_OPEN", 9.0)  # whatever is expected to be left open
        scores, full, of, bounds = Coarse.scores, Coarse.full, Coarse.of, CoarseSide.bounds

        def counted_scores(this: Coarse, *args: Any) -> Tensor:
            self.blocks += 1
            return scores(this, *args)

        def counted_full(this: Coarse, *args: Any) -> Tensor:
            self.full += 1
            return full(this, *args)

        def counted_bounds(this: CoarseSide, line: Tensor, column: Tensor) -> Tensor:
            self.turned += this._reversed
            return bounds(this, line, column)

        def kept_of(of_scan: Scan) -> Coarse | None:
            self.made.append(of(of_scan))
            return self.made[-1]

        patch.setattr(Coarse, "scores", counted_scores)
        patch.setattr(Coarse, "full", counted_full)
        patch.setattr(Coarse, "of", staticmethod(kept_of))
        patch.setattr(CoarseSide, "bounds", counted_bounds)

    def turn(self, on: bool) -> None:
        self.blocks = self.full = self.turned = 0
        self.made.clear()
        self._patch.setattr(coarse, "supported", lambda device: on)

    def always(self) -> None:
        """Let it go on however much is left open."""
        self._patch.setattr(Coarse, "pays", True)


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Switch:
    return Switch(monkeypatch)


def allowed_pairs(num: int, size: int, exclude: Exclusion) -> Tensor:
    """(num, size) bool, from the words of `Exclusion`."""
    allowed = torch.ones(num, size, dtype=torch.bool)
    ids, sequences, groups = (
        (getattr(exclude, f"query_{what}"), getattr(exclude, f"gallery_{what}"))
        for what in ("ids", "sequences", "groups")
    )
    for i in range(num):
        if ids[0] is not None:
            allowed[i] &= ids[1] != ids[0][i]
        if sequences[0] is not None and sequences[0][i] >= 0:
            allowed[i] &= sequences[1] != sequences[0][i]
        if groups[0] is not None:
            allowed[i] &= groups[1] == groups[0][i]
    return allowed


def naive_distances(queries: Tensor, gallery: Tensor, distance: str) -> Tensor:
    """By direct differences in float64, query by query, rounded as results are."""
    x, y = queries.double(), gallery.double()
    x_sizes, y_sizes = x.norm(dim=1), y.norm(dim=1)
    if distance == "cosine":
        x = x * torch.where(x_sizes > 0, 1 / x_sizes, 0.0)[:, None]
        y = y * torch.where(y_sizes > 0, 1 / y_sizes, 0.0)[:, None]
    found = torch.stack([torch.linalg.vector_norm(y - row, dim=1) for row in x])
    if distance == "cosine":
        found = torch.where(found < 1e-14, 0.0, found).clamp(max=2).square() / 2  # rounding alone is 0
        found[x_sizes == 0], found[:, y_sizes == 0] = 1, 1
    return found.float() if queries.dtype != torch.float64 else found


def assert_naive(
    found: Survey,
    queries: Tensor,
    gallery: Tensor,
    labels: tuple[Tensor, Tensor],
    distance: str,
    exclude: Exclusion,
) -> None:
    """Indices, distances and ranks are those of a double loop: ties to the lower row."""
    allowed = allowed_pairs(len(queries), len(gallery), exclude)
    distances = naive_distances(queries, gallery, distance).masked_fill(~allowed, torch.inf)
    values, order = distances.sort(dim=1, stable=True)
    order = order.masked_fill(values.isinf(), -1)
    k = found.result.indices.shape[1]
    width = min(k, len(gallery))
    assert torch.equal(found.result.indices[:, :width], order[:, :width])
    assert bool((found.result.indices[:, width:] == -1).all())
    torch.testing.assert_close(found.result.distances[:, :width], values[:, :width], rtol=1e-6, atol=0)
    hits = (labels[1][order.clamp_min(0)] == labels[0][:, None]) & (order >= 0)
    for ranks, places in ((found.first, hits.int().argmax(1) + 1), (found.last, last_places(hits))):
        assert torch.equal(ranks, places * hits.any(1))


def last_places(hits: Tensor) -> Tensor:
    return hits.shape[1] - hits.flip(1).int().argmax(1)


def assert_same(one: Survey, other: Survey) -> None:
    assert torch.equal(one.result.indices, other.result.indices)
    assert torch.equal(one.result.distances, other.result.distances)
    assert torch.equal(one.first, other.first)
    assert torch.equal(one.last, other.last)


def assert_right(
    switch: Switch,
    queries: Tensor,
    gallery: Tensor,
    *,
    k: int = 10,
    distance: str = "euclidean",
    exclude: Exclusion = NOTHING,
    labels: tuple[Tensor, Tensor] | None = None,
    budgets: tuple[float, ...] = (64, 0.2),
    used: bool = True,
) -> None:
    """With the product for every budget, without it, and by a double loop."""
    same = queries is gallery
    if labels is None:
        of_gallery = torch.arange(len(gallery)) % 11
        labels = of_gallery if same else torch.arange(len(queries)) % 13, of_gallery
    rules: dict[str, Any] = {"k": k, "distance": distance, "exclude": exclude, "ranks": True}
    rules |= {"query_labels": labels[0], "gallery_labels": labels[1]}
    switch.turn(False)
    plain = survey(queries, gallery, **rules)
    assert switch.blocks == 0
    assert switch.made == []
    assert_naive(plain, queries, gallery, labels, distance, exclude)
    for budget in budgets:
        switch.turn(True)
        found = survey(queries, gallery, **rules, budget_mb=budget)
        assert (switch.blocks > 0) == used
        assert_same(found, plain)
        ordered = survey(queries, gallery, **rules, budget_mb=budget, distances=False)
        assert torch.equal(ordered.result.indices, plain.result.indices)
        assert torch.equal(ordered.first, plain.first)
        assert torch.equal(ordered.last, plain.last)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(seed: int, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("dim", [1, 2, 3, 7, 33, 384])
def test_random_rows_of_every_width(switch: Switch, dim: int, distance: str) -> None:
    x = normal(dim, 203, dim)
    for k, budgets in ((1, (64, 0.2 if dim < 100 else 1)), (10, (1,)), (200, (64,))):
        assert_right(switch, x[:40].clone(), x[40:], k=k, distance=distance, budgets=budgets)
    ids = torch.arange(203)
    assert_right(
        switch, x, x, distance=distance, exclude=Exclusion(ids, ids), budgets=(64, 0.2 if dim < 100 else 1)
    )
    told_apart = dim > 1 or distance == "euclidean"
    assert switch.turned > 0 or dim > 100 or not told_apart  # else blocks are too small, or crowded


def codes_of(what: str, num: int, size: int) -> Exclusion:
    low, high = {"ids": (0, size), "sequences": (-1, 9), "groups": (0, 3)}[what]
    codes = {f"query_{what}": integers(1, low, high, num), f"gallery_{what}": integers(2, low, high, size)}
    return Exclusion(**codes)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("what", ["ids", "sequences", "groups"])
def test_what_is_excluded_is_not_found(switch: Switch, what: str, distance: str) -> None:
    x = normal(3, 230, 5)
    assert_right(
        switch, x[:67].clone(), x[67:], distance=distance, exclude=codes_of(what, 67, 163), budgets=(64, 0.05)
    )
    codes = integers(4, 0, 20, 230)
    both = Exclusion(**{f"query_{what}": codes, f"gallery_{what}": codes})
    assert_right(switch, x, x, distance=distance, exclude=both, budgets=(64, 0.2))


def test_two_threads(switch: Switch) -> None:
    x, ids = normal(5, 300, 6), torch.arange(300)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert_right(switch, x, x, exclude=Exclusion(ids, ids))
        assert_right(switch, x[:150].clone(), x)
    finally:
        torch.set_num_threads(threads)


def nasty(data: str) -> Tensor:
    num, dim = 149, 6
    x = normal(7, num, dim)
    pick = integers(8, 0, 13, num)
    if data == "duplicates":
        return x[pick]
    if data == "all equal":
        return torch.full_like(x, 0.3)
    if data == "near duplicates":
        return x[pick] + 1e-7 * normal(9, num, dim)
    if data == "collapsed":
        return 1 + 1e-4 * x
    if data == "one cluster and some far":
        return torch.cat([x[:1] + 1e-4 * x[: num - 20], 5 * x[num - 20 :]])
    if data == "one huge row":
        x[num // 2] *= 1e6
    if data == "zeros":
        x[::3] = 0
    if data == "many sizes":
        return x * 10.0 ** integers(10, -20, 1, num, 1)
    if data == "integers":
        return integers(11, -2, 3, num, dim).float()
    if data == "powers of two":
        return 2.0 ** integers(12, -6, 7, num, dim) * integers(13, 0, 2, num, dim).mul(2).sub(1)
    if data == "halfway":  # squared gaps from 256 to 511, of which the odd ones lie between two bfloat16
        half = integers(14, -9, 10, num // 2, dim).float()
        return torch.cat([half, -half])
    return x * float(data) if data[0] == "1" else x


NASTY = [
    "duplicates",
    "all equal",
    "near duplicates",
    "collapsed",
    "one cluster and some far",
    "one huge row",
    "many sizes",
    "integers",
    "powers of two",
    "halfway",
    "1e-8",
    "1e8",
    "1e-20",
    "1e15",
    "zeros",
]


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("data", NASTY)
def test_nasty_rows(switch: Switch, data: str, distance: str) -> None:
    switch.always()
    x = nasty(data)
    used = data != "zeros" or distance == "euclidean"  # a zero row has no direction
    assert_right(switch, x[:37].clone(), x, distance=distance, used=used)
    ids = torch.arange(len(x))
    assert_right(switch, x, x, k=3, distance=distance, exclude=Exclusion(ids, ids), used=used)


@pytest.mark.parametrize("size", [67, 64, 331])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_crowded_rows_take_the_full_product_and_are_counted_once(
    switch: Switch, size: int, distance: str
) -> None:
    """Also those whose last columns, fewer than a group, are open."""
    x = 1 + 1e-4 * normal(1, size, 8)
    x[0] = -100
    labels = torch.arange(size) % 7
    assert_right(switch, x[:33].clone(), x, k=3, distance=distance, labels=(labels[:33], labels))
    assert switch.full > 0


@pytest.mark.parametrize("size", [67, 64, 331])
def test_a_few_rows_that_ask_may_all_be_crowded(switch: Switch, size: int) -> None:
    """The memory left beside an odd number of scores serves bounds of twice their width."""
    x = normal(0, size, 8)
    x[5:] = x[5] + 1e-4 * normal(1, size - 5, 8)
    queries = torch.cat([x[5:8] + 0.5, 5 * normal(2, 60, 8)])
    x[:3] = queries[:3] + 0.01  # the nearest, so that no list of what is near goes as far as the others
    labels = torch.where(torch.arange(63) < 3, 0, 9), (torch.arange(size) < 3).long()
    assert_right(switch, queries, x, k=1, labels=labels, budgets=(64,))
    assert switch.full > 0


def test_it_is_given_up_once_too_much_is_left_open(switch: Switch) -> None:
    x, labels = torch.full((400, 5), 0.3), torch.arange(400) % 7
    assert_right(switch, x[:90].clone(), x, labels=(labels[:90], labels), budgets=(0.2,))
    made = switch.made[0]
    assert made is not None
    assert not made.pays
    given_up = switch.blocks
    switch.always()
    assert_right(switch, x[:90].clone(), x, labels=(labels[:90], labels), budgets=(0.2,))
    assert switch.blocks > given_up


@pytest.mark.parametrize(("pull", "used"), [(1.0, True), (0.0, False)])
def test_it_is_for_embeddings_whose_labels_lie_together(
    switch: Switch, monkeypatch: pytest.MonkeyPatch, pull: float, used: bool
) -> None:
    """Amid a gallery of noise most pairs would be left open, and the full product is as fast."""
    monkeypatch.setattr(coarse, "_OPEN", OPEN)
    centres = torch.randn(60, 384, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60).repeat_interleave(5)
    rows = pull * centres[labels] + torch.randn(300, 384, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(300)
    switch.turn(True)
    survey(
        rows, rows, k=5, exclude=Exclusion(ids, ids), query_labels=labels, gallery_labels=labels, ranks=True
    )
    assert (switch.blocks > 0) == used
    assert [kept is not None for kept in switch.made] == [True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_half_types(switch: Switch, dtype: torch.dtype, distance: str) -> None:
    x = normal(15, 160, 9).to(dtype)
    assert_right(switch, x, x, distance=distance)
    assert_right(switch, x[:30].clone(), x, distance=distance)


def test_float64_is_not_for_it(switch: Switch) -> None:
    x = normal(16, 90, 9).double()
    assert_right(switch, x, x, used=False)


def test_rows_that_do_not_lie_together(switch: Switch) -> None:
    x = normal(17, 8, 400).T[::2, ::2]
    assert not x.is_contiguous()
    assert_right(switch, x, x)
    assert_right(switch, x[:31], x[31:], distance="cosine")


@pytest.mark.parametrize(("num", "size"), [(0, 0), (0, 3), (3, 0)])
def test_empty_sides(switch: Switch, num: int, size: int) -> None:
    switch.turn(True)
    assert search(torch.ones(num, 4), torch.ones(size, 4), k=2).indices.tolist() == [[-1, -1]] * num
    assert switch.blocks == 0


def test_a_histogram_is_made_without_it(switch: Switch) -> None:
    x, labels = normal(18, 90, 4), torch.arange(90) % 5
    switch.turn(True)
    survey(x, x, k=2, query_labels=labels, gallery_labels=labels, resolution=4)
    assert switch.blocks == 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**20),
    num=st.integers(1, 40),
    size=st.integers(1, 90),
    dim=st.integers(1, 9),
    same=st.booleans(),
    spread=st.sampled_from([2.0, 1e-3, 1e-6, None]),
    distance=st.sampled_from(["cosine", "euclidean"]),
    budget=st.sampled_from([64, 0.2, 0.05]),
    some=st.sampled_from([2**19, 100]),
    cached=st.sampled_from([2**21, 200]),
)
def test_small_problems(
    switch: Switch,
    seed: int,
    num: int,
    size: int,
    dim: int,
    same: bool,
    spread: float | None,
    distance: str,
    budget: float,
    some: int,
    cached: int,
) -> None:
    x = integers(seed, -2, 3, num + size, dim).float() if spread is None else normal(seed, num + size, dim)
    x = x + 3 if spread is None else 1 + spread * x  # no zeros
    codes = integers(seed, 0, size, num + size)
    gallery, items = x[num:], codes[num:]
    queries, asking = (gallery, items) if same else (x[:num].clone(), codes[:num])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coarse_blocks, "_FULL", some)
        patch.setattr(coarse_blocks, "_CACHED", cached)
        patch.setattr(relevant, "_FEW", -1 if seed % 2 else 16)
        patch.setattr(Coarse, "pays", True)
        exclude = Exclusion(asking, items)
        assert_right(switch, queries, gallery, k=7, distance=distance, exclude=exclude, budgets=(budget,))


def truncated(exact: Tensor) -> Tensor:
    return (exact.float().view(torch.int32) >> 16 << 16).view(torch.float32).bfloat16()


def summed_in_halves(x: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros(len(x), y.shape[1], dtype=torch.bfloat16)
    for at in range(x.shape[1]):
        out += x[:, at, None] * y[at]
    return out


WRONG = {
    "truncated": lambda x, y: truncated(x.double() @ y.double()),
    "summed in halves": summed_in_halves,
    "last columns lost": lambda x, y: (x[:, :-4].double() @ y[:-4].double()).bfloat16(),
    "of 4 bits": lambda x, y: (
        ((x.double() @ y.double()).half().view(torch.int16) >> 6 << 6).view(torch.float16).bfloat16()
    ),
}


@pytest.mark.parametrize("way", list(WRONG))
def test_a_product_that_rounds_wrongly_is_not_believed(
    switch: Switch, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul, mm = torch.Tensor.__matmul__, torch.mm

    def broken(x: Tensor, y: Tensor) -> Tensor:
        return WRONG[way](x, y) if x.dtype == torch.bfloat16 else matmul(x, y)

    def broken_mm(x: Tensor, y: Tensor, *, out: Tensor | None = None) -> Tensor:
        found = WRONG[way](x, y) if x.dtype == torch.bfloat16 else mm(x, y)
        return found if out is None else out.copy_(found)

    monkeypatch.setattr(torch.Tensor, "__matmul__", broken)
    monkeypatch.setattr(torch, "mm", broken_mm)
    x = normal(19, 150, 10)
    assert_right(switch, x[:50].clone(), x, used=False)
    assert set(switch.made) == {None}


def scanned(queries: Tensor, gallery: Tensor, distance: str) -> Coarse:
    space = Space.of(queries, gallery, distance, chunk=100)
    layout = Layout.of(space, NOTHING, None)
    plan = Plan.of(space, 3, layout.reachable, 64, mirrored=queries is gallery, coarse=True)
    return Coarse(Scan(space, NOTHING, plan, layout))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("data", ["plain", *NASTY[:-1]])
def test_a_score_is_as_near_the_squared_gap_as_is_told(data: str, same: bool, distance: str) -> None:
    x = nasty(data)
    queries, gallery = (x, x) if same else (x[:60].clone(), x[50:])
    made = scanned(queries, gallery, distance)
    of_queries, of_gallery = torch.arange(len(queries)), torch.arange(len(gallery))
    left = made.left(of_queries, made.scan.left(of_queries))
    right = made.right(of_gallery, made.scan.right(of_gallery))
    out = torch.empty(len(queries) * len(gallery))
    bits = made.scores(left, right, of_queries, of_gallery, out)
    assert bits.dtype == torch.int16
    scores = bits.view(torch.bfloat16).double()
    one = made.scan.space.bound_rows("queries", slice(0, len(queries))).double()
    other = made.scan.space.bound_rows("gallery", slice(0, len(gallery))).double()
    gaps = torch.stack([(row - other).square().sum(1) for row in one])
    away = (scores - gaps).abs() - scores.abs() * 2.0**-8  # half a step of a bfloat16 is no more
    plain = made.error(of_queries, of_gallery, turned=False).double()
    assert bool((away <= plain[:, None] + 1e-37).all())
    if same:
        assert bool((away <= made.error(of_gallery, of_queries, turned=True).double() + 1e-37).all())


def side_of(scores: Tensor, error: Tensor) -> CoarseSide:
    rows, items = torch.arange(scores.shape[0]), torch.arange(scores.shape[1])
    return CoarseSide(rows, items, scores, 0, SimpleNamespace(queries=rows), error)


def numbers(bits: Tensor) -> Tensor:
    """What positive bits of bfloat16 stand for, and halves between them."""
    return (bits.double() * 2**16).int().view(torch.float32).double()


EDGES = [0, 1e-30, 0.5, 1, 1.00390625, 1.0078125, 1.01171875, 1.99609375, 2, 3.0078125, 257, 258, 259, 1e9]


@pytest.mark.parametrize("error", [0.0, 2.0**-9, 0.25])
def test_limits_are_rounded_to_the_safe_side(error: float) -> None:
    """Scores are rounded from anything within half a step: none of that may be on the wrong side."""
    near = torch.tensor(EDGES)
    bound = torch.cat([near, near.nextafter(torch.tensor(torch.inf)), near.nextafter(torch.tensor(-1.0))])
    side = side_of(torch.zeros(len(bound), 8, dtype=torch.int16), torch.full_like(bound, error))
    limit, floor = side.limit(bound), side._floor(bound)
    assert limit.dtype == floor.dtype == torch.int16
    lowest_not_below = numbers(limit.double() - 0.5)  # what rounds to the limit is no less
    assert bool((lowest_not_below >= (bound + error).double()).all())
    assert bool((numbers(limit.double() - 2.5)[limit > 2] <= (bound + error).double()[limit > 2]).all())
    some = floor > 0
    assert bool(some.any())
    most_below = numbers(floor[some].double() - 0.5)  # what rounds to less than the floor is no more
    assert bool((most_below <= (bound - error).double()[some]).all())
    assert bool((numbers(floor[some].double() + 1.5) >= (bound - error).double()[some]).all())
    assert bool((floor[bound < error] == -(2**15)).all())


def test_limits_without_end() -> None:
    bound = torch.tensor([torch.inf, -torch.inf, -1.0, 3e38])
    side = side_of(torch.zeros(4, 8, dtype=torch.int16), torch.tensor([0.5, 0.5, 0.5, 3e38]))
    assert side.limit(bound).tolist() == [INFINITE, -(2**15), 1, INFINITE]  # what is excluded is not below
    assert side._floor(bound)[1:].tolist() == [-(2**15), -(2**15), 0]


@pytest.mark.parametrize("groups", [5, 40])
def test_the_lowest_of_minima_reach_no_less_than_they_stand_for(groups: int) -> None:
    bits = integers(20, -400, 0x4100, 30, groups).short()
    bits[:4] = integers(21, -400, 0, 4, groups).short()
    error = torch.rand(30, generator=torch.Generator().manual_seed(1))
    for count in (1, 2, 5):
        reach = side_of(bits, error).reach(bits, count)
        lowest = bits.sort(dim=1).values[:, count - 1].clamp_min(0)
        most = numbers(lowest.double() + 0.5) + error
        assert bool((reach.double() >= most * (1 - 2.0**-23)).all())
        if groups < 16 * count:
            assert bool((reach.double() <= most * (1 + 2.0**-23)).all())


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [5, 8, 45])
def test_what_is_listed_and_counted_is_what_lies_between(size: int, turned: bool) -> None:
    bits = integers(22, -300, 3000, 21, size).short()
    bits[:, -1] = INFINITE
    scores = bits.T.contiguous().T if turned else bits
    side = side_of(scores, torch.zeros(21))
    floor, limit = integers(23, 0, 1500, 21).short(), integers(24, 1500, 3200, 21).short()
    floor[0], limit[1], floor[1], limit[2] = -(2**15), -(2**15), -(2**15), INFINITE
    for memory in (2**12, 21 * 8 + 60):
        below, open_ = side._tally(floor, limit, torch.zeros(memory, dtype=torch.int16))
        assert below.tolist() == [int((row < least).sum()) for row, least in zip(bits, floor, strict=True)]
        line, column = side.listed(open_, side.group, floor, limit)
        expected = (bits >= floor[:, None]) & (bits < limit[:, None])
        found = torch.zeros_like(expected)
        found[line, column] = True
        assert torch.equal(found, expected)
        assert len(line) == int(expected.sum())
        assert line.tolist() == sorted(line.tolist())


def test_products_of_pairs_are_products() -> None:
    x, y = normal(25, 20, 12), normal(26, 30, 12)
    line = torch.arange(20).repeat_interleave(7)
    column = torch.cat([torch.arange(30).roll(at).flip(0)[:7] for at in range(20)])
    line, column = line[14:], column[14:]  # the first rows are in none
    expected = [float(x[i].double() @ y[j].double()) for i, j in zip(line, column, strict=True)]
    torch.testing.assert_close(products(x, y, line, column), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_groups_of_many_sizes_take_products_of_few_shapes(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch makes code for each shape of the product and keeps it, more than half a megabyte."""
    shapes, mm = [], torch.mm

    def seen(left: Tensor, right: Tensor, **rest: Any) -> Tensor:
        if left.dtype == torch.bfloat16:
            shapes.append((len(left), right.shape[1]))
        return mm(left, right, **rest)

    monkeypatch.setattr(torch, "mm", seen)
    groups = torch.arange(60).repeat_interleave(torch.arange(70, 190, 2))
    x, ids = normal(0, len(groups), 16), torch.arange(len(groups))
    exclude = Exclusion(ids, ids, query_groups=groups, gallery_groups=groups)
    switch.turn(True)
    survey(x, x, k=3, exclude=exclude)
    assert switch.blocks > 20
    assert len(set(shapes)) < 6
    shapes.clear()
    x = normal(1, 3000, 16)
    survey(x.clone(), x, k=3)
    survey(x, x, k=3, budget_mb=2)
    assert len(shapes) > 12
    assert len(set(shapes)) < 9


def test_a_last_block_of_one_group(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its columns lie among others that the product has beside it."""
    of = scan.Plan.of
    narrow = {"gallery": 64, "plain": 64, "held": False}
    monkeypatch.setattr(
        scan.Plan, "of", staticmethod(lambda *args, **rest: replace(of(*args, **rest), **narrow))
    )
    assert_right(switch, normal(4, 90, 20), normal(3, 72, 20), k=1)
