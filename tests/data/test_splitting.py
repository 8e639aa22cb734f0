"""The open-set split and the writing of tables, against rules and readers that share nothing with them."""

from __future__ import annotations

import csv
import hashlib
import io
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricli.data.splitting import judged_rows, validation_labels
from metricli.data.table import read_table
from metricli.data.writing import Row, path_prefix, write_new, write_table
from metricli.errors import ResourceError, UsageError

LABELS = list(string.ascii_lowercase[:12])


def test_the_split_never_changes():
    """Tables made years apart, or on other machines, are alike."""
    images = dict.fromkeys(LABELS, 2)
    assert validation_labels(images, share=0.5, seed=0) == set("cfgjkl")
    assert validation_labels(dict(reversed(images.items())), share=0.5, seed=0) == set("cfgjkl")
    by_hash = sorted(LABELS, key=lambda label: hashlib.sha256(b"7/" + label.encode()).hexdigest())
    assert validation_labels(images, share=0.25, seed=7) == set(by_hash[:3])


@given(
    sizes=st.lists(st.integers(1, 3), max_size=40),
    share=st.floats(0, 1),
    seed=st.integers(-5, 2**40),
)
def test_both_sides_can_be_used(sizes, share, seed):
    images = {f"l{n}": size for n, size in enumerate(sizes)}
    judged = validation_labels(images, share=share, seed=seed)
    several = {label for label, size in images.items() if size > 1}
    if share == 0 or len(several) < 4:
        assert judged == set()
        return
    assert 2 <= len(judged & several) <= len(several) - 2
    single = set(images) - several
    for group in (several, single):
        assert abs(len(judged & group) - share * len(group)) <= (2 if group is several else 0.5)
    larger = validation_labels(images, share=(share + 1) / 2, seed=seed)
    assert judged <= larger, "a larger share keeps the smaller one's labels"


def test_rows_to_be_judged_ask_where_there_is_a_match():
    rows = judged_rows([("a", "1"), ("b", "2"), ("a", "3")], "validation")
    assert [(row.label, row.is_query, row.is_gallery) for row in rows] == [
        ("a", True, True),
        ("b", False, True),
        ("a", True, True),
    ]


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT | st.just("")), min_size=1, max_size=6))
def test_any_text_is_read_as_it_was_written(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "t.csv"
    made = [Row(label, image, "train", category=category) for label, image, category in rows]
    write_table(path, made)
    table = read_table(path)
    assert list(table.strings("label")) == [row[0] for row in rows]
    assert list(table.strings("path")) == [row[1] for row in rows]
    assert list(table.strings("category")) == [row[2] for row in rows]
    theirs = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
    assert [(row["label"], row["path"]) for row in theirs] == [row[:2] for row in rows]


def test_boxes_stand_in_the_order_of_the_table(tmp_path):
    write_table(
        tmp_path / "t.csv",
        [Row("a", "1", "validation", False, True, "", (1, 2, 3, 4)), Row("b", "2", "train")],
    )
    assert (tmp_path / "t.csv").read_text() == (
        "label,path,split,is_query,is_gallery,x_1,x_2,y_1,y_2\na,1,validation,false,true,1,3,2,4\nb,2,train,,,,,,\n"
    )


def test_a_file_is_whole_or_not_there(tmp_path):
    def lines():
        yield "first\n"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_new(tmp_path / "t.csv", lines())
    assert list(tmp_path.iterdir()) == []

    def meanwhile():
        yield "ours\n"
        (tmp_path / "t.csv").write_text("theirs\n")

    with pytest.raises(UsageError, match=r"t.csv' exists already; give another place"):
        write_new(tmp_path / "t.csv", meanwhile())
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs\n"]


def test_a_full_disk_leaves_nothing(tmp_path):
    def lines():
        yield "first\n"
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match=r"cannot write '.*t.csv': No space left on device"):
        write_new(tmp_path / "t.csv", lines())
    assert list(tmp_path.iterdir()) == []


def test_the_prefix_is_that_of_the_real_folders(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "ab").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a/b")
    prefixes = {
        "a": path_prefix(tmp_path / "a", tmp_path / "t.csv"),
        "a/b": path_prefix(tmp_path / "a/b/", tmp_path / "t.csv"),
        "link": path_prefix(tmp_path / "link", tmp_path / "t.csv"),
        "itself": path_prefix(tmp_path / "a", tmp_path / "a/t.csv"),
        "beside": path_prefix(tmp_path / "ab", tmp_path / "a/t.csv"),
        "above": path_prefix(tmp_path, tmp_path / "a/t.csv"),
    }
    assert prefixes == {"a": "a/", "a/b": "a/b/", "link": "a/b/", "itself": "", "beside": None, "above": None}
