import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from metricli.data.strings import EMPTY_HASH, empty_rows, groups, hash_text, match_words

texts = st.text(max_size=20) | st.sampled_from(
    ["", "a", "ab" * 4, "ab" * 8, "ab" * 8 + "c", "validation", "validatiox"]
)


@given(st.lists(st.lists(texts, max_size=6), min_size=1, max_size=6))
def test_equal_strings_and_only_those_have_equal_hashes_whatever_the_chunks(chunks):
    column = pa.chunked_array(chunks, pa.string())
    words = [word for chunk in chunks for word in chunk]
    hashes = hash_text(column)
    assert len(hashes) == len(words)
    for i, word in enumerate(words):
        assert (hashes[i] == EMPTY_HASH) == (word == "")
        assert [bool(same) for same in hashes == hashes[i]] == [other == word for other in words]


def test_hash_of_many_rows_in_pieces_and_of_a_slice():
    words = [f"{'x' * (i % 40)}{i % 5000}" for i in range(70_000)]
    column = pa.chunked_array([words[:20_001], words[20_001:]])
    hashes = hash_text(column)
    assert len(np.unique(hashes)) == len(set(words))
    assert np.array_equal(hash_text(column.slice(12_345, 30_000)), hashes[12_345:42_345])


@given(st.lists(texts, max_size=30))
def test_match_words_is_list_index(values):
    wanted = ["train", "validation", "", "abababab"]
    places = match_words(pa.chunked_array([values], pa.string()), wanted)
    assert places.tolist() == [wanted.index(value) if value in wanted else -1 for value in values]


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20), max_size=200))
def test_groups_are_equal_exactly_where_hashes_are(values):
    hashes = np.array(values, dtype=np.uint64)
    numbers, bound = groups(hashes)
    assert (numbers < bound).all()
    assert ((numbers[:, None] == numbers) == (hashes[:, None] == hashes)).all()


def test_groups_of_many_hashes_with_equal_upper_bits():
    hashes = np.arange(50_000, dtype=np.uint64) // np.uint64(2)
    numbers, bound = groups(hashes)
    assert len(np.unique(numbers)) == 25_000
    assert bound < 10_000_000
    assert (numbers[::2] == numbers[1::2]).all()


def test_empty_rows():
    assert empty_rows(pa.chunked_array([["", "a"], [], ["b", ""]], pa.string())).tolist() == [0, 3]
