"""Health metrics against loops over pairs and a plain SVD, and against hand-worked cases."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import metricli.core.health as health
from metricli.core.catalogue import METRICS
from metricli.core.health import alignment, effective_rank, health_metrics, hubness, pcf, uniformity

TINY = 1e-4
"""A budget, in megabytes, of one or a few rows at a time."""
ASKED = {"pcf": [0.5, 0.9], "effective_rank": True, "alignment": True, "uniformity": True, "hubness": [1, 3]}
NAMES = ["pcf@0.5", "pcf@0.9", "effective_rank", "alignment", "uniformity", "hubness@1", "hubness@3"]


def test_these_are_all_the_health_metrics_there_are():
    assert [key for key, metric in METRICS.items() if metric.family == "health"] == list(ASKED)


def naive(x: np.ndarray, labels: list[int], found: list[list[int]], size: int) -> dict[str, float]:
    """Every health metric of rows `x` and of the results `found`, from its definition."""
    values = dict.fromkeys(NAMES, math.nan)
    if len(x) > 1 and len(np.unique(x, axis=0)) > 1:
        sigma = np.linalg.svd(x - x.mean(0), compute_uv=False)
        sigma = sigma[sigma > 1e-7 * sigma[0]]
        for share in ASKED["pcf"]:
            count = next(c for c in range(1, 99) if (sigma[:c] ** 2).sum() / (sigma**2).sum() > share - 1e-9)
            values[f"pcf@{share}"] = count / x.shape[1]
        p = sigma / sigma.sum()
        values["effective_rank"] = math.exp(-(p * np.log(p)).sum())
    unit = [row / np.linalg.norm(row) if row.any() else row for row in x]
    pairs = list(itertools.combinations(range(len(x)), 2))
    squared = {(i, j): ((unit[i] - unit[j]) ** 2).sum() for i, j in pairs}
    same = [squared[i, j] for i, j in pairs if labels[i] == labels[j]]
    if same:
        values["alignment"] = float(np.mean(same))
    if pairs:
        values["uniformity"] = math.log(np.mean([math.exp(-2 * d) for d in squared.values()]))
    for k in ASKED["hubness"]:
        times = [sum(item in row[:k] for row in found) for item in range(size)]
        if len(set(times)) > 1:
            mean = sum(times) / size
            spread = sum((n - mean) ** 2 for n in times) / size
            values[f"hubness@{k}"] = sum((n - mean) ** 3 for n in times) / size / spread**1.5
    return values


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 14),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([64, TINY]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 2**20),
)
def test_metrics_are_the_definitions_for_all_rows_and_each_category(
    num, dim, num_labels, num_categories, budget, dtype, seed
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (num, dim), generator=generator).to(dtype)  # zero and equal rows among them
    labels = torch.randint(0, num_labels, (num,), generator=generator)
    codes, query_codes = (torch.randint(-1, num_categories, (n,), generator=generator) for n in (num, 5))
    indices = torch.stack([torch.randperm(6, generator=generator)[:4] for _ in range(5)])
    indices[torch.arange(4) >= torch.randint(1, 5, (5, 1), generator=generator)] = -1
    found = health_metrics(
        x,
        labels,
        indices,
        6,
        codes=codes,
        query_codes=query_codes,
        num_categories=num_categories,
        budget_mb=budget,
        **ASKED,
    )
    assert list(found) == NAMES
    assert {(value.dtype, value.shape) for value in found.values()} == {
        (torch.float64, (1 + num_categories,))
    }
    for group in range(-1, num_categories):
        rows = torch.ones(num, dtype=torch.bool) if group < 0 else codes == group
        asking = torch.ones(5, dtype=torch.bool) if group < 0 else query_codes == group
        expected = naive(x[rows].double().numpy(), labels[rows].tolist(), indices[asking].tolist(), 6)
        got = {name: value[1 + group].item() for name, value in found.items()}
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-5, nan_ok=True)


def test_the_memory_budget_changes_nothing_and_float32_is_near_float64():
    x = torch.randn(101, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(101) % 20
    whole = [alignment(x, labels), uniformity(x), effective_rank(x), *pcf(x, [0.5, 0.9])]
    parts = [
        alignment(x, labels, budget_mb=0.02),
        uniformity(x, budget_mb=0.02),
        effective_rank(x, budget_mb=0.02),
        *pcf(x, [0.5, 0.9], budget_mb=0.02),
    ]
    assert parts == pytest.approx(whole, rel=1e-12)
    single = [alignment(x.float(), labels), uniformity(x.float()), effective_rank(x.float())]
    assert single == pytest.approx(whole[:3], rel=1e-6)
    rows = torch.tensor([7, 3, 100, 27, 23])
    assert alignment(x, labels, rows=rows) == pytest.approx(alignment(x[rows], labels[rows]), rel=1e-12)
    assert uniformity(x, rows=rows) == pytest.approx(uniformity(x[rows]), rel=1e-12)


def test_few_rows_in_many_dimensions_are_as_many_rows():
    x = torch.randn(9, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert effective_rank(x) == pytest.approx(
        effective_rank(x.repeat(4, 1)), rel=1e-6
    )  # 36 rows: the other way
    assert pcf(x, [0.3, 0.7]) == pcf(x.repeat(4, 1), [0.3, 0.7])


def test_directions_that_are_not_taken_add_no_rank():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(300, 2, generator=generator, dtype=torch.float64)).Q
    assert effective_rank(x @ basis.T) == pytest.approx(effective_rank(x), rel=1e-9)


def test_a_share_that_is_just_met_is_met():
    assert pcf(torch.eye(4, 10), [1 / 3, 0.34, 2 / 3]) == [0.1, 0.2, 0.2]  # three components alike
    assert effective_rank(torch.eye(4, 10)) == pytest.approx(3)


def test_what_is_undefined_is_nan():
    equal = torch.full((5, 3), 0.1)
    labels = torch.arange(5)
    for num in range(2, 12):  # whatever the rounding of their mean
        assert math.isnan(effective_rank(torch.full((num, 3), 0.1, dtype=torch.float64)))
    assert math.isnan(pcf(equal, [0.5])[0])
    assert math.isnan(alignment(equal, labels))  # no pair of one label
    assert uniformity(equal) == pytest.approx(0, abs=1e-6)
    assert math.isnan(uniformity(equal[:1]))
    assert math.isnan(hubness(torch.tensor([[0], [1]]), 2, 1))  # each found once: no skewness
    assert math.isnan(hubness(torch.zeros(0, 1, dtype=torch.int64), 3, 1))
    assert math.isnan(hubness(torch.full((2, 1), -1), 0, 1))
    for value in health_metrics(
        torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, 3).long(), 0, **ASKED
    ).values():
        assert value.isnan().all()


def test_far_from_the_origin_nothing_is_lost():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert effective_rank(x + 1e6) == pytest.approx(effective_rank(x), rel=1e-8)
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1e-9]], dtype=torch.float64))
    assert alignment(near, torch.zeros(2)) == pytest.approx(1e-18, rel=1e-6)


def test_bad_input_is_refused():
    x, labels, found = torch.ones(3, 2), torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64)
    for call, message in (
        (lambda: pcf(x, [1.0]), "pcf needs shares between 0 and 1, got 1.0"),
        (lambda: pcf(x / 0, [0.5]), "embeddings must be finite"),
        (lambda: uniformity(x / 0), "embeddings must be finite"),
        (lambda: alignment(x / 0, labels), "embeddings must be finite"),
        (lambda: alignment(x, labels[:2]), "labels must have shape (3,), got (2,)"),
        (lambda: hubness(found, 3, 5), "hubness@5 needs a search with k=5, got k=2"),
        (lambda: hubness(found, 3, 0), "k must be at least 1, got 0"),
        (lambda: health_metrics(x, labels, hubness=[1]), "hubness needs the `indices` of a search"),
        (
            lambda: health_metrics(x, labels, codes=torch.tensor([0, 1, 2]), num_categories=2, pcf=[0.5]),
            "codes must lie in [-1, 1]",
        ),
        (
            lambda: health_metrics(x, labels, codes=torch.tensor([0]), pcf=[0.5]),
            "codes must have shape (3,), got (1,)",
        ),
    ):
        with pytest.raises(ValueError) as raised:
            call()
        assert str(raised.value) == message
    with pytest.raises(TypeError, match=r"^'rankme' is no metric"):
        health_metrics(x, labels, rankme=True)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    monkeypatch.setattr(health, "_spectrum", None)
    monkeypatch.setattr(health, "uniformity", None)
    x, labels = torch.eye(2), torch.zeros(2)
    values = health_metrics(x, labels, alignment=True, uniformity=False, pcf=[], cmc=[1], eer=True)
    assert {name: value.tolist() for name, value in values.items()} == {"alignment": [2.0]}
