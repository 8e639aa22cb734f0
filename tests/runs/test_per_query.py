"""The table of queries: what a plain reader finds in it, the way back, and files that are not it."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from metricli.core.results import SearchResult
from metricli.data.table import Rows, read_table
from metricli.errors import DataError, ResourceError
from metricli.runs.per_query import (
    per_query_of,
    read_per_query,
    remove_per_query,
    rows_digest,
    write_per_query,
)

NEAREST = ["nearest_row", "nearest_path", "nearest_label", "nearest_distance", "nearest_is_match"]
HEADER = ["row", "path", "label", "category", "relevant", "cmc@1", "map@r", *NEAREST]
PATHS = ["a.jpg", 'b, "1".jpg', "ä/c\nd.jpg", "NA", "e.jpg", "f.jpg"]


def table_rows(tmp_path: Path, **changed: list[str]) -> Rows:
    columns = {
        "path": PATHS,
        "label": ["x", "x", "1", "1", "nan", "x"],
        "category": ["hat", "hat", "", "", "shoe", "hat"],
        "sequence": ["", "s", "s", "", "", ""],
        "split": ["train", *["validation"] * 5],
        "is_query": ["", "1", "1", "0", "1", "1"],
        "is_gallery": ["", "0", "1", "1", "0", "1"],
    }
    source = tmp_path / "table.csv"
    pd.DataFrame(columns | changed).to_csv(source, index=False)
    return read_table(source, need="evaluate").split("validation")


@pytest.fixture
def judged(tmp_path: Path) -> dict[str, Any]:
    """Queries 3, 2, 5 and 6 of the table and what they found; the third has no match, the last nothing."""
    rows = table_rows(tmp_path)
    queries, gallery = np.flatnonzero(rows.is_query), np.flatnonzero(rows.is_gallery)
    assert rows.index[queries].tolist() == [1, 2, 4, 5]
    assert rows.index[gallery].tolist() == [2, 3, 5]
    infinite = math.inf
    return {
        "rows": rows,
        "queries": queries,
        "gallery": gallery,
        "values": {
            "cmc@1": torch.tensor([0.0, 1.0, math.nan, 0.0], dtype=torch.float64),
            "map@r": torch.tensor([1 / 3, 0.1, math.nan, 0.0], dtype=torch.float64),
        },
        "num_relevant": torch.tensor([1, 1, 0, 2]),
        "result": SearchResult(
            torch.tensor([[1, 2], [1, -1], [0, 1], [-1, -1]]),
            torch.tensor([[0.25, 0.5], [0.125, infinite], [1.5, 1.75], [infinite, infinite]]),
        ),
    }


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Lines with None for what is empty, by pandas or by the csv module."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [{key: word or None for key, word in line.items()} for line in csv.DictReader(file)]
    frame = pd.read_parquet(path).astype(object)
    return frame.where(frame.notna(), None).to_dict("records")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_line_for_each_query(tmp_path, judged, kind):
    path = write_per_query(tmp_path / "out" / "here", kind, **judged)
    assert path == tmp_path / "out" / "here" / f"per_query.{kind}"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    found = lines_of(path)
    expected = [
        [2, 'b, "1".jpg', "x", "hat", 1, 0.0, 1 / 3, 4, "NA", "1", 0.25, False],
        [3, "ä/c\nd.jpg", "1", "", 1, 1.0, 0.1, 4, "NA", "1", 0.125, True],
        [5, "e.jpg", "nan", "shoe", 0, None, None, 3, "ä/c\nd.jpg", "1", 1.5, False],
        [6, "f.jpg", "x", "hat", 2, 0.0, 0.0, None, None, None, None, None],
    ]
    assert [list(line) for line in found] == [HEADER] * 4
    for line, wanted in zip(found, expected, strict=True):
        for (name, value), want in zip(line.items(), wanted, strict=True):
            if kind == "csv":
                if isinstance(want, bool):
                    want = str(want).lower()
                elif isinstance(want, (int, float)):
                    value = float(value)
                elif want == "":
                    want = None
            assert value == want, (name, want)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_it_is_read_back_to_the_bit(tmp_path, judged, kind):
    path = write_per_query(tmp_path, kind, **judged)
    for place in (path, tmp_path):
        back = read_per_query(place)
        assert back.rows.tolist() == [2, 3, 5, 6]
        assert back.rows.dtype == np.int64
        assert back.paths.tolist() == [PATHS[i] for i in (1, 2, 4, 5)]
        assert back.labels.tolist() == ["x", "1", "nan", "x"]
        assert back.categories.tolist() == ["hat", "", "shoe", "hat"]
        assert list(back.values) == ["cmc@1", "map@r"]
        assert back.protocol is None
        same = per_query_of(judged["rows"], judged["queries"], judged["values"], {"split": "validation"})
        assert same.protocol == {"split": "validation"}
        for name in ("rows", "paths", "labels", "categories"):
            assert np.array_equal(getattr(same, name), getattr(back, name)), name
        for metric, values in same.values.items():
            assert values.dtype == back.values[metric].dtype == np.float64
            assert np.array_equal(values, back.values[metric], equal_nan=True)


def test_lines_in_another_order_and_columns_of_ones_own_do_no_harm(tmp_path, judged):
    path = write_per_query(tmp_path, "csv", **judged)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False).iloc[::-1]
    frame["remark"] = "mine"
    frame["cmc@1"] = [word.removesuffix(".0") for word in frame["cmc@1"]]  # as a spreadsheet would
    frame.to_csv(path, index=False)
    back = read_per_query(path)
    assert back.rows.tolist() == [2, 3, 5, 6]
    assert back.labels.tolist() == ["x", "1", "nan", "x"]
    assert list(back.values) == ["cmc@1", "map@r"]
    assert back.values["map@r"].tolist() == pytest.approx([1 / 3, 0.1, math.nan, 0.0], nan_ok=True)


def test_words_stay_words(tmp_path):
    place = tmp_path / "x.csv"
    place.write_text("row,path,label,category,cmc@1\n1,01,007,1e3,1\n2,02,010,true,\n")
    back = read_per_query(place)
    found = back.paths.tolist(), back.labels.tolist(), back.categories.tolist()
    assert found == (["01", "02"], ["007", "010"], ["1e3", "true"])
    frame = pd.DataFrame({"row": [1], "path": ["a"], "label": ["x"], "category": [None], "cmc@1": [1.0]})
    frame.to_parquet(tmp_path / "x.parquet")
    assert read_per_query(tmp_path / "x.parquet").categories.tolist() == [""]
    lines = [f'{row},"{"a" * 60}\n{row}",x,,1' for row in range(40_000)]  # more than a block of the reader
    place.write_text("\n".join(["row,path,label,category,cmc@1", *lines]))
    assert read_per_query(place).paths[-1] == "a" * 60 + "\n39999"


def test_a_gallery_of_another_table(tmp_path, judged):
    other = table_rows(tmp_path, path=[f"other/{i}.jpg" for i in range(6)])
    path = write_per_query(tmp_path, "parquet", gallery_rows=other, **judged)
    assert [line["nearest_path"] for line in lines_of(path)] == [
        "other/3.jpg",
        "other/3.jpg",
        "other/2.jpg",
        None,
    ]
    assert lines_of(path)[0]["path"] == PATHS[1]


def test_a_file_of_the_other_kind_is_from_before_and_goes(tmp_path, judged):
    write_per_query(tmp_path, "csv", **judged)
    write_per_query(tmp_path, "parquet", **judged)
    assert sorted(file.name for file in tmp_path.glob("per_query*")) == ["per_query.parquet"]
    remove_per_query(tmp_path)
    assert not list(tmp_path.glob("per_query*"))


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, judged, monkeypatch):
    path = write_per_query(tmp_path, "csv", **judged)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    judged["values"]["cmc@1"] += 1
    with pytest.raises(ResourceError) as raised:
        write_per_query(tmp_path, "csv", **judged)
    assert str(raised.value) == f"cannot write {str(path)!r}: No space left on device"
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"^cannot write '.*/file/per_query.csv': \w+"):
        write_per_query(tmp_path / "file", "csv", **judged)


def metrics_json(folder: Path, overall: dict[str, float | None], **more: Any) -> None:
    (folder / "metrics.json").write_text(json.dumps({"metrics": {"OVERALL": overall}} | more))


def test_the_protocol_comes_from_the_metrics_beside_it(tmp_path, judged):
    path = write_per_query(tmp_path, "parquet", **judged)
    means = {"cmc@1": 1 / 3, "map@r": (1 / 3 + 0.1) / 3, "eer": 0.1}
    metrics_json(tmp_path, means, protocol={"split": "validation"})
    assert read_per_query(path).protocol == {"split": "validation"}
    metrics_json(tmp_path, means)
    assert read_per_query(path).protocol is None
    for wrong, shown in ((0.4, "0.4"), (None, "None")):
        metrics_json(tmp_path, means | {"cmc@1": wrong}, protocol={"split": "validation"})
        with pytest.raises(DataError) as raised:
            read_per_query(tmp_path)
        assert str(raised.value) == (
            f"{str(path)!r} does not belong to the metrics.json beside it: cmc@1 is {shown} there and "
            "0.3333333333333333 by its queries; make both again with `metricli validate --out`"
        )
    for text in ("{", "[]", '{"metrics": {}}'):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(DataError) as raised:
            read_per_query(tmp_path)
        assert str(raised.value) == (
            f"{str(tmp_path / 'metrics.json')!r} is damaged, or not of `metricli validate`; make it again"
        )
    judged["values"] = {name: torch.full((4,), math.nan) for name in means if name != "eer"}
    write_per_query(tmp_path, "parquet", **judged)
    metrics_json(tmp_path, dict.fromkeys(means), protocol={"split": "test"})
    assert read_per_query(path).protocol == {"split": "test"}
    metrics_json(tmp_path, dict.fromkeys(means, 0.0))
    with pytest.raises(DataError, match=r"cmc@1 is 0\.0 there and None by its queries"):
        read_per_query(path)


def test_files_that_are_not_it_are_refused_in_one_line(tmp_path, judged):
    def refused(place: Path) -> str:
        with pytest.raises(DataError) as raised:
            read_per_query(place)
        assert "\n" not in str(raised.value)
        return str(raised.value).replace(str(tmp_path), "HERE")

    assert refused(tmp_path / "none") == "'HERE/none' does not exist"
    assert refused(tmp_path) == (
        "the folder 'HERE' holds neither per_query.parquet nor per_query.csv; "
        "`metricli validate --out FOLDER` writes one"
    )
    (tmp_path / "x.txt").touch()
    assert refused(tmp_path / "x.txt") == "'HERE/x.txt' is neither .parquet nor .csv, nor a folder"
    whole = write_per_query(tmp_path, "parquet", **judged)
    path = tmp_path / "x.parquet"
    path.write_bytes(whole.read_bytes()[:-20])
    assert refused(path).startswith("cannot read 'HERE/x.parquet': ")
    (tmp_path / "empty.csv").touch()
    assert refused(tmp_path / "empty.csv") == "cannot read 'HERE/empty.csv': Empty CSV file"
    (tmp_path / "per_query.csv").touch()
    assert refused(tmp_path) == (
        "the folder 'HERE' holds both per_query.parquet and per_query.csv; give the file itself"
    )
    frame = pd.read_parquet(whole)
    again = "; give what `metricli validate --out` wrote"
    for column in ("row", "path", "label", "category"):
        frame.drop(columns=column).to_parquet(path)
        assert refused(path) == f"'HERE/x.parquet' has no column {column!r}{again}"
    frame.drop(columns=["cmc@1", "map@r"]).to_parquet(path)
    assert refused(path) == (
        "'HERE/x.parquet' has no column of a metric: none that was asked for has a value for each query; "
        "judge it again with a ranking metric, such as cmc"
    )
    pd.concat([frame, frame[1:2]]).to_parquet(path)
    assert refused(path) == "'HERE/x.parquet' has row 3 twice; make it again"
    frame.assign(row=[2, 3, None, 6]).to_parquet(path)
    assert refused(path) == "'HERE/x.parquet' has a line without its row; make it again"
    frame.assign(**{"cmc@1": ["0", "1", "high", "0"]}).to_csv(tmp_path / "x.csv", index=False)
    assert refused(tmp_path / "x.csv").startswith("cannot read 'HERE/x.csv': ")


def test_the_digest_changes_with_all_that_is_judged_and_nothing_else(tmp_path):
    def digest(rows: Rows, **swap: Any) -> str:
        queries, gallery = np.flatnonzero(rows.is_query), np.flatnonzero(rows.is_gallery)
        return rows_digest(rows, swap.get("queries", queries), swap.get("gallery", gallery))

    rows = table_rows(tmp_path)
    known = digest(rows)
    assert len(known) == 64
    changed = {
        "path": ["a.jpg", "b.jpg", *PATHS[2:]],
        "label": ["x", "x", "1", "2", "nan", "x"],
        "category": ["hat", "hat", "", "bag", "shoe", "hat"],
        "sequence": ["", "s", "", "", "", ""],
        "is_query": ["", "1", "1", "1", "1", "1"],
        "is_gallery": ["", "0", "1", "1", "1", "1"],
    }
    digests = [digest(table_rows(tmp_path, **{name: words})) for name, words in changed.items()]
    boxes = {name: ["", *[str(10 * i)] * 5] for i, name in enumerate(("x_1", "y_1", "x_2", "y_2"))}
    digests.append(digest(table_rows(tmp_path, **boxes)))
    digests.append(digest(rows, queries=np.flatnonzero(rows.is_query)[:-1]))
    order = [1, 0, 2, 3, 4]
    digests.append(digest(Rows(rows.table, rows.index[order])))
    sides = np.flatnonzero(rows.is_query), np.flatnonzero(rows.is_gallery)
    digests += [rows_digest(rows, *sides[::-1]), rows_digest(rows, *sides, ids=sides)]
    assert len({known, *digests}) == 1 + len(digests)
    # the train row, boxes of others, and a row that is neither query nor gallery do not count
    first = {"path": ["z.jpg", *PATHS[1:]], "label": ["y", "x", "1", "1", "nan", "x"]}
    assert digest(table_rows(tmp_path, **first)) == known
    assert digest(table_rows(tmp_path, **{name: ["1", *[""] * 5] for name in boxes})) == known
    more = {
        name: [*values, values[-1]]
        for name, values in {
            "path": PATHS, "label": ["x", "x", "1", "1", "nan", "x"],
            "category": ["hat", "hat", "", "", "shoe", "hat"], "sequence": ["", "s", "s", "", "", ""],
            "split": ["train", *["validation"] * 5], "is_query": ["", "1", "1", "0", "1", "1"],
            "is_gallery": ["", "0", "1", "1", "0", "1"],
        }.items()
    }  # fmt: skip
    more["is_query"][-1] = more["is_gallery"][-1] = "0"
    assert digest(table_rows(tmp_path, **more)) == known


def test_the_digest_is_that_of_the_bytes(tmp_path):
    import hashlib

    rows = table_rows(tmp_path)
    text = [
        "\0".join(['b, "1".jpg', "ä/c\nd.jpg", "NA", "e.jpg", "f.jpg"]),
        "\0".join(["x", "1", "1", "nan", "x"]),
        "\0".join(["hat", "", "", "shoe", "hat"]),
        "\0".join(["s", "s", "", "", ""]),
    ]
    sides = b""
    for places in ([0, 1, 3, 4], [1, 2, 4]):
        words = ("\0".join(t.split("\0")[i] for i in places).encode() + b"\1" for t in text)
        sides += hashlib.sha256(len(places).to_bytes(8, "little") + b"".join(words)).digest()
    queries, gallery = np.flatnonzero(rows.is_query), np.flatnonzero(rows.is_gallery)
    assert rows_digest(rows, queries, gallery) == hashlib.sha256(sides).hexdigest()
    shared = np.array([-1, 0, -1, 1, 0, -1, 1], dtype="<i8").tobytes()
    found = rows_digest(rows, queries, gallery, ids=(queries, gallery))
    assert found == hashlib.sha256(sides + shared).hexdigest()


def test_the_digest_is_of_rows_and_of_pairs_taken_out_however_they_are_given(tmp_path):
    rows, again = table_rows(tmp_path), table_rows(tmp_path)
    queries, gallery = np.flatnonzero(rows.is_query), np.flatnonzero(rows.is_gallery)
    known = rows_digest(rows, queries, gallery)
    for same in (rows, again):
        assert rows_digest(rows, queries, gallery, same) == known
    everyone = np.arange(5)
    assert rows_digest(rows, everyone, everyone, again) == rows_digest(rows, everyone, everyone)

    def with_ids(one: list[int], two: list[int]) -> str:
        return rows_digest(rows, queries, gallery, ids=(np.array(one), np.array(two)))

    places = with_ids([0, 1, 3, 4], [1, 2, 4])
    assert with_ids([9, 5, 7, 2], [5, 6, 2]) == places  # other codes, the same pairs
    assert with_ids([9, 5, 9, 2], [5, 6, 2]) == places  # two alike that nobody else is like
    assert len({known, places, with_ids([9, 5, 7, 8], [5, 6, 2]), with_ids([9, 5, 7, 6], [5, 6, 2])}) == 4
