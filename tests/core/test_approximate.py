"""`faiss_search` against the exact search, and against a search of its own candidates."""

import sys
from functools import partial

import pytest
import torch

from metricli.core.approximate import check_index, faiss_search
from metricli.core.exclusion import NOTHING, Exclusion
from metricli.core.rankings import Rankings
from metricli.core.retrieval import search

faiss = pytest.importorskip("faiss")


def data(num: int = 60, size: int = 500, dim: int = 12):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, dim, generator=generator) for n in (num, size))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_flat_index_gives_the_exact_search(distance, dtype):
    queries, gallery = (x.to(dtype) for x in data())
    exact = search(queries, gallery, k=9, distance=distance)
    done: list[int] = []
    found = faiss_search(queries, gallery, k=9, distance=distance, index="Flat", on_progress=done.append)
    assert torch.equal(found.indices, exact.indices)
    assert torch.equal(found.distances, exact.distances)
    assert sum(done) == 60


def test_ties_go_to_the_lower_row():
    _, gallery = data(4, 10)
    gallery = gallery.repeat(5, 1)
    found = faiss_search(gallery[:10], gallery, k=5, index="Flat")
    assert found.indices.tolist() == [list(range(row, 50, 10)) for row in range(10)]
    assert found.distances.eq(0).all()


@pytest.mark.parametrize("index", ["Flat", "HNSW16"])
def test_what_is_excluded_is_made_up_for(index):
    _, x = data(1, 300)
    ids, sequences = torch.arange(300), torch.arange(300) // 100
    groups = torch.arange(300) % 7
    groups[groups == 6] = torch.arange(int((groups == 6).sum()))  # some alone, with nobody to find
    exclude = Exclusion(ids, ids, sequences, sequences, groups, groups)
    found = faiss_search(x, x, k=12, exclude=exclude, index=index)
    exact = search(x, x, k=12, exclude=exclude)
    assert torch.equal(found.indices >= 0, exact.indices >= 0)
    assert float((found.indices == exact.indices).double().mean()) > 0.99
    assert torch.equal(found.distances.isinf(), found.indices < 0)


def test_queries_left_short_are_asked_for_again():
    _, x = data(1, 400)
    found = faiss_search(x[:30], x, k=20, index="IVF40,Flat", nprobe=40)
    assert torch.equal(found.indices, search(x[:30], x, k=20).indices)
    depths: list[int] = []

    class Lazy:
        def search(self, vectors, depth):
            depths.append(depth)
            flat = faiss.IndexFlatL2(12)
            flat.add(x.sub(x.mean(0)).numpy())
            distances, indices = flat.search(vectors, depth)
            indices[:, depth // 2 :] = -1
            return distances, indices

    import metricli.core.approximate as approximate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximate, "_index", lambda *_: Lazy())
        found = faiss_search(x[:30], x, k=20, distance="euclidean")
    assert depths == [29, 58]
    assert torch.equal(found.indices, search(x[:30], x, k=20, distance="euclidean").indices)


def test_it_is_a_searcher_of_rankings():
    queries, gallery = data()
    searcher = partial(faiss_search, index="Flat", nprobe=None)
    rankings = Rankings(queries, gallery, "cosine", NOTHING, 7, searcher=searcher)
    assert torch.equal(rankings.result.indices, search(queries, gallery, k=7).indices)


@pytest.mark.parametrize(("num", "size"), [(0, 5), (5, 0), (3, 2)])
def test_small_sides(num, size):
    found = faiss_search(torch.ones(num, 4), torch.ones(size, 4), k=3, index="Flat")
    assert found.indices.tolist() == [([*range(size)] + [-1] * 3)[:3]] * num


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError) as raised:
        faiss_search(torch.ones(2, 3), torch.ones(2, 3), k=1)
    assert str(raised.value) == "approximate search needs faiss: pip install 'metricli[faiss]'"


def test_an_index_that_cannot_be_trained():
    with pytest.raises(ValueError, match="faiss cannot build the index 'IVF40,Flat' over 20 rows: "):
        faiss_search(*data(5, 20), k=2, index="IVF40,Flat")


@pytest.mark.parametrize(
    ("index", "nprobe", "reason"),
    [
        ("NOSUCH7", None, "could not parse index string NOSUCH7"),
        ("PQ7", None, "Error: .* should be a multiple of the number of subquantizers"),
        ("Flat", 3, ""),
    ],
)
def test_an_index_that_there_is_not(index, nprobe, reason):
    queries, gallery = data(5, 20)
    dim = queries.shape[1]
    message = f"^faiss cannot make the index '{index}' of {dim} dimensions: {reason}"
    with pytest.raises(ValueError, match=message):
        check_index(index, dim, nprobe)
    with pytest.raises(ValueError, match=message):
        faiss_search(queries, gallery, k=2, index=index, nprobe=nprobe)


def test_an_index_that_there_is():
    check_index("IVF40,Flat", 8, 3)
    check_index("HNSW32", 8)
