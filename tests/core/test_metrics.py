"""Metrics against loops written from the definitions, hand-worked cases, and the code of docs/metrics.md."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import metricli.core.metrics as metrics
from metricli.core.exclusion import Exclusion
from metricli.core.metrics import clipped, required_k, retrieval_metrics, summarize
from metricli.core.results import SearchResult
from metricli.core.retrieval import count_relevant, search

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def result_of(rows: list[list[int]]) -> SearchResult:
    indices = torch.tensor(rows)
    distances = torch.arange(indices.shape[1]).float().expand(indices.shape)
    return SearchResult(indices, distances.masked_fill(indices < 0, math.inf))


def naive(ranking: list[bool], n: int, name: str, k: int) -> float:
    """`ranking`: whether each item that the query can retrieve is relevant, nearest first."""
    if n == 0:
        return math.nan
    first = ranking[:k]
    total = 0.0
    for i, relevant in enumerate(first, start=1):
        if relevant:
            total += sum(first[:i]) / i
    hits = sum(first)
    return {
        "cmc": float(hits > 0),
        "precision": hits / min(k, len(ranking)),
        "precision_capped": hits / min(k, n),
        "map": total / min(k, n),
        "map_hits": total / hits if hits else 0.0,
    }[name]


NAMES = ["cmc", "precision", "precision_capped", "map", "map_hits"]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 20),
    st.integers(1, 4),
    st.lists(st.integers(1, 25), min_size=1, max_size=3, unique=True),
    st.integers(0, 2**20),
)
def test_metrics_are_the_loops(num, size, num_labels, ks, seed):
    generator = torch.Generator().manual_seed(seed)
    queries, gallery = (torch.randint(-2, 3, (n, 2), generator=generator).float() for n in (num, size))
    labels, others = (torch.randint(0, num_labels, (n,), generator=generator) for n in (num, size))
    ids, other_ids = (torch.randint(0, 9, (n,), generator=generator) for n in (num, size))
    rule = Exclusion(ids, other_ids)
    n = count_relevant(labels, others, rule)
    flags = {name: ks for name in NAMES} | {"map_r": True}
    result = search(queries, gallery, k=required_k(n, **flags), distance="euclidean", exclude=rule)
    found = retrieval_metrics(result, labels, others, n, **flags)
    assert list(found) == [f"{name}@{k}" for name in NAMES for k in ks] + ["map@r"]
    for i in range(num):
        order = sorted(
            (math.dist(queries[i].tolist(), gallery[j].tolist()), j)
            for j in range(size)
            if ids[i] != other_ids[j]
        )
        ranking = [bool(others[j] == labels[i]) for _, j in order]
        assert sum(ranking) == n[i]
        for name in NAMES:
            for k in ks:
                value = found[f"{name}@{k}"]
                assert value.dtype == torch.float64
                assert value[i].item() == pytest.approx(naive(ranking, sum(ranking), name, k), nan_ok=True)
        expected = naive(ranking, sum(ranking), "map", sum(ranking))
        assert found["map@r"][i].item() == pytest.approx(expected, nan_ok=True)


def test_a_ranking_worked_by_hand():
    # relevant at ranks 2, 3 and 6 of 6; a fourth relevant item lies beyond
    result = result_of([[0, 1, 2, 3, 4, 5]])
    found = retrieval_metrics(
        result,
        torch.tensor([1]),
        torch.tensor([0, 1, 1, 0, 0, 1, 1]),
        torch.tensor([4]),
        **{name: [1, 3, 6] for name in NAMES},
        map_r=True,
    )
    expected = {
        "cmc@1": 0, "cmc@3": 1, "cmc@6": 1,
        "precision@1": 0, "precision@3": 2 / 3, "precision@6": 3 / 6,
        "precision_capped@1": 0, "precision_capped@3": 2 / 3, "precision_capped@6": 3 / 4,
        "map@1": 0, "map@3": (1 / 2 + 2 / 3) / 3, "map@6": (1 / 2 + 2 / 3 + 3 / 6) / 4,
        "map_hits@1": 0, "map_hits@3": (1 / 2 + 2 / 3) / 2, "map_hits@6": (1 / 2 + 2 / 3 + 3 / 6) / 3,
        "map@r": (1 / 2 + 2 / 3) / 4,
    }  # fmt: skip
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)


def test_a_value_does_not_depend_on_the_largest_k_asked():
    labels, others, n = torch.tensor([1]), torch.tensor([0, 1, 1, 0, 1]), torch.tensor([3])
    result = result_of([[0, 1, 2, 3, 4]])
    alone = retrieval_metrics(result, labels, others, n, map=[2], map_hits=[2])
    beside = retrieval_metrics(result, labels, others, n, map=[2, 5], map_hits=[2, 5])
    assert {name: beside[name].item() for name in alone} == {name: v.item() for name, v in alone.items()}


def test_a_query_without_a_match_is_nan_and_leaves_the_mean():
    result = result_of([[0, 1], [1, 0]])
    found = retrieval_metrics(
        result, torch.tensor([5, 9]), torch.tensor([5, 5]), torch.tensor([2, 0]), cmc=[1], map_r=True
    )
    assert found["cmc@1"].tolist() == pytest.approx([1.0, math.nan], nan_ok=True)
    assert summarize(found) == {"OVERALL": {"cmc@1": 1.0, "map@r": 1.0}}


def test_k_is_clipped_to_what_each_query_can_retrieve():
    result = result_of([[0, 1, 2], [0, -1, -1]])
    found = retrieval_metrics(
        result,
        torch.tensor([1, 1]),
        torch.tensor([1, 0, 1]),
        torch.tensor([2, 1]),
        precision=[3],
        precision_capped=[3],
    )
    assert found["precision@3"].tolist() == [2 / 3, 1.0]
    assert found["precision_capped@3"].tolist() == [1.0, 1.0]
    assert clipped([1, 5, 3, 5, 9], 3) == [5, 9]
    assert clipped([1, 3], 3) == []


def test_an_empty_gallery_and_no_queries():
    none = torch.zeros(0, dtype=torch.int64)
    n = count_relevant(torch.tensor([1]), none)
    result = search(torch.ones(1, 2), torch.ones(0, 2), k=required_k(n, cmc=[3], map_r=True))
    found = retrieval_metrics(result, torch.tensor([1]), none, n, cmc=[3], map_r=True)
    assert [math.isnan(value.item()) for value in found.values()] == [True, True]
    result = search(torch.ones(0, 2), torch.ones(1, 2), k=required_k(none, map_r=True))
    found = retrieval_metrics(result, none, torch.tensor([1]), none, map_r=True)
    assert found["map@r"].shape == (0,)
    assert math.isnan(summarize(found)["OVERALL"]["map@r"])


def test_values_do_not_depend_on_how_many_queries_are_judged_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels, others = (torch.randint(0, 4, (n,), generator=generator) for n in (23, 31))
    n = count_relevant(labels, others)
    rows = torch.stack([torch.randperm(31, generator=generator) for _ in range(23)])
    flags = {"map": [5], "map_r": True}
    whole = retrieval_metrics(result_of(rows.tolist()), labels, others, n, **flags)
    monkeypatch.setattr(metrics, "_CHUNK", 1)
    parts = retrieval_metrics(result_of(rows.tolist()), labels, others, n, **flags)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_required_k():
    n = torch.tensor([3, 11, 0])
    assert required_k(n, cmc=[1, 5], map=[7]) == 7
    assert required_k(n, cmc=[1, 5], map_r=True) == 11
    assert required_k(n, cmc=[20], map_r=True) == 20
    assert required_k(torch.zeros(0), map_r=True) == 1
    with pytest.raises(ValueError) as raised:
        required_k(n, cmc=[0, 1])
    assert str(raised.value) == "k must be at least 1, got 0"


def test_a_search_that_is_too_shallow_is_refused():
    words = (result_of([[0, 1]]), torch.tensor([1]), torch.tensor([1, 1, 1]), torch.tensor([3]))
    for flags in ({"map_r": True}, {"cmc": [3]}):
        with pytest.raises(ValueError) as raised:
            retrieval_metrics(*words, **flags)
        assert str(raised.value) == "these metrics need a search with k=3, got k=2"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 30), st.integers(0, 5), st.integers(0, 2**20))
def test_summarize_is_the_loop(num, num_names, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(num, generator=generator, dtype=torch.float64)
    values[torch.rand(num, generator=generator) < 0.3] = math.nan
    codes = torch.randint(-1, num_names, (num,), generator=generator) if num_names else torch.full((num,), -1)
    names = [f"c{(7 * i) % 5}" for i in range(num_names)]
    table = summarize({"cmc@1": values}, codes, names)
    assert list(table) == ["OVERALL", *sorted(names)]
    for name, row in table.items():
        members: Tensor = values if name == "OVERALL" else values[codes == names.index(name)]
        judged = [v for v in members.tolist() if not math.isnan(v)]
        expected = sum(judged) / len(judged) if judged else math.nan
        assert isinstance(row["cmc@1"], float)
        assert row == pytest.approx({"cmc@1": expected}, nan_ok=True)


def test_summarize_refuses_codes_without_a_name():
    values = {"cmc@1": torch.ones(2)}
    for codes, names, message in (
        (torch.tensor([0, 2]), ["a", "b"], "codes must lie in [-1, 1], the places of the 2 names"),
        (torch.tensor([0]), ["a"], "codes must have shape (2,), got (1,)"),
        (torch.tensor([0, 0]), ["OVERALL"], "a category may not be called 'OVERALL'"),
    ):
        with pytest.raises(ValueError) as raised:
            summarize(values, codes, names)
        assert str(raised.value) == message


def test_the_code_of_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {})
