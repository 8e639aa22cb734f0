"""Metrics against loops written from the definitions, hand-worked cases, and the code of docs/metrics.md."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import metricli.core.metrics as metrics
from metricli.core.catalogue import METRICS, printed
from metricli.core.exclusion import Exclusion
from metricli.core.metrics import (
    asked_for,
    clipped,
    cutoffs,
    required_k,
    retrieval_metrics,
    summarize,
    zero_unmatched,
)
from metricli.core.results import SearchResult
from metricli.core.retrieval import count_relevant, search

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def result_of(rows: list[list[int]]) -> SearchResult:
    indices = torch.tensor(rows)
    distances = torch.arange(indices.shape[1]).float().expand(indices.shape)
    return SearchResult(indices, distances.masked_fill(indices < 0, math.inf))


def naive(ranking: list[bool], n: int, name: str, k: int) -> float:
    """`ranking`: whether each item that is retrieved is relevant, nearest first; `n` are to be found."""
    if n == 0:
        return math.nan
    first = ranking[:k]
    hits, total, gain = sum(first), 0.0, 0.0
    for i, relevant in enumerate(first, start=1):
        if relevant:
            total += sum(first[:i]) / i
            gain += 1 / math.log2(i + 1)
    if name == "cmc":
        return float(hits > 0)
    if name == "precision":
        return hits / len(first) if first else 0.0
    if name == "precision_capped":
        return hits / min(len(first), n) if first else 0.0
    if name == "recall":
        return hits / n
    if name == "map":
        return total / min(k, n)
    if name == "map_hits":
        return total / hits if hits else 0.0
    assert name == "ndcg"
    return gain / sum(1 / math.log2(i + 1) for i in range(1, min(k, n) + 1))


def naive_whole(ranking: list[bool], n: int, name: str) -> float:
    """The metrics without a k, from the whole ranking or, after a cut, all that is retrieved."""
    if n == 0:
        return math.nan
    if name == "map@r":
        return naive(ranking, n, "map", n)
    if name == "r_precision":
        return sum(ranking[:n]) / n
    ranks = [i for i, relevant in enumerate(ranking, start=1) if relevant]
    if name == "mrr":
        return 1 / ranks[0] if ranks else 0.0
    assert name == "minp"
    return n / ranks[-1] if len(ranks) == n else 0.0


NAMES = ["cmc", "precision", "precision_capped", "recall", "map", "map_hits", "ndcg"]
FLAGS = {"map_r": "map@r", "r_precision": "r_precision", "mrr": "mrr", "minp": "minp"}


def test_these_are_all_the_ranking_metrics_there_are():
    listed = [key for key, metric in METRICS.items() if metric.family == "ranking"]
    assert listed == [*NAMES, *FLAGS]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 20),
    st.integers(1, 4),
    st.lists(st.integers(1, 25), min_size=1, max_size=3, unique=True),
    st.sampled_from(["whole", "cut", "narrow cut", "ranks"]),
    st.integers(0, 2**20),
)
def test_metrics_are_the_loops(num, size, num_labels, ks, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    queries, gallery = (torch.randint(-2, 3, (n, 2), generator=generator).float() for n in (num, size))
    labels, others = (torch.randint(0, num_labels, (n,), generator=generator) for n in (num, size))
    ids, other_ids = (torch.randint(0, 9, (n,), generator=generator) for n in (num, size))
    rule = Exclusion(ids, other_ids)
    n = count_relevant(labels, others, rule)
    flags = {name: ks for name in NAMES} | dict.fromkeys(FLAGS, True)
    depth = required_k(n, **flags)
    result = search(queries, gallery, k=max(size, depth), distance="euclidean", exclude=rule)
    rankings = [
        [bool(others[j] == labels[i]) for _, j in sorted(
            (math.dist(queries[i].tolist(), gallery[j].tolist()), j)
            for j in range(size)
            if ids[i] != other_ids[j]
        )]
        for i in range(num)
    ]  # fmt: skip
    assert [sum(ranking) for ranking in rankings] == n.tolist()
    first = last = None
    if kind == "ranks":  # the columns end where the metrics at k need no more
        result = SearchResult(result.indices[:, :depth], result.distances[:, :depth])
        ranks = [[i for i, relevant in enumerate(each, start=1) if relevant] or [0] for each in rankings]
        first, last = torch.tensor([each[0] for each in ranks]), torch.tensor([each[-1] for each in ranks])
    elif kind != "whole":
        kept = torch.randint(0, size + 1, (num, 1), generator=generator)
        indices = result.indices.masked_fill(torch.arange(result.indices.shape[1]) >= kept, -1)
        width = int(kept.max()) if kind == "narrow cut" else indices.shape[1]
        result = SearchResult(indices[:, :width], result.distances[:, :width], cut=True)
        rankings = [each[: int(rows)] for each, rows in zip(rankings, kept, strict=True)]
    found = retrieval_metrics(result, labels, others, n, first=first, last=last, **flags)
    assert list(found) == [f"{name}@{k}" for name in NAMES for k in ks] + [*FLAGS.values()]
    assert {value.dtype for value in found.values()} == {torch.float64}
    for i, ranking in enumerate(rankings):
        expected = {f"{name}@{k}": naive(ranking, int(n[i]), name, k) for name in NAMES for k in ks}
        expected |= {name: naive_whole(ranking, int(n[i]), name) for name in FLAGS.values()}
        assert {name: value[i].item() for name, value in found.items()} == pytest.approx(
            expected, nan_ok=True
        )


def test_a_ranking_worked_by_hand():
    # relevant at ranks 2, 3 and 6 of 6; a fourth relevant item lies beyond, at rank 9
    result = result_of([[0, 1, 2, 3, 4, 5]])
    found = retrieval_metrics(
        result,
        torch.tensor([1]),
        torch.tensor([0, 1, 1, 0, 0, 1, 1]),
        torch.tensor([4]),
        last=torch.tensor([9]),
        **{name: [1, 3, 6] for name in NAMES},
        **dict.fromkeys(FLAGS, True),
    )
    dcg = [1, 1 / math.log2(3), 1 / 2, 1 / math.log2(5), 1 / math.log2(6), 1 / math.log2(7)]
    expected = {
        "cmc@1": 0, "cmc@3": 1, "cmc@6": 1,
        "precision@1": 0, "precision@3": 2 / 3, "precision@6": 3 / 6,
        "precision_capped@1": 0, "precision_capped@3": 2 / 3, "precision_capped@6": 3 / 4,
        "recall@1": 0, "recall@3": 2 / 4, "recall@6": 3 / 4,
        "map@1": 0, "map@3": (1 / 2 + 2 / 3) / 3, "map@6": (1 / 2 + 2 / 3 + 3 / 6) / 4,
        "map_hits@1": 0, "map_hits@3": (1 / 2 + 2 / 3) / 2, "map_hits@6": (1 / 2 + 2 / 3 + 3 / 6) / 3,
        "ndcg@1": 0, "ndcg@3": (dcg[1] + dcg[2]) / sum(dcg[:3]),
        "ndcg@6": (dcg[1] + dcg[2] + dcg[5]) / sum(dcg[:4]),
        "map@r": (1 / 2 + 2 / 3) / 4, "r_precision": 2 / 4, "mrr": 1 / 2, "minp": 4 / 9,
    }  # fmt: skip
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)


def test_ranks_of_the_distances_are_asked_for_only_where_the_columns_do_not_tell():
    labels, others, n = torch.tensor([1, 1, 5]), torch.tensor([1, 0, 0, 1]), torch.tensor([2, 2, 0])
    result = result_of([[0, 1], [2, 1], [0, 1]])  # first hit at 1; none in the columns; no match at all
    words = (result, labels, others, n)
    found = retrieval_metrics(
        *words, first=torch.tensor([7, 3, 0]), last=torch.tensor([4, 4, 0]), mrr=True, minp=True
    )
    assert found["mrr"].tolist() == pytest.approx([1, 1 / 3, math.nan], nan_ok=True)
    assert found["minp"].tolist() == pytest.approx([2 / 4, 2 / 4, math.nan], nan_ok=True)
    cut = (replace(result, cut=True), labels, others, n)
    assert retrieval_metrics(*cut, mrr=True)["mrr"].tolist() == pytest.approx([1, 0, math.nan], nan_ok=True)
    whole = (result_of([[0, 3], [3, 0], [0, 1]]), labels, others, n)
    assert retrieval_metrics(*whole, minp=True)["minp"].tolist() == pytest.approx(
        [1, 1, math.nan], nan_ok=True
    )
    for flags, message in (
        ({"mrr": True}, "mrr needs the ranks `first`: the search's 2 columns do not tell"),
        ({"minp": True}, "minp needs the ranks `last`: the search's 2 columns do not tell"),
        (
            {"mrr": True, "first": torch.tensor([1, 2, 0])},
            "`first` lies within 2 columns that do not hold the item",
        ),
        (
            {"minp": True, "last": torch.tensor([2, 4, 0])},
            "`last` lies within 2 columns that do not hold the item",
        ),
    ):
        with pytest.raises(ValueError) as raised:
            retrieval_metrics(*words, **flags)
        assert str(raised.value) == message


def test_a_key_that_is_no_metric_is_named_and_other_families_are_passed_over():
    words = (result_of([[0]]), torch.tensor([1]), torch.tensor([1]), torch.tensor([1]))
    asked = {"cmc": [1], "recall": [], "eer": True, "fnmr": [0.1], "pcf": [0.5], "hubness": [9], "mrr": False}
    assert list(retrieval_metrics(*words, **asked)) == ["cmc@1"]
    assert required_k(torch.tensor([1]), **asked) == 9  # hubness counts in a search, too
    assert cutoffs(asked | {"recall": [4, 1]}) == [1, 4, 9]
    with pytest.raises(TypeError, match=r"^'cnc' is no metric; there are cmc, precision, .*, hubness$"):
        retrieval_metrics(*words, cnc=[1])
    with pytest.raises(TypeError, match=r"^'cnc' is no metric"):
        required_k(torch.tensor([1]), cnc=[1])
    assert [each.name for each in asked_for(asked, "verification")] == ["fnmr@0.1", "eer"]


def test_a_value_does_not_depend_on_the_largest_k_asked():
    labels, others, n = torch.tensor([1]), torch.tensor([0, 1, 1, 0, 1]), torch.tensor([3])
    result = result_of([[0, 1, 2, 3, 4]])
    alone = retrieval_metrics(result, labels, others, n, **{name: [2] for name in NAMES}, map_r=True)
    beside = retrieval_metrics(
        result, labels, others, n, **{name: [2, 5] for name in NAMES}, **dict.fromkeys(FLAGS, True)
    )
    assert {name: beside[name].item() for name in alone} == {name: v.item() for name, v in alone.items()}


def test_a_query_without_a_match_is_nan_and_leaves_the_mean():
    result = result_of([[0, 1], [1, 0]])
    found = retrieval_metrics(
        result, torch.tensor([5, 9]), torch.tensor([5, 5]), torch.tensor([2, 0]), cmc=[1], map_r=True
    )
    assert found["cmc@1"].tolist() == pytest.approx([1.0, math.nan], nan_ok=True)
    assert summarize(found) == {"OVERALL": {"cmc@1": 1.0, "map@r": 1.0}}
    assert summarize(zero_unmatched(found)) == {"OVERALL": {"cmc@1": 0.5, "map@r": 0.5}}
    assert zero_unmatched(found)["cmc@1"].tolist() == [1.0, 0.0]
    assert math.isnan(found["cmc@1"][1])  # what was given stays


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
    assert retrieval_metrics(result, none, torch.tensor([1]), none, ndcg=[1])["ndcg@1"].shape == (0,)
    assert math.isnan(summarize(found)["OVERALL"]["map@r"])


def test_values_do_not_depend_on_how_many_queries_are_judged_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels, others = (torch.randint(0, 4, (n,), generator=generator) for n in (23, 31))
    n = count_relevant(labels, others)
    rows = torch.stack([torch.randperm(31, generator=generator) for _ in range(23)])
    flags = {name: [5] for name in NAMES} | dict.fromkeys(FLAGS, True)
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


def test_the_code_of_the_page_runs_and_works_every_metric():
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 19
    code = "\n".join(blocks)
    exec(compile(code, str(PAGE), "exec"), {})
    for key, metric in METRICS.items():
        assert re.search(rf"\b{key}=", code), key
        shown = printed(key) if metric.takes is None else f"{key}@{metric.takes.replace('share', 'x')}"
        assert re.search(rf"^\| `{shown}` \|", text, re.MULTILINE), shown
