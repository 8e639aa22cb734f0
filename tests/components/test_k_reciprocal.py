"""k-reciprocal re-ranking as a postprocessor; its maths are tested in tests/core/test_reranking.py."""

from __future__ import annotations

import pytest
import torch

from metricli.components.postprocessors import ConstantThreshold, KReciprocal
from metricli.core.exclusion import NOTHING, Exclusion
from metricli.core.rankings import Rankings
from metricli.core.retrieval import search
from tests.components.ranked import one_versus_rest, rankings_of, rows_of


def test_k_reciprocal_does_not_depend_on_the_columns_asked_for():
    deep = KReciprocal(k1=8, k2=3, top_n=30)(rankings_of(k=5))
    assert deep.k == 30
    wide = KReciprocal(k1=8, k2=3, top_n=30)(rankings_of(k=45))
    assert torch.equal(deep.result.indices, wide.result.indices[:, :30])
    assert not torch.equal(deep.result.indices, rankings_of(k=30).result.indices)
    before = rankings_of(k=45).result
    assert torch.equal(wide.result.indices[:, 30:], before.indices[:, 30:])
    assert bool((wide.result.distances.diff() >= 0).all())
    assert torch.equal(wide.result.indices.sort(1).values, before.indices.sort(1).values)


def test_k_reciprocal_without_top_n_takes_the_columns():
    found = KReciprocal(k1=8, k2=3, top_n=None)(rankings_of(k=7))
    assert found.result.indices.shape == (12, 7)


def test_k_reciprocal_with_lambda_1_is_the_plain_order():
    given = rankings_of(k=20)
    found = KReciprocal(lambda_value=1.0, top_n=20)(given).result
    assert torch.equal(found.indices, given.result.indices)


def test_k_reciprocal_finds_the_cluster_that_a_stray_item_hides():
    """Clusters of 6 and one stray item near the query that none of them has as a neighbour."""
    angles = torch.tensor(
        [0.0, *(0.30 + 0.01 * i for i in range(6)), -0.28, *(2.0 + 0.02 * i for i in range(6))]
    )
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    given = Rankings(rows[:1], rows[1:], "cosine", NOTHING, 13)
    assert given.result.indices[0, 0] == 6
    found = KReciprocal(k1=6, k2=1, lambda_value=0.1, top_n=13)(given).result
    assert set(found.indices[0, :6].tolist()) == set(range(6))


def test_k_reciprocal_in_one_versus_rest_respects_what_may_not_be_found():
    sequences = torch.arange(40) // 3
    given = one_versus_rest(k=40, sequences=sequences)
    post = KReciprocal(k1=6, k2=3, top_n=40)
    found = post(given).result
    assert post.notes == []
    for query, row in enumerate(rows_of(found)):
        assert sorted(row) == [i for i in range(40) if sequences[i] != sequences[query]]
    # the graph is over 40 images, not 80: each is its own first neighbour, once
    nearest = search(given.gallery, given.gallery, k=40)
    assert torch.equal(found.distances[0].isinf(), found.indices[0] < 0)
    assert nearest.indices[:, 0].tolist() == list(range(40))


def test_k_reciprocal_does_not_double_images_of_both_sides():
    given = one_versus_rest(40, 39)
    apart = Rankings(given.queries.clone(), given.gallery, "cosine", given.exclude, 39)
    some = torch.tensor([4, 9])
    ids = torch.arange(40)
    few = Rankings(given.queries[some], given.gallery, "cosine", Exclusion(ids[some], ids), 39)
    post = KReciprocal(k1=6, k2=3, top_n=39)
    whole = post(given).result
    assert torch.equal(post(apart).result.distances, whole.distances)
    assert torch.equal(post(few).result.indices, whole.indices[some])
    moved = given.moved(queries=given.queries + 0.1)
    post(moved)
    assert post.notes == [
        "40 of 40 queries are gallery items of another embedding; k_reciprocal takes them for two images"
    ]


def test_k_reciprocal_of_few_images():
    post = KReciprocal(top_n=5)
    found = post(rankings_of(1, 3, 2))
    assert sorted(found.result.indices[0].tolist()) == [0, 1, 2]
    assert post.notes == ["k1 20 is more than the 3 other images; it is clipped to them"]
    only = one_versus_rest(1, 1)
    assert post(only).result.indices.tolist() == [[-1]]


def test_k_reciprocal_refuses_a_cut_ranking():
    with pytest.raises(ValueError, match="cannot re-rank a ranking that a threshold has cut"):
        KReciprocal()(ConstantThreshold(max_distance=0.2)(rankings_of()))
