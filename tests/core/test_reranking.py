"""k-reciprocal re-ranking against the dense computation of the paper; expansion and whitening by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metricli.core.exclusion import Exclusion
from metricli.core.expansion import expand
from metricli.core.reranking import encode, farthest, jaccard, nodes_of, rerank
from metricli.core.results import SearchResult
from metricli.core.retrieval import search
from metricli.core.whitening import Whitening


def textbook(
    queries: np.ndarray, gallery: np.ndarray, distance: str, k1: int, k2: int, share: float
) -> np.ndarray:
    """Final distances (Q, G) after Zhong et al. 2017, all of it in N x N matrices and loops."""
    x = np.concatenate([queries, gallery]).astype(np.float64)
    if distance == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    d = ((x[:, None] - x) ** 2).sum(2)
    d = d / d.max(1, keepdims=True)
    order, num = np.argsort(d, axis=1), len(x)

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    weights = np.zeros_like(d)
    for i in range(num):
        own = reciprocal(i, k1)
        whole = set(own)
        for j in own:
            theirs = reciprocal(j, round(k1 / 2))
            if 3 * len(theirs & own) > 2 * len(theirs):
                whole |= theirs
        members = sorted(whole)
        weights[i, members] = np.exp(-d[i, members])
        weights[i] /= weights[i].sum()
    weights = np.stack([weights[order[i, :k2]].mean(0) for i in range(num)])
    final = np.empty((len(queries), len(gallery)))
    for q in range(len(queries)):
        for g in range(len(gallery)):
            a, b = weights[q], weights[len(queries) + g]
            apart = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            final[q, g] = (1 - share) * apart + share * d[q, len(queries) + g]
    return final


def sample(seed: int, num: int, dim: int, clustered: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num, dim))
    if not clustered:
        return rows
    centres = np.random.default_rng(7).standard_normal((num // 8 + 1, dim))
    return centres[rng.integers(0, len(centres), num)] + 0.4 * rows


def neighbours_of(rows: Tensor, k1: int, distance: str) -> Tensor:
    ids = torch.arange(len(rows))
    found = search(rows, rows, k=min(k1, len(rows) - 1), distance=distance, exclude=Exclusion(ids, ids))
    return torch.cat([ids[:, None], found.indices], 1)


def sparse(queries: Tensor, gallery: Tensor, n: int, distance: str, k1: int, k2: int, share: float):
    nodes = nodes_of(queries, gallery)
    candidates = search(queries, gallery, k=n, distance=distance)
    neighbours = neighbours_of(nodes.rows, k1, distance)
    return rerank(nodes, neighbours, candidates, k1=k1, k2=k2, lambda_value=share, distance=distance)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize(("k1", "k2", "share"), [(20, 6, 0.3), (7, 3, 0.0), (5, 1, 0.8)])
def test_ranks_and_values_are_the_textbook_s(distance, clustered, k1, k2, share):
    queries, gallery = sample(1, 25, 8, clustered), sample(2, 130, 8, clustered)
    expected = textbook(queries, gallery, distance, k1, k2, share)
    found = sparse(torch.from_numpy(queries), torch.from_numpy(gallery), 130, distance, k1, k2, share)
    values = np.take_along_axis(expected, found.indices.numpy(), 1)
    np.testing.assert_allclose(found.distances.numpy(), values, atol=1e-12)
    for ranked, row, given_ in zip(found.indices.numpy(), expected, found.distances.numpy(), strict=True):
        alone = np.diff(given_) > 1e-9  # without lambda, all that share no node tie at 1
        if share:
            assert alone.all()
            assert ranked.tolist() == np.argsort(row).tolist()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(2, 40),
    k1=st.integers(1, 45),
    clustered=st.booleans(),
    data=st.data(),
)
def test_any_size_is_the_textbook_s(seed, num, k1, clustered, data):
    k2 = data.draw(st.integers(1, k1))
    queries, gallery = sample(seed, 4, 5, clustered), sample(seed + 1, num, 5, clustered)
    expected = textbook(queries, gallery, "euclidean", k1, k2, 0.3)
    found = sparse(torch.from_numpy(queries), torch.from_numpy(gallery), num, "euclidean", k1, k2, 0.3)
    values = np.take_along_axis(expected, found.indices.numpy(), 1)
    np.testing.assert_allclose(found.distances.numpy(), values, atol=1e-12)
    assert (np.sort(found.indices.numpy(), 1) == np.arange(num)).all()


def test_of_a_few_candidates_the_order_is_that_among_all():
    queries, gallery = sample(3, 20, 8, True), sample(4, 150, 8, True)
    expected = textbook(queries, gallery, "cosine", 10, 3, 0.3)
    found = sparse(torch.from_numpy(queries), torch.from_numpy(gallery), 30, "cosine", 10, 3, 0.3).indices
    nearest = search(torch.from_numpy(queries), torch.from_numpy(gallery), k=30).indices
    whole = np.argsort(expected, 1)
    for ranked, candidates, order in zip(found.tolist(), nearest.tolist(), whole.tolist(), strict=True):
        assert ranked == [item for item in order if item in candidates]
    assert not torch.equal(found, nearest)


def test_blocks_do_not_matter(monkeypatch):
    queries, gallery = (torch.from_numpy(sample(s, n, 6, True)).float() for s, n in ((5, 15), (6, 90)))
    whole = sparse(queries, gallery, 40, "cosine", 8, 3, 0.3)
    for name in ("_PAIRS", "_ENTRIES", "_BLOCK"):
        monkeypatch.setattr(f"metricli.core.reranking.{name}", 37)
    small = sparse(queries, gallery, 40, "cosine", 8, 3, 0.3)
    assert torch.equal(whole.indices, small.indices)
    torch.testing.assert_close(whole.distances, small.distances)


def test_blocks_of_the_jaccard_distances_do_not_matter(monkeypatch):
    rows = torch.from_numpy(sample(5, 80, 6, True))
    encoding = encode(
        rows, neighbours_of(rows, 8, "cosine"), farthest(rows, "cosine"), k1=8, k2=3, distance="cosine"
    )
    first, second = torch.arange(20), torch.arange(80).expand(20, -1)
    whole = jaccard(encoding, first, second)
    monkeypatch.setattr("metricli.core.reranking._ENTRIES", 80)
    assert torch.equal(jaccard(encoding, first, second), whole)


def test_farthest_is_the_largest_and_1_where_all_are_equal():
    rows = torch.from_numpy(sample(8, 50, 6, False))
    assert torch.allclose(farthest(rows, "euclidean"), torch.cdist(rows, rows).square().amax(1))
    unit = rows / rows.norm(dim=1, keepdim=True)
    assert torch.allclose(farthest(rows, "cosine"), (1 - unit @ unit.T).amax(1))
    assert farthest(rows[:1].repeat(4, 1), "euclidean").tolist() == [1.0] * 4


def test_nodes_are_distinct_images():
    gallery = torch.arange(8.0).view(4, 2)
    queries = torch.stack([gallery[2], gallery[1] + 1, torch.ones(2)])
    nodes = nodes_of(queries, gallery, torch.tensor([12, 11, 99]), torch.tensor([10, 11, 12, 13]))
    assert nodes.queries.tolist() == [2, 4, 5]  # the first is item 2; the second is item 1 of other numbers
    assert nodes.gallery.tolist() == [0, 1, 2, 3]
    assert nodes.doubled == 1
    assert torch.equal(nodes.rows, torch.cat([gallery, queries[1:]]))
    ids = torch.tensor([3, 1, 2, 0])
    same = nodes_of(gallery, gallery, ids, ids)
    assert same.rows is gallery
    assert same.queries.tolist() == [0, 1, 2, 3]
    assert nodes_of(queries, gallery).queries.tolist() == [4, 5, 6]


def test_jaccard_of_a_missing_candidate_and_of_strangers_is_1():
    rows = torch.cat([torch.zeros(4, 2), torch.full((4, 2), 9.0)]) + 0.01 * torch.arange(16.0).view(8, 2)
    neighbours = neighbours_of(rows, 2, "euclidean")
    encoding = encode(rows, neighbours, farthest(rows, "euclidean"), k1=2, k2=1, distance="euclidean")
    found = jaccard(encoding, torch.tensor([0, 5]), torch.tensor([[0, 7, -1], [1, 5, 5]]))
    assert found[0, 1:].tolist() == [1.0, 1.0]
    assert torch.allclose(found, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=found.dtype))


def test_lists_that_an_approximate_search_left_short():
    rows = torch.from_numpy(sample(9, 40, 5, True))
    neighbours = neighbours_of(rows, 6, "cosine")
    neighbours[::3, 4:] = -1
    encoding = encode(rows, neighbours, farthest(rows, "cosine"), k1=6, k2=3, distance="cosine")
    sums = torch.segment_reduce(encoding.weights, "sum", lengths=encoding.starts.diff())
    assert torch.allclose(sums, torch.ones_like(sums))
    short = encode(rows, neighbours[:1].new_full((40, 7), -1).index_put(
        (torch.arange(40), torch.zeros(40, dtype=torch.long)), torch.arange(40)
    ), farthest(rows, "cosine"), k1=6, k2=1, distance="cosine")  # fmt: skip
    assert short.columns.tolist() == list(range(40))


def test_equal_embeddings_keep_their_order_and_missing_items_stay_last():
    rows = torch.ones(6, 3)
    nodes = nodes_of(rows[:1], rows)
    candidates = SearchResult(torch.tensor([[1, 3, 4, -1]]), torch.tensor([[0.0, 0.0, 0.0, torch.inf]]))
    neighbours = neighbours_of(nodes.rows, 3, "cosine")
    found = rerank(nodes, neighbours, candidates, k1=3, k2=1, lambda_value=0.3, distance="cosine")
    assert sorted(found.indices[0, :3].tolist()) == [1, 3, 4]
    assert found.indices[0, 3] == -1
    assert found.distances[0, 3] == torch.inf
    assert bool((found.distances.diff() >= 0).all())


def loop_expand(rows, others, indices, alpha, distance):
    mixed = []
    for row, listed in zip(rows, indices, strict=True):
        own = row / np.linalg.norm(row)
        total, weight = (own if distance == "cosine" else row).copy(), 1.0
        for j in listed[listed >= 0]:
            near = others[j] / np.linalg.norm(others[j])
            w = 1.0 if alpha == 0 else max(0.0, float(own @ near)) ** alpha
            total, weight = total + w * (near if distance == "cosine" else others[j]), weight + w
        mixed.append(total / np.linalg.norm(total) if distance == "cosine" else total / weight)
    return np.stack(mixed)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_expansion_is_the_loop_s(monkeypatch, distance, alpha):
    monkeypatch.setattr("metricli.core.expansion._ENTRIES", 64)
    rows, others = sample(1, 30, 6, False), sample(2, 50, 6, False)
    indices = np.random.default_rng(0).integers(-1, 50, (30, 4))
    found = expand(
        torch.from_numpy(rows),
        torch.from_numpy(others),
        torch.from_numpy(indices),
        alpha=alpha,
        distance=distance,
    )
    np.testing.assert_allclose(found, loop_expand(rows, others, indices, alpha, distance), atol=1e-12)


def test_expansion_keeps_the_type():
    rows = torch.randn(3, 4).half()
    assert expand(rows, rows, torch.tensor([[1], [2], [-1]]), alpha=1, distance="cosine").dtype == rows.dtype


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_whitening_is_numpy_s(distance):
    rows = sample(1, 200, 6, False) @ np.random.default_rng(3).standard_normal((6, 6)) + 2
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True) if distance == "cosine" else rows
    _, values, vectors = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    variances = values**2 / len(rows)
    expected = (unit - unit.mean(0)) @ vectors[:4].T / np.sqrt(variances[:4] + 1e-3 * variances[0])
    if distance == "cosine":
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    whitening = Whitening.fit(torch.from_numpy(rows), 4, eps=1e-3, distance=distance)
    found = whitening.apply(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)  # up to the signs of axes
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-9)


def test_whitened_rows_are_uncorrelated_with_variance_1(monkeypatch):
    monkeypatch.setattr("metricli.core.whitening._ROWS", 64)
    rows = torch.from_numpy(sample(1, 300, 5, True))
    found = Whitening.fit(rows, 5, eps=0.0, distance="euclidean").apply(rows)
    assert torch.allclose(found.mean(0), torch.zeros(5, dtype=found.dtype), atol=1e-10)
    assert torch.allclose(found.T @ found / 300, torch.eye(5, dtype=found.dtype), atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "dim", "message"),
    [
        (torch.randn(9, 4), 5, "dim must be from 1 to 4 for 9 rows of 4 columns, got 5"),
        (torch.randn(3, 4), 3, "dim must be from 1 to 2 for 3 rows"),
        (torch.ones(9, 4), 2, "all 9 rows are equal"),
    ],
)
def test_what_cannot_be_whitened(rows, dim, message):
    with pytest.raises(ValueError, match=message):
        Whitening.fit(rows, dim, eps=1e-6, distance="euclidean")
