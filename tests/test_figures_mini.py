"""The drawn data set in data/figures_mini is what its make.py draws, and what its README promises."""

import csv
import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parent.parent / "data" / "figures_mini"
Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    with (FOLDER / "df.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def labels_of(rows: Rows, split: str) -> set[str]:
    return {row["label"] for row in rows if row["split"] == split}


def test_make_draws_the_committed_files_byte_for_byte(tmp_path: Path) -> None:
    module_spec = importlib.util.spec_from_file_location("figures_mini_make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    module.make(tmp_path)
    made = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*") if path.is_file()}
    committed = {path.relative_to(FOLDER) for path in [FOLDER / "df.csv", *(FOLDER / "images").iterdir()]}
    assert set(made) == committed
    changed = [str(name) for name in committed if made[name].read_bytes() != (FOLDER / name).read_bytes()]
    assert changed == []


def test_columns_and_counts(rows: Rows) -> None:
    assert ",".join(rows[0]) == "label,path,split,is_query,is_gallery,category,sequence,x_1,x_2,y_1,y_2"
    assert Counter(row["split"] for row in rows) == {"train": 108, "validation": 96}
    assert Counter(Counter(row["label"] for row in rows).values()) == {9: 12, 8: 12}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.*")) < 1_000_000


def test_labels_are_disjoint_and_categories_shared(rows: Rows) -> None:
    assert labels_of(rows, "train") & labels_of(rows, "validation") == set()
    assert len({(row["label"], row["category"]) for row in rows}) == 24
    for split in ("train", "validation"):
        found = {row["category"] for row in rows if row["split"] == split}
        assert found == {"polygon", "star", "ring", "glyph"}


def test_validation_labels_are_new_pairs_of_known_parts(rows: Rows) -> None:
    train = [label.split("_") for label in labels_of(rows, "train")]
    validation = [label.split("_") for label in labels_of(rows, "validation")]
    assert {shape for shape, _ in validation} == {shape for shape, _ in train}
    assert {mark for _, mark in validation} <= {mark for _, mark in train}


def test_flags(rows: Rows) -> None:
    flags = Counter((row["split"], row["is_query"], row["is_gallery"]) for row in rows)
    assert flags == {
        ("train", "", ""): 108,
        ("validation", "true", "true"): 84,
        ("validation", "true", "false"): 6,
        ("validation", "false", "true"): 6,
    }


def test_images_open_and_boxes_lie_inside(rows: Rows) -> None:
    num_boxes = 0
    for row in rows:
        with Image.open(FOLDER / row["path"]) as image:
            width, height = image.size
            colours = image.convert("RGB").getcolors(16)
        assert 64 <= min(width, height) <= max(width, height) <= 96, row
        assert colours is not None
        assert len(colours) > 4, row
        box = [row[key] for key in ("x_1", "x_2", "y_1", "y_2")]
        if any(box):
            left, right, top, bottom = map(int, box)
            assert 0 <= left < right <= width, row
            assert 0 <= top < bottom <= height, row
            assert (right - left) * (bottom - top) < 0.5 * width * height, row
            num_boxes += 1
    assert num_boxes == 45


def test_sequences_are_bursts_of_one_validation_label(rows: Rows) -> None:
    sequences: dict[str, Rows] = {}
    for row in rows:
        if row["sequence"]:
            sequences.setdefault(row["sequence"], []).append(row)
    assert sorted(sequences) == ["burst_0", "burst_1", "burst_2"]
    assert all(len(burst) == 4 for burst in sequences.values())
    assert all(len({row["label"] for row in burst}) == 1 for burst in sequences.values())
    assert all(row["split"] == "validation" for burst in sequences.values() for row in burst)


def test_every_query_has_a_match_beyond_itself_and_its_sequence(rows: Rows) -> None:
    queries = [row for row in rows if row["is_query"] == "true"]
    gallery = [row for row in rows if row["is_gallery"] == "true"]
    for query in queries:
        matches = [
            row
            for row in gallery
            if row["label"] == query["label"]
            and row["path"] != query["path"]
            and (not query["sequence"] or row["sequence"] != query["sequence"])
        ]
        assert len(matches) >= 3, query
