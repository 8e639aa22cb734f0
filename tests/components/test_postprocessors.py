"""Thresholds and embeddings moved, against loops and OML; bad parameters; all in one list."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metricli.components.postprocessors import (
    AdaptiveThreshold,
    ConstantThreshold,
    DatabaseAugmentation,
    KReciprocal,
    PairwiseReranker,
    PCAWhitening,
    QueryExpansion,
)
from metricli.core.exclusion import NOTHING, Exclusion
from metricli.core.expansion import expand
from metricli.core.rankings import Rankings
from metricli.core.results import SearchResult
from metricli.core.retrieval import search
from metricli.core.whitening import Whitening
from tests.components.ranked import Far, listed, oml_modules, one_versus_rest, rankings_of, rows_of


@pytest.fixture(scope="module")
def oml() -> Any:
    return oml_modules()


def test_constant_threshold():
    threshold = ConstantThreshold(max_distance=0.5, top_n=None)
    cut = threshold(listed([0.1, 0.5, 0.6], [0.7, 0.8], [0.1, 0.2, 0.3, 0.4, 0.5], [])).result
    assert rows_of(cut) == [[0, 1], [], [0, 1, 2, 3, 4], []]
    assert cut.cut
    assert bool((cut.distances.isinf() == (cut.indices < 0)).all())
    assert threshold.notes == [
        "1 of 4 queries retrieve nothing within max_distance 0.5",
        "for 1 of 4 queries all of the 5 items looked at are kept (top_n); those behind them are not "
        "retrieved",
    ]
    threshold(listed([0.1, 0.9]))
    assert threshold.notes == []


def test_adaptive_threshold_by_hand():
    # gaps 1 1 4 1, 2, none: their mean is 9 / 5 = 1.8
    given = listed([0.0, 1.0, 2.0, 6.0, 7.0], [5.0, 7.0], [3.0], [])
    assert rows_of(AdaptiveThreshold(n_std=2, top_n=None)(given).result) == [[0, 1, 2], [0, 1], [0], []]
    assert rows_of(AdaptiveThreshold(n_std=1, top_n=None)(given).result) == [[0, 1, 2], [0], [0], []]
    assert rows_of(AdaptiveThreshold(n_std=0, top_n=None)(given).result) == [[0], [0], [0], []]
    assert AdaptiveThreshold(n_std=2, top_n=None)(given).result.cut
    assert rows_of(AdaptiveThreshold(n_std=1, top_n=None)(listed([0.0, 1.0, 2.0])).result) == [
        [0, 1, 2]
    ]  # none is larger


def test_adaptive_threshold_without_a_gap():
    threshold = AdaptiveThreshold(n_std=1, top_n=None)
    assert rows_of(threshold(listed([1.0], [])).result) == [[0], []]
    assert threshold.notes == ["no query retrieves two items, so there is no gap to cut at"]


def test_adaptive_threshold_says_where_rankings_end():
    # gaps 1 1 4 1, 2 and 1 1 1 1: their mean is 13 / 9
    threshold = AdaptiveThreshold(n_std=1.5, top_n=None)
    given = listed([0.0, 1.0, 2.0, 6.0, 7.0], [5.0, 7.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert rows_of(threshold(given).result) == [[0, 1, 2], [0, 1], [0, 1, 2, 3, 4]]
    assert threshold.notes == [
        "1 of 3 rankings end at a gap above n_std 1.5 times the mean gap 1.444",
        "for 1 of 3 queries all of the 5 items looked at are kept (top_n); those behind them are not "
        "retrieved",
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda top_n: ConstantThreshold(max_distance=0.2, top_n=top_n),
        lambda top_n: AdaptiveThreshold(n_std=3, top_n=top_n),
    ],
)
@pytest.mark.parametrize("before", [None, KReciprocal(k1=8, k2=3, top_n=15)])
def test_a_threshold_does_not_depend_on_the_columns_asked_for(make, before):
    found = []
    for k in (2, 20, 45):
        given = rankings_of(k=k) if before is None else before(rankings_of(k=k))
        found.append(rows_of(make(20)(given).result))
    assert found[0] == found[1] == found[2]
    assert len({len(row) for row in found[0]}) > 1
    assert max(map(len, found[0])) <= 20
    given = rankings_of(k=45)
    if before is None:  # the naive one: the first 20 of the whole order, cut
        alone = make(None)(rankings_of(k=20)).result
        assert found[0] == rows_of(alone)
    assert make(20)(given).result.indices.shape == (12, 45)


def test_a_threshold_says_what_lies_behind_its_top_n():
    given = listed([0.1, 0.2, 0.3], [0.1, 0.2], [0.1, 0.9, 1.0], [0.1, 0.2, 0.9])
    threshold = ConstantThreshold(max_distance=0.5, top_n=2)
    assert rows_of(threshold(given).result) == [[0, 1], [0, 1], [0], [0, 1]]
    assert threshold.notes == [
        "for 2 of 4 queries all of the 2 items looked at are kept (top_n); those behind them are not "
        "retrieved"
    ]
    whole = rankings_of(k=2)
    threshold = ConstantThreshold(max_distance=2.0)  # 60 items, and all are kept
    assert threshold(whole).result.indices.shape == (12, 60)
    assert threshold.notes == []


def oml_lists(result: SearchResult) -> Any:
    from oml.retrieval.retrieval_results import RetrievalResults

    there = result.indices >= 0
    return RetrievalResults(
        [d[t] for d, t in zip(result.distances, there, strict=True)],
        [i[t] for i, t in zip(result.indices, there, strict=True)],
    )


@pytest.mark.parametrize("at", [0.05, 0.2, 0.7])
def test_constant_threshold_is_oml_s(oml, at):
    given = rankings_of(20, 80, 12)
    theirs = oml[0].ConstantThresholding(th=at).process(oml_lists(given.result))
    ours = ConstantThreshold(max_distance=at, top_n=None)(given).result
    assert rows_of(ours) == [row.tolist() for row in theirs.retrieved_ids]


@pytest.mark.parametrize("n_std", [0.5, 1.5, 3.0])
def test_adaptive_threshold_is_oml_s(oml, n_std):
    given = rankings_of(20, 80, 12)
    theirs = oml[0].AdaptiveThresholding(n_std=n_std).process(oml_lists(given.result))
    ours = AdaptiveThreshold(n_std=n_std, top_n=None)(given).result
    assert rows_of(ours) == [row.tolist() for row in theirs.retrieved_ids]
    assert len({len(row) for row in rows_of(ours)}) > 1


def test_query_expansion_moves_the_queries_alone_and_searches_anew():
    given = rankings_of(k=5)
    moved = QueryExpansion(k=3, alpha=2.0)(given)
    expected = expand(given.queries, given.gallery, given.neighbours(3).indices, alpha=2.0, distance="cosine")
    assert torch.equal(moved.queries, expected)
    assert moved.gallery is given.gallery
    assert torch.equal(moved.result.indices, search(expected, given.gallery, k=5).indices)
    assert torch.allclose(moved.queries.norm(dim=1), torch.ones(12))


def test_query_expansion_never_takes_what_a_query_may_not_find():
    sequences = torch.arange(40) // 4
    given = one_versus_rest(sequences=sequences)
    poisoned = given.gallery.clone()
    poisoned[:4] = 1e6  # the first query's own sequence, itself among it
    found = QueryExpansion(k=5, alpha=1.0)(given.moved(queries=given.queries.clone(), gallery=poisoned))
    clean = QueryExpansion(k=5, alpha=1.0)(given)
    assert torch.equal(found.queries[:4], clean.queries[:4])


def test_query_expansion_says_where_items_are_few():
    ids = torch.arange(4)
    rows = rankings_of(0, 4).gallery
    post = QueryExpansion(k=4, alpha=0.0)
    found = post(Rankings(rows, rows, "cosine", Exclusion(ids, ids), 2))
    assert post.notes == [
        "4 of 4 queries have fewer than k 4 items to be expanded with; they take what there is"
    ]
    unit = rows / rows.norm(dim=1, keepdim=True)
    mean = unit.sum(0) / unit.sum(0).norm()
    assert torch.allclose(found.queries, mean.expand(4, -1), atol=1e-6)


def test_database_augmentation():
    given = rankings_of(k=5, distance="euclidean")
    found = DatabaseAugmentation(k=2, alpha=1.0)(given)
    away = torch.cdist(given.gallery, given.gallery).fill_diagonal_(torch.inf)
    nearest = away.topk(2, largest=False).indices
    expected = expand(given.gallery, given.gallery, nearest, alpha=1.0, distance="euclidean")
    assert torch.allclose(found.gallery, expected)
    assert found.queries is given.queries
    post = DatabaseAugmentation(k=9, alpha=0.0)
    post(rankings_of(2, 5))
    assert post.notes == ["k 9 is more than the 4 other items of the gallery; it is clipped to them"]
    assert torch.equal(post(rankings_of(2, 1)).gallery, rankings_of(2, 1).gallery)


def test_database_augmentation_refuses_to_mix_queries_in():
    with pytest.raises(ValueError, match="40 of 40 queries are gallery items"):
        DatabaseAugmentation(k=3)(one_versus_rest())
    given = rankings_of(4, 20, exclude=Exclusion(torch.tensor([1, 2, 50, 51]), torch.arange(20)))
    with pytest.raises(ValueError, match="2 of 4 queries are gallery items"):
        DatabaseAugmentation(k=3)(given)
    rows = rankings_of(0, 9).gallery
    with pytest.raises(ValueError, match="9 of 9 queries are gallery items"):
        DatabaseAugmentation(k=3)(Rankings(rows, rows, "cosine", NOTHING, 3))


def test_database_augmentation_says_that_a_sequence_is_mixed_in():
    codes = Exclusion(
        query_sequences=torch.tensor([7, -1, 8, 7]), gallery_sequences=torch.tensor([7, -1, *[3] * 18])
    )
    post = DatabaseAugmentation(k=3)
    post(rankings_of(4, 20, exclude=codes))
    assert post.notes == [
        "2 of 4 queries have images of their own sequence in the gallery; they may not be found, but "
        "database_augmentation mixes them into items that may be"
    ]


def test_pca_whitening():
    given = rankings_of(k=5)
    post = PCAWhitening(dim=3, eps=1e-4)
    found = post(given)
    whitening = Whitening.fit(given.gallery, 3, eps=1e-4, distance="cosine")
    assert torch.equal(found.gallery, whitening.apply(given.gallery))
    assert torch.equal(found.queries, whitening.apply(given.queries))
    assert post.notes == [
        "pca_whitening is fitted on the gallery of 60 items that is searched; another gallery would "
        "give other distances"
    ]
    same = PCAWhitening()(one_versus_rest())
    assert same.queries is same.gallery
    assert same.gallery.shape == (40, 6)
    assert PCAWhitening()(rankings_of(3, 4)).gallery.shape == (4, 3)


@pytest.mark.parametrize("post", [QueryExpansion(k=2), DatabaseAugmentation(k=2), PCAWhitening()])
def test_an_order_that_is_lost_is_said(post):
    given = rankings_of()
    moved = post(given.reordered(given.result))
    assert moved.found is None
    assert post.notes[0].endswith("searches anew: the order that was made before it is lost")


def test_pca_whitening_refuses():
    with pytest.raises(ValueError, match="dim 7 is above the 6 dimensions"):
        PCAWhitening(dim=7)(rankings_of())
    with pytest.raises(ValueError, match="needs two gallery items or more, got 1"):
        PCAWhitening()(rankings_of(2, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantThreshold(max_distance=-0.1), "max_distance must be at least 0, got -0.1"),
        (lambda: ConstantThreshold(max_distance=float("nan")), "max_distance must be at least 0, got nan"),
        (lambda: AdaptiveThreshold(n_std=-1), "n_std must be at least 0, got -1"),
        (lambda: AdaptiveThreshold(n_std=float("inf")), "n_std must be at least 0, got inf"),
        (lambda: AdaptiveThreshold(n_std=1, top_n=0), "top_n must be at least 1, got 0"),
        (lambda: ConstantThreshold(max_distance=1, top_n=0), "top_n must be at least 1, got 0"),
        (lambda: KReciprocal(k1=0), "k1 must be at least 1, got 0"),
        (lambda: KReciprocal(k2=0), "k2 must be at least 1, got 0"),
        (lambda: KReciprocal(k1=3, k2=4), "k2 must be at most k1, got k2 4 and k1 3"),
        (lambda: KReciprocal(top_n=0), "top_n must be at least 1, got 0"),
        (lambda: KReciprocal(lambda_value=1.1), "lambda_value must be from 0 to 1, got 1.1"),
        (lambda: QueryExpansion(k=0), "k must be at least 1, got 0"),
        (lambda: QueryExpansion(k=1, alpha=-1), "alpha must be at least 0, got -1"),
        (lambda: DatabaseAugmentation(k=1, alpha=float("nan")), "alpha must be at least 0, got nan"),
        (lambda: PCAWhitening(dim=0), "dim must be at least 1, got 0"),
        (lambda: PCAWhitening(eps=-1), "eps must be at least 0, got -1"),
        (lambda: PairwiseReranker(Far(), top_n=0), "top_n must be at least 1, got 0"),
        (lambda: PairwiseReranker(Far(), top_n=1, batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: PairwiseReranker(Far(), top_n=1, inputs="text"), "inputs must be 'embeddings' or 'images'"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_all_in_one_list():
    given = rankings_of(k=12)
    for post in (
        PCAWhitening(dim=5),
        DatabaseAugmentation(k=3, alpha=1.0),
        QueryExpansion(k=3, alpha=1.0),
        KReciprocal(k1=8, k2=3, top_n=20),
        PairwiseReranker(Far(), top_n=15),
        AdaptiveThreshold(n_std=3.0, top_n=None),
        ConstantThreshold(max_distance=0.9, top_n=7),
    ):
        given = post(given)
        result = given.result
        assert bool((result.indices >= 0).eq(result.distances.isfinite()).all())
        steps = result.distances.masked_fill(result.indices < 0, 1e9).diff()
        assert bool((steps >= 0).all())
        assert all(len(set(row)) == len(row) for row in rows_of(result))
    assert given.result.indices.shape == (12, 20)
