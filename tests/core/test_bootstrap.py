"""Bootstrap intervals against loops over labels, simulated sets of a known true mean, and closed cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import metricli.core.bootstrap as bootstrap
from metricli.core.bootstrap import Paired, bootstrap_means, intervals, paired_intervals

NAN = (math.nan, math.nan)


def equal(found, expected):
    """Tables of tuples are equal, NaN to NaN."""
    assert {name: list(row) for name, row in found.items()} == {n: list(row) for n, row in expected.items()}
    for name, row in expected.items():
        for metric, values in row.items():
            assert tuple(found[name][metric]) == pytest.approx(values, nan_ok=True, abs=1e-12), (name, metric)


def naive_means(values, labels, samples, rng):
    """One mean a sample: whole labels drawn with replacement, those with a judged query."""
    clusters = {}
    for value, label in zip(values, labels, strict=True):
        if not math.isnan(value):
            clusters.setdefault(label, []).append(value)
    clusters = [clusters[label] for label in sorted(clusters)]
    if len(clusters) < 2:
        return len(clusters), None
    means = []
    for _ in range(samples):
        drawn = [value for i in rng.integers(len(clusters), size=len(clusters)) for value in clusters[i]]
        means.append(sum(drawn) / len(drawn))
    return len(clusters), means


def naive_table(values, labels, codes, names, samples, seed, judge, unknown):
    """OVERALL is drawn first, then the categories, those with fewer labels first."""
    rng = np.random.default_rng(seed)
    table = {"OVERALL": unknown, **{name: unknown for name in sorted(names)}}
    _, means = naive_means(values, labels, samples, rng)
    if means is not None:
        table["OVERALL"] = judge(means)
    members = [[i for i, code in enumerate(codes) if code == own] for own in range(len(names))]
    sizes = [len({labels[i] for i in rows if not math.isnan(values[i])}) for rows in members]
    for own in sorted(range(len(names)), key=lambda own: sizes[own]):
        rows = members[own]
        _, means = naive_means([values[i] for i in rows], [labels[i] for i in rows], samples, rng)
        if means is not None:
            table[names[own]] = judge(means)
    return table


def sides(means, confidence):
    low, high = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
    return low, high


def simulated(seed, num, num_labels, num_names):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-3, num_labels - 3, num)
    values = rng.random((2, num))
    values[rng.random((2, num)) < 0.2] = math.nan
    codes = rng.integers(-1, num_names, num)
    names = [f"c{(7 * i) % 5}" for i in range(num_names)]
    return labels, values, codes, names


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(1, 9), st.integers(0, 5), st.integers(0, 2**20))
def test_intervals_are_the_loop(num, num_labels, num_names, seed):
    labels, values, codes, names = simulated(seed, num, num_labels, num_names)
    found = intervals(
        {"map@r": torch.from_numpy(values[0]), "mrr": torch.from_numpy(values[1])},
        torch.from_numpy(labels),
        codes=torch.from_numpy(codes),
        names=names,
        confidence=0.8,
        samples=40,
        seed=seed,
    )
    assert list(found) == ["OVERALL", *sorted(names)]
    expected = {name: {} for name in found}
    for metric, own in zip(("map@r", "mrr"), values, strict=True):
        table = naive_table(
            own.tolist(), labels.tolist(), codes, names, 40, seed, lambda m: sides(m, 0.8), NAN
        )
        for name, outcome in table.items():
            expected[name][metric] = outcome
    equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 4), st.integers(0, 2**20))
def test_paired_intervals_are_the_loop(num, num_labels, num_names, seed):
    labels, (a, b), codes, names = simulated(seed, num, num_labels, num_names)
    a, b = a.round(), b.round()  # many ties
    found = paired_intervals(
        {"cmc@1": torch.from_numpy(a), "mrr": torch.ones(num)},
        {"map@r": torch.ones(num), "cmc@1": torch.from_numpy(b)},
        torch.from_numpy(labels),
        codes=torch.from_numpy(codes),
        names=names,
        samples=40,
        seed=seed,
    )

    def judge(means):
        up, down = sum(m > 0 for m in means), sum(m < 0 for m in means)
        return (*sides(means, 0.95), min(1, 2 * (41 - max(up, down)) / 41))

    table = naive_table((b - a).tolist(), labels.tolist(), codes, names, 40, seed, judge, (math.nan,) * 3)
    equal(found, {name: {"cmc@1": outcome} for name, outcome in table.items()})


def clustered(rng, num_labels=60):
    """Queries whose hits share the ease of their label; the true mean is 0.6."""
    ease = rng.beta(1.5, 1.0, num_labels)
    labels = np.repeat(np.arange(num_labels), rng.integers(2, 15, num_labels))
    hits = rng.random(len(labels)) < ease[labels]
    return torch.from_numpy(labels), torch.from_numpy(hits.astype(np.float64))


def test_the_interval_covers_the_true_mean_and_that_of_single_images_does_not():
    rng, sets = np.random.default_rng(0), 300
    by_label = by_image = 0
    for i in range(sets):
        labels, hits = clustered(rng)
        low, high = intervals({"cmc@1": hits}, labels, samples=400, seed=i)["OVERALL"]["cmc@1"]
        by_label += low <= 0.6 <= high
        alone = torch.arange(len(labels))
        low, high = intervals({"cmc@1": hits}, alone, samples=400, seed=i)["OVERALL"]["cmc@1"]
        by_image += low <= 0.6 <= high
    tolerance = 3 * math.sqrt(0.95 * 0.05 / sets)
    assert abs(by_label / sets - 0.95) < tolerance
    assert by_image / sets < 0.8


def test_the_p_value_is_small_as_often_as_it_says():
    rng, sets, small = np.random.default_rng(1), 300, 0
    for i in range(sets):
        labels, a = clustered(rng)
        b = torch.from_numpy((rng.random(len(labels)) < 0.6).astype(np.float64))
        # a label's hits under b are independent of a; both have the mean 0.6
        small += paired_intervals({"m": a}, {"m": b}, labels, samples=400, seed=i)["OVERALL"]["m"].p <= 0.05
    assert abs(small / sets - 0.05) < 3 * math.sqrt(0.95 * 0.05 / sets)


def test_a_pair_that_shares_its_hard_labels_is_told_apart_better():
    rng = np.random.default_rng(2)
    labels, a = clustered(rng, 80)
    b = a.clone()
    changed = torch.from_numpy(rng.random(len(labels)) < 0.06) & (a == 0)
    b[changed] = 1.0
    low, high, p = paired_intervals({"m": a}, {"m": b}, labels)["OVERALL"]["m"]
    assert low < float((b - a).mean()) < high
    assert low > 0
    assert p == pytest.approx(2 / 1001)  # not one of 1000 samples at or below 0
    one, two = (intervals({"m": values}, labels)["OVERALL"]["m"] for values in (a, b))
    assert high - low < (one[1] - one[0]) / 3
    assert one[1] > two[0]  # side by side they overlap, and nothing could be said
    back = paired_intervals({"m": b}, {"m": a}, labels)["OVERALL"]["m"]
    assert back == pytest.approx((-high, -low, p))


def test_two_labels_worked_by_hand():
    # labels of one and of three queries: the samples are {0, 0}, {0, 1} twice and {1, 1}
    values, labels = torch.tensor([0.0, 1.0, 1.0, 0.5]), torch.tensor([4, 9, 9, 9])
    (block,) = bootstrap_means({"m": values}, labels, samples=4000)
    assert block.metrics == ["m"]
    assert block.groups.tolist() == [0]
    found, counts = np.unique(block.means.round(9), return_counts=True)
    assert found.tolist() == pytest.approx([0, 2.5 / 4, 2.5 / 3])
    assert (counts / 4000).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_equal_values_have_no_width_and_no_difference():
    labels = torch.arange(40) // 4
    same = {"m": torch.full((40,), 0.3)}
    low, high = intervals(same, labels)["OVERALL"]["m"]
    assert (low, high) == pytest.approx((0.3, 0.3), abs=1e-7)
    assert high - low < 1e-12
    assert paired_intervals(same, same, labels)["OVERALL"]["m"] == Paired(0.0, 0.0, 1.0)


def test_a_difference_that_is_rounding_is_none():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    third, whole = 1 / 3, [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    a, b = torch.tensor([third] * 6, dtype=torch.float64), torch.tensor(whole).double()
    found = paired_intervals({"m": a}, {"m": b + 1e-15}, labels)["OVERALL"]["m"]
    assert found == Paired(0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([], []),
        ([0.0, 1.0], [3, 3]),
        ([0.0, 1.0, math.nan], [3, 3, 4]),
        ([math.nan, math.nan], [3, 4]),
    ],
    ids=["no query", "one label", "one judged label", "nothing judged"],
)
def test_fewer_than_two_judged_labels_have_no_interval(values, labels):
    per_query, labels = {"m": torch.tensor(values)}, torch.tensor(labels, dtype=torch.int64)
    codes = torch.zeros_like(labels)
    expected = {"OVERALL": {"m": NAN}, "hat": {"m": NAN}, "shoe": {"m": NAN}}
    equal(intervals(per_query, labels, codes=codes, names=["shoe", "hat"]), expected)
    paired = paired_intervals(per_query, per_query, labels, codes=codes, names=["shoe", "hat"])
    equal(paired, {name: {"m": (math.nan,) * 3} for name in expected})


def test_a_label_in_two_categories_is_a_cluster_in_each():
    values, labels = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([1, 1, 2, 2])
    codes = torch.tensor([0, 1, 0, 1])
    found = intervals({"m": values}, labels, codes=codes, names=["a", "b"], samples=200)
    equal(found, {"OVERALL": {"m": (0.5, 0.5)}, "a": {"m": (0.0, 1.0)}, "b": {"m": (0.0, 1.0)}})


def test_draws_depend_on_the_seed_and_on_nothing_beside():
    rng = np.random.default_rng(3)
    labels, hits = clustered(rng)
    other = torch.rand(len(labels), generator=torch.Generator().manual_seed(0))
    gaps = other.masked_fill(other < 0.1, math.nan)
    codes = labels % 3
    alone = intervals({"m": hits}, labels)["OVERALL"]["m"]
    beside = intervals({"gaps": gaps, "x": other, "m": hits}, labels, codes=codes, names=["a", "b", "c"])
    assert beside["OVERALL"]["m"] == alone
    assert intervals({"m": hits}, labels, seed=1)["OVERALL"]["m"] != alone
    renamed = intervals({"m": hits}, labels * 5 - 40)["OVERALL"]["m"]  # other codes in the same order
    assert renamed == alone


@pytest.mark.parametrize("chunk", [1, 97, 5000])
def test_draws_do_not_depend_on_the_chunks(monkeypatch, chunk):
    rng = np.random.default_rng(4)
    labels, hits = clustered(rng)
    codes = torch.where(labels < 30, 0, labels % 7)
    words = {"codes": codes, "names": list("abcdefg"), "samples": 60}
    whole = intervals({"m": hits}, labels, **words)
    monkeypatch.setattr(bootstrap, "_CHUNK", chunk)
    equal(intervals({"m": hits}, labels, **words), whole)


def test_what_does_not_fit_is_refused():
    values, labels = {"m": torch.ones(2)}, torch.tensor([0, 1])
    for words, message in (
        ({"samples": 0}, "samples must be at least 1 and seed not negative, got 0 and 0"),
        ({"seed": -1}, "samples must be at least 1 and seed not negative, got 1000 and -1"),
        ({"confidence": 1}, "confidence must lie between 0 and 1, got 1"),
        ({"confidence": 95}, "confidence must lie between 0 and 1, got 95"),
        ({"codes": torch.tensor([0])}, "codes must have shape (2,), got (1,)"),
        (
            {"codes": torch.tensor([0, 1]), "names": ["a"]},
            "codes must lie in [-1, 0], the places of 1 groups",
        ),
        ({"names": ["OVERALL"]}, "a category may not be called 'OVERALL'"),
    ):
        for call in (intervals, lambda v, *rest, **w: paired_intervals(v, v, *rest, **w)):
            with pytest.raises(ValueError) as raised:
                call(values, labels, **words)
            assert str(raised.value) == message
    with pytest.raises(ValueError) as raised:
        intervals({"m": torch.ones(3)}, labels)
    assert str(raised.value) == "m must have shape (2,), got (3,)"
    with pytest.raises(ValueError) as raised:
        paired_intervals(values, {"m": torch.ones(3)}, labels)
    assert str(raised.value) == "m of a and b must have one shape"


@pytest.mark.long
@pytest.mark.parametrize(("num_labels", "share"), [(60, 0.94), (20, 0.92), (5, 0.83)])
def test_coverage_is_what_the_page_says(num_labels, share):
    rng, sets, covered = np.random.default_rng(5), 1500, 0
    for i in range(sets):
        labels, hits = clustered(rng, num_labels)
        low, high = intervals({"m": hits}, labels, samples=500, seed=i)["OVERALL"]["m"]
        covered += low <= 0.6 <= high
    assert covered / sets == pytest.approx(share, abs=0.02)


@pytest.mark.long
def test_thousands_of_categories_take_seconds():
    import time

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 20_000, (100_000,), generator=generator)
    values = {f"m{i}": torch.rand(100_000, generator=generator) for i in range(8)}
    started = time.monotonic()
    intervals(values, labels, codes=labels % 5000, names=[f"c{i}" for i in range(5000)])
    assert time.monotonic() - started < 30
