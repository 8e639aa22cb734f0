import csv

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricli.data.table import read_table
from metricli.errors import DataError

GOOD = "label,path,split\na,1.jpg,train\n"


def refusal(path, need="train"):
    with pytest.raises(DataError) as caught:
        read_table(path, need=need)
    return caught.value.message.replace(str(path.parent), "DIR"), caught.value.hint


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"", "DIR/t.csv is empty", "expected a header such as label,path,split and a line for each image"),
        (
            b"\xef\xbb\xbf \n",
            "DIR/t.csv is empty",
            "expected a header such as label,path,split and a line for each image",
        ),
        (
            b"label,path,split\n",
            "DIR/t.csv: the table has no rows",
            "below the header, one line for each image",
        ),
        (
            b"label;path;split\na;1.jpg;train\n",
            "DIR/t.csv is separated by ';', expected commas",
            "save it as comma-separated CSV",
        ),
        (
            b"label\tpath\tsplit\na\t1.jpg\ttrain\n",
            "DIR/t.csv is separated by a tab, expected commas",
            "save it as comma-separated CSV",
        ),
        (
            b"label,path,split,path\na,1.jpg,train,2.jpg\n",
            "DIR/t.csv has more than one column 'path'",
            "keep one of them",
        ),
        (
            b"lable,path,Split\na,1.jpg,train\n",
            "DIR/t.csv has no columns 'label', 'split'; found 'lable', 'path', 'Split'",
            "rename 'lable' to 'label', rename 'Split' to 'split'",
        ),
        (b"label,split\na,train\n", "DIR/t.csv has no column 'path'; found 'label', 'split'", "add it"),
        (
            b"label,path,split\na,1.jpg,train\n\nb,2,3.jpg,train\n",
            "DIR/t.csv line 4 has 4 fields, expected 3 (label,path,split)",
            "quote a value that has a comma in it",
        ),
        (
            b"label,path,split\na,1.jpg\n",
            "DIR/t.csv line 2 has 2 fields, expected 3 (label,path,split)",
            "quote a value that has a comma in it",
        ),
        (
            "label,path,split\na,1.jpg,train\nété,2.jpg,train\n".encode("latin-1"),
            "DIR/t.csv is not UTF-8: byte 31 (line 3) is b'\\xe9'",
            "save the table as UTF-8",
        ),
        (
            "été,path,split\na,1.jpg,train\n".encode("latin-1"),
            "DIR/t.csv is not UTF-8: byte 0 (line 1) is b'\\xe9'",
            "save the table as UTF-8",
        ),
        (
            b"label,path,split\na,1.jpg,train\nb,\x00.jpg,train\n",
            "DIR/t.csv has a NUL byte at byte 33, line 3: it is not a text file",
            "save the table as CSV (UTF-8) or parquet",
        ),
        (GOOD.encode("utf-16"), "DIR/t.csv is UTF-16 text, not a CSV or parquet table", "save it as UTF-8"),
        (
            b"PK\x03\x04....",
            "DIR/t.csv is a zip archive or a spreadsheet, not a CSV or parquet table",
            "save the sheet as CSV (UTF-8)",
        ),
    ],
)
def test_a_file_that_is_no_table(tmp_path, content, message, hint):
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    assert refusal(file) == (message, hint)


def test_no_such_table_names_the_nearest(tmp_path):
    (tmp_path / "products.csv").write_text(GOOD)
    assert refusal(tmp_path / "product.csv") == (
        "no such table: DIR/product.csv",
        "did you mean 'products.csv'?",
    )
    assert refusal(tmp_path / "x") == ("no such table: DIR/x", "tables in that folder: 'products.csv'")


def test_a_folder_is_no_table(tmp_path):
    (tmp_path / "t.csv").mkdir()
    message = "DIR/t.csv is a folder, expected a CSV or parquet table"
    assert refusal(tmp_path / "t.csv") == (message, "name the file in it")


def test_no_such_folder(tmp_path):
    file = tmp_path / "none" / "t.csv"
    assert refusal(file) == (
        "cannot read the table DIR/t.csv: no such file or directory",
        "check the path and its rights",
    )


def test_text_stays_text(tmp_path):
    file = tmp_path / "t.csv"
    lines = [
        "label,path,split,category",
        "007,1.jpg,train,NA",
        "NA,2.jpg,train,",
        "1e3,3.jpg,train,null",
        "True,4.jpg,train,1.0",
    ]
    file.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    rows = read_table(file).split("all")
    assert rows.labels.tolist() == ["007", "NA", "1e3", "True"]
    assert rows.categories.tolist() == ["NA", "", "null", "1.0"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12),
        min_size=1,
        max_size=8,
    )
)
def test_any_text_survives_the_round_trip(tmp_path_factory, words):
    file = tmp_path_factory.mktemp("odd") / "t.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerow(["label", "path", "split"])
        writer.writerows([word, f"{i}.jpg", "train"] for i, word in enumerate(words))
    rows = read_table(file).split("train")
    assert rows.labels.tolist() == words
    assert rows.paths.tolist() == [f"{i}.jpg" for i in range(len(words))]


def test_quoted_newlines_across_blocks(tmp_path):
    file = tmp_path / "t.csv"
    name = "a\nb," * 1000
    file.write_text("label,path,split\n" + "".join(f'"{name}",{i}.jpg,train\n' for i in range(1500)))
    rows = read_table(file).split("all")
    assert rows.paths.tolist() == [f"{i}.jpg" for i in range(1500)]
    assert set(rows.labels) == {name}


def test_parquet_is_the_same_table(tmp_path):
    frame = pd.DataFrame(
        {
            "label": [7, 8],
            "path": ["1.jpg", "2.jpg"],
            "split": pd.Categorical(["train", "validation"]),
            "is_query": [None, True],
            "is_gallery": [float("nan"), 1.0],
            "category": [None, "food"],
            "x_1": [1.0, None], "x_2": [5.0, None], "y_1": [2.0, None], "y_2": [6.0, None],
            "sequence": pd.array([3, None], dtype="Int64"),
        }
    )  # fmt: skip
    frame.to_parquet(tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert read.strings("split").tolist() == ["train", "validation"]
    rows = read.split("all")
    expected = {
        "index": [0, 1], "labels": ["7", "8"], "paths": ["1.jpg", "2.jpg"],
        "is_query": [False, True], "is_gallery": [False, True], "ignored": [False, False],
        "categories": ["", "food"], "sequences": ["3", ""],
        "boxes": [[1, 2, 5, 6], [-1, -1, -1, -1]],
    }  # fmt: skip
    assert {name: getattr(rows, name).tolist() for name in expected} == expected


def test_parquet_refusals(tmp_path):
    file = tmp_path / "t.parquet"
    file.write_bytes(b"PAR1 and no more")
    message, hint = refusal(file)
    assert message.startswith("DIR/t.parquet cannot be read as parquet: ")
    assert hint == "write it again, or use CSV"
    pq.write_table(pa.table({"label": [["a"]], "path": ["1.jpg"], "split": ["train"]}), file)
    message, hint = refusal(file)
    assert message.startswith("DIR/t.parquet: column 'label' is of type list<")
    assert hint == "store it as text or as a number"
