import pickle
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from metricli.data.texts import Texts, taken

WORDS = [f"w{i % 7}é" if i % 5 else "" for i in range(40)]


def column(*cuts):
    ends = [0, *cuts, len(WORDS)]
    return pa.chunked_array([pa.array(WORDS[low:high], pa.string()) for low, high in pairwise(ends)])


@pytest.fixture(params=["all", "some"])
def both(request):
    """Texts over several chunks, and the same as an array."""
    places = None if request.param == "all" else np.array([3, 3, 39, 0, 17, 16, 9])
    array = np.array(WORDS, dtype=object)
    return Texts(column(1, 1, 16, 17), 40, places), array if places is None else array[places]


def test_texts_index_as_an_array_does(both):
    texts, array = both
    assert len(texts) == len(array)
    assert [texts[i] for i in range(-len(array), len(array))] == [*array, *array]
    assert type(texts[np.int64(1)]) is str
    for key in [slice(None), slice(2, 5), slice(5, 2), slice(None, None, -2), slice(-3, None), slice(3, 99)]:
        assert texts[key].dtype == object
        assert texts[key].tolist() == array[key].tolist()
    mask = np.arange(len(array)) % 3 == 1
    for key in [
        mask,
        np.flatnonzero(mask)[::-1],
        np.array([-1, 0, -1]),
        [2, 1],
        np.array([], dtype=np.int64),
    ]:
        assert texts[key].tolist() == array[key].tolist()
    assert texts.tolist() == list(texts) == array.tolist()


def test_texts_compare_and_convert_as_an_array(both):
    texts, array = both
    assert np.asarray(texts).dtype == object
    assert np.asarray(texts, dtype=str).tolist() == array.astype(str).tolist()
    assert (array == texts).all()
    assert not (array != texts).any()
    assert texts.index(array[-1]) == array.tolist().index(array[-1])
    assert pickle.loads(pickle.dumps(texts)).tolist() == array.tolist()


def test_places_that_are_not_there_are_refused(both):
    texts, array = both
    count = len(array)
    for key in (count, -count - 1, np.array([0, count]), np.array([-count - 1])):
        with pytest.raises(IndexError):
            texts[key]
    with pytest.raises(IndexError, match=f"a mask of {count + 1} for {count} strings"):
        texts[np.ones(count + 1, dtype=bool)]


def test_a_column_that_is_not_there_is_empty_text():
    texts = Texts(None, 3)
    assert (texts[0], texts[-1]) == ("", "")
    assert texts[1:].tolist() == texts[np.array([0, 2])].tolist() == ["", ""]
    with pytest.raises(IndexError):
        texts[3]


def test_equal_words_are_one_object_where_they_repeat():
    found = Texts(column(16), 40, repeated=True)[np.array([1, 8, 29])]
    assert found.tolist() == ["w1é"] * 3
    assert found[0] is found[1]
    words = Texts(column(), 40, repeated=True)[:]
    assert len({id(word) for word in words}) == len(set(WORDS))


def test_a_few_strings_are_taken_without_a_copy_of_the_column():
    chunks = pa.chunked_array([pa.array(["x" * 1000] * 1000)] * 20)
    before = pa.default_memory_pool().max_memory()
    small = pa.total_allocated_bytes()
    assert taken(chunks, np.array([19_999, 0])).tolist() == ["x" * 1000] * 2
    assert pa.default_memory_pool().max_memory() <= max(before, small + 100_000)
