"""A survey of parts of the queries, joined, against that of all of them."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metricli.core.exclusion import Exclusion
from metricli.core.results import Survey
from metricli.core.retrieval import survey
from tests.core.test_survey import TINY, assert_same_order, integers, problems


def parts_of(num: int, cuts: list[int]) -> list[slice]:
    """Slices that cover `num` queries, cut at some places; some may be empty."""
    ends = [0, *sorted(min(cut, num) for cut in cuts), num]
    return [slice(low, high) for low, high in pairwise(ends)]


@settings(max_examples=150, deadline=None)
@given(
    problems(),
    st.lists(st.integers(0, 45), max_size=3),
    st.integers(1, 12),
    st.sampled_from(["cosine", "euclidean"]),
    st.sampled_from([64, TINY]),
    st.booleans(),
)
def test_parts_joined_are_the_whole(problem, cuts, k, distance, budget, distances):
    queries, gallery, exclude, labels = problem
    asked = {
        "k": k,
        "distance": distance,
        "exclude": exclude,
        "query_labels": labels[0],
        "gallery_labels": labels[1],
        "ranks": True,
        "distances": distances,
        "budget_mb": budget,
    }
    whole = survey(queries, gallery, **asked | {"distances": True})
    found = Survey.joined(
        [survey(queries, gallery, part=part, **asked) for part in parts_of(len(queries), cuts)]
    )
    assert_same_order(found.result, whole.result)
    assert torch.equal(found.first, whole.first)
    assert torch.equal(found.last, whole.last)
    assert found.pairs is None
    if distances:
        assert torch.equal(found.result.distances, whole.result.distances)


@settings(max_examples=60, deadline=None)
@given(
    problems(),
    st.lists(st.integers(0, 45), max_size=3),
    st.sampled_from(["cosine", "euclidean"]),
    st.floats(1e-3, 1e3),
)
def test_histograms_of_parts_add_up(problem, cuts, distance, far):
    queries, gallery, exclude, labels = problem
    queries = queries.clone()
    queries[0] *= far  # the farthest query is in one part only, and the bins are still those of all
    groups = torch.arange(len(queries)) % 4 - 1
    asked = {
        "k": 1,
        "distance": distance,
        "exclude": exclude,
        "query_labels": labels[0],
        "gallery_labels": labels[1],
        "resolution": 4,
        "groups": groups,
        "num_groups": 3,
        "group_resolution": 2,
    }
    whole = survey(queries, gallery, **asked)
    found = Survey.joined(
        [survey(queries, gallery, part=part, **asked) for part in parts_of(len(queries), cuts)]
    )
    for ours, theirs in ((found.pairs, whole.pairs), (found.group_pairs, whole.group_pairs)):
        assert torch.equal(ours.edges, theirs.edges)
        for side in ("genuine", "impostor"):
            assert torch.equal(getattr(ours, side).sum(1), getattr(theirs, side).sum(1))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_histograms_of_parts_are_those_of_the_whole(distance):
    generator = torch.Generator().manual_seed(7)
    queries, gallery = torch.randn(90, 24, generator=generator), torch.randn(210, 24, generator=generator)
    labels = integers(generator, 0, 9, 90), integers(generator, 0, 9, 210)
    asked = {
        "k": 3,
        "distance": distance,
        "query_labels": labels[0],
        "gallery_labels": labels[1],
        "resolution": 64,
    }
    whole = survey(queries, gallery, **asked)
    parts = [survey(queries, gallery, part=part, **asked) for part in parts_of(90, [13, 50])]
    found = Survey.joined(parts)
    assert torch.equal(found.pairs.edges, whole.pairs.edges)
    assert torch.equal(found.pairs.genuine, whole.pairs.genuine)
    assert int((found.pairs.impostor - whole.pairs.impostor).abs().sum()) <= 4
    assert found.group_pairs.genuine.shape == (0, whole.group_pairs.genuine.shape[1])


def test_a_part_keeps_its_own_exclusions():
    rows = torch.eye(6)
    ids, groups = torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1])
    exclude = Exclusion(ids, ids, query_groups=groups, gallery_groups=groups)
    found = survey(rows, rows, k=3, exclude=exclude, part=slice(3, 5))
    assert found.result.indices.tolist() == [[4, 5, -1], [3, 5, -1]]


def test_progress_counts_the_part():
    done: list[int] = []
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    survey(rows, rows, k=1, part=slice(4, 11), on_progress=done.append)
    assert sum(done) == 7


def test_a_bad_row_of_another_part_is_named_by_its_own_number():
    rows = torch.zeros(6, 2)
    rows[5, 0] = torch.nan
    with pytest.raises(ValueError, match="queries must be finite: row 5 holds"):
        survey(rows, torch.ones(3, 2), k=1, part=slice(0, 2))
