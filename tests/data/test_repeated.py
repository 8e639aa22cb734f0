import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricli.data import repeated
from metricli.data.repeated import later_rows
from metricli.data.strings import hash_chunk


def found(chunks):
    rows = later_rows(pa.chunked_array(chunks, pa.string()), lambda _, chunk: hash_chunk(chunk))
    runs = [run.tolist() for run in rows]
    assert all(run == sorted(run) for run in runs)
    return sorted(row for run in runs for row in run)


def by_hand(words):
    return [row for row, word in enumerate(words) if word in words[:row]]


@pytest.fixture(scope="module", params=[(1 << 21, 1 << 18), (7, 3), (3, 1)], autouse=True)
def sizes(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated, "_KNOWN", request.param[0])
        patch.setattr(repeated, "_COMPARED", request.param[1])
        yield


@given(st.lists(st.lists(st.sampled_from(["", *"abcdefghijkl"]), max_size=9), max_size=6))
def test_rows_that_an_earlier_one_has(chunks):
    words = [word for chunk in chunks for word in chunk]
    assert found(chunks) == by_hand(words)


def test_the_first_row_is_given_with_its_piece():
    column = pa.chunked_array([["a", "b"], ["a"], ["c", "b"]])
    starts = []

    def hashes(start, chunk):
        starts.append((start, len(chunk.lengths)))
        return np.array([7] * len(chunk.lengths), dtype=np.uint64)

    assert [row for run in later_rows(column, hashes) for row in run.tolist()] == [1, 2, 3, 4]
    assert set(starts) == {(0, 2), (2, 1), (3, 2)}
