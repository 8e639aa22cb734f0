import os
import subprocess
import sys

import numpy as np
import pytest

from metricli.data import boxes, folders
from metricli.data.checks import check_table
from metricli.data.facts import TableFacts
from metricli.data.table import folder_table, read_table
from metricli.errors import DataError

HEADER = "label,path,split,is_query,is_gallery,category,sequence,x_1,x_2,y_1,y_2"
LINES = [
    "b,b/1.jpg,train,,,c1,,,,,",
    "b,b/2.jpg,train,,,c2,,,,,",
    "a,a/1.jpg,train,,,,,,,,",
    "v,v/1.jpg,validation,true,0,c3,s1,10,20,5,15.0",
    "v,v/2.jpg,validation,FALSE,1,c3,,,,,",
    "t,t/1.jpg,test,False,True,,,,,,",
]


def test_a_split_as_arrays(table, tmp_path):
    rows = table(*LINES, header=HEADER).split("validation")
    assert len(rows) == 2
    assert rows.index.tolist() == [3, 4]
    assert rows.index.dtype == np.int64
    assert rows.labels.tolist() == ["v", "v"]
    assert rows.categories.tolist() == ["c3", "c3"]
    assert rows.sequences.tolist() == ["s1", ""]
    assert rows.is_query.tolist() == [True, False]
    assert rows.is_gallery.tolist() == [False, True]
    assert rows.boxes.tolist() == [[10, 5, 20, 15], [-1, -1, -1, -1]]
    assert rows.boxes.dtype == np.int32
    assert (rows.root, rows.paths[0]) == (tmp_path, "v/1.jpg")


def test_other_splits_and_all(table):
    made = table(*LINES, header=HEADER)
    assert made.split("test").paths.tolist() == ["t/1.jpg"]
    assert made.split("all").index.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(made.split("nothing")) == 0
    assert made.columns == frozenset(HEADER.split(","))


def test_no_box_columns_give_no_boxes(table):
    rows = table("a,1.jpg,train,,").split("all")
    assert rows.boxes is None
    assert rows.categories.tolist() == [""]


def test_a_table_of_paths_is_enough_to_predict(table):
    made = table("1.jpg", "2.jpg", header="path", need="predict")
    assert made.split("all").labels.tolist() == ["", ""]
    assert made.strings("split").tolist() == ["", ""]
    assert made.columns == {"path"}


def test_root_replaces_the_folder_of_the_table(tmp_path):
    (tmp_path / "t.csv").write_text("path\n1.jpg\n")
    rows = read_table(tmp_path / "t.csv", root="/images", need="predict").split("all")
    assert rows.root.as_posix() == "/images"
    assert read_table(tmp_path / "t.csv", need="predict").root == tmp_path


def test_evaluate_needs_the_flags(tmp_path):
    (tmp_path / "t.csv").write_text("label,path,split,is_gallery\na,1.jpg,validation,1\n")
    with pytest.raises(
        DataError, match="has no column 'is_query'; found 'label', 'path', 'split', 'is_gallery'"
    ):
        read_table(tmp_path / "t.csv", need="evaluate")


def test_facts(table):
    assert table(*LINES, header=HEADER).facts() == TableFacts(
        rows=6,
        train_rows=3,
        train_labels=2,
        validation_rows=2,
        train_categories=2,
        instances_min=1,
        instances_median=1.5,
        instances_max=2,
        labels_with_one_instance=1,
        labels_in_two_categories=["b"],
        uncategorised_labels=1,
        labels_of_size={1: 1, 2: 1},
        smallest_labels=["a", "b"],
    )


def test_facts_of_small_labels(table):
    lines = [
        f"{label},{label}{i}.jpg,train,,"
        for label, count in zip("cabde", (2, 3, 1, 2, 9), strict=True)
        for i in range(count)
    ]
    facts = table(*lines, "z,z.jpg,validation,1,1").facts()
    assert facts.labels_of_size == {1: 1, 2: 2, 3: 1, 9: 1}
    assert facts.smallest_labels == ["b", "c", "d"]
    assert [facts.labels_below(count) for count in (1, 2, 3, 4, 9, 10)] == [0, 1, 3, 4, 4, 5]


def test_facts_without_train_rows(table):
    facts = table("a,1.jpg,validation,1,1").facts()
    assert (facts.train_rows, facts.train_labels, facts.instances_median) == (0, 0, 0.0)
    assert (facts.train_categories, facts.uncategorised_labels) == (0, 0)


def test_facts_of_the_rows_that_are_query_and_gallery(table):
    lines = ["a,1.jpg,validation,1,1,", "a,2.jpg,validation,1,0,", "a,3.jpg,validation,1,1,1"]
    lines += ["a,4.jpg,test,true,true,", "a,5.jpg,test,1,1,0"]
    made = table(*lines, header="label,path,split,is_query,is_gallery,ignore")
    assert made.facts().queries_in_gallery == 1
    facts = made.facts("test")
    assert (facts.queries_in_gallery, facts.validation_rows) == (2, 2)


def test_facts_import_neither_pandas_nor_numpy():
    code = "import sys, metricli.data.facts; print({'pandas', 'numpy', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_data_room_does_not_import_torch():
    code = "import sys, metricli.data.inspection; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_folder_in_a_fixed_order(tmp_path):
    for name in ["b/2.PNG", "b.jpg", "a/1.jpeg", "a/notes.txt", "README", "a/10.webp"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    made, others = folder_table(tmp_path)
    assert made.split("all").paths.tolist() == ["a/1.jpeg", "a/10.webp", "b.jpg", "b/2.PNG"]
    assert others == {"": 1, ".txt": 1}
    assert (made.root, made.source, made.columns) == (tmp_path, tmp_path, {"path"})


def test_folders_without_images(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError) as caught:
        folder_table(tmp_path)
    assert caught.value.message == f"no images in {tmp_path}"
    assert caught.value.hint.startswith("expected files ending in .avif, .bmp, ")
    with pytest.raises(DataError, match="does not exist; check the path"):
        folder_table(tmp_path / "none")
    with pytest.raises(DataError, match="is a file, expected a folder of images"):
        folder_table(tmp_path / "notes.txt")


def test_a_file_name_that_is_not_utf8(tmp_path):
    (tmp_path / "caf\udce9.jpg").touch()
    with pytest.raises(DataError) as caught:
        folder_table(tmp_path)
    assert caught.value.message == f"the name of 'caf\\udce9.jpg' in {tmp_path} is not UTF-8"


def test_an_order_of_many_names_is_that_of_python(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_PIECE", 7)
    names = [f"{a}{b}.jpg" for a in ["x", "x/y", "é", "𝒳", "z-"] for b in ["", "1", "/ü", "￿", "😀", "-"]]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    made, others = folder_table(tmp_path)
    assert made.text["path"].to_pylist() == sorted(names)
    assert len(made.text["path"].chunks) == 5
    assert others == {}


def test_linked_folders_are_not_entered(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").touch()
    (tmp_path / "b.jpg").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    made, others = folder_table(tmp_path)
    assert made.text["path"].to_pylist() == ["a/1.jpg"]
    assert others == {}


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "1.jpg").touch()
    scandir = os.scandir

    def refuse(place):
        if os.fsdecode(place).endswith("/a/"):
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError) as caught:
        folder_table(tmp_path)
    assert caught.value.message == f"cannot read the folder '{tmp_path}/a/': permission denied"


def test_predicting_reads_no_column_that_it_does_not_use(table):
    made = table(*LINES, header=HEADER, need="predict")
    assert sorted(made.text) == ["label", "path", "split", "x_1", "x_2", "y_1", "y_2"]
    assert made.columns == frozenset(HEADER.split(","))
    assert made.split("test").labels.tolist() == ["t"]
    assert made.split("validation").boxes.tolist() == [[10, 5, 20, 15], [-1, -1, -1, -1]]
    for name in ("category", "sequence"):
        with pytest.raises(LookupError, match=f"the column '{name}' was not read"):
            made.strings(name)
    with pytest.raises(LookupError, match="'is_query' was not read"):
        made.split("all").is_query  # noqa: B018


def test_a_split_of_a_table_of_paths_makes_no_strings(table):
    rows = table(*[f"{i}.jpg" for i in range(100)], header="path", need="predict").split("all")
    assert (len(rows), rows.paths[99], rows.labels[99]) == (100, "99.jpg", "")
    assert rows.paths[10:12].tolist() == ["10.jpg", "11.jpg"]
    assert rows.places is None
    assert rows.paths.column is rows.table.text["path"]


def test_boxes_are_parsed_piece_by_piece(table, monkeypatch):
    header = "path,x_1,x_2,y_1,y_2"
    lines = ["a,,,,", "b,,,,", "c,0,5,0,7", "d,1,,,", "e,9,5,0,7", "f,,,,", "g,,,,", "h,1,2,3,4", "i,1,2,,"]
    monkeypatch.setattr(boxes, "_PIECE", 2)
    found = table(*lines, header=header, need="predict").boxes
    assert found.values.tolist() == [
        [0, 0, 5, 7] if row == 2 else [1, 3, 2, 4] if row == 7 else [-1] * 4 for row in range(9)
    ]
    assert found.values.dtype == np.int32
    assert (found.partial.tolist(), found.wrong.tolist()) == ([3, 8], [4])


def test_rows_with_other_boxes_are_no_repeats(table):
    lines = ["a,0,5,0,7", "a,0,5,0,8", "b,,,,", "a,0,5,0,7", "b,,,,", "b,0,5,0,7"]
    made = table(*lines, header="path,x_1,x_2,y_1,y_2", need="predict")
    (found,) = check_table(made, need="predict", files=False)
    assert (found.code, found.rows) == ("duplicate-row", [4, 5])
    assert found.message == "2 rows repeat an earlier row (row 4, 5): remove"
