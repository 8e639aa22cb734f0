import json

import numpy as np
import pytest

from metricli.data import deep
from metricli.data.facts import TableFacts
from metricli.data.inspection import histogram, inspect_table, suggest_sampler
from metricli.reports import SplitSummary

HEADER = "label,path,split,is_query,is_gallery,category,sequence,x_1,x_2,y_1,y_2"
LINES = [
    "a,1.png,train,,,c,,0,6,0,4",
    "a,2.png,train,,,c,,,,,",
    "b,3.png,train,,,d,,,,,",
    "b,4.png,train,,,d,,,,,",
    "b,5.png,train,,,d,,,,,",
    "v,6.png,validation,1,0,e,s1,,,,",
    "v,7.jpg,validation,0,1,e,s2,,,,",
    "w,8.png,validation,0,1,e,s3,,,,",
]


@pytest.fixture
def dataset(tmp_path, image):
    for i, line in enumerate(LINES):
        image(tmp_path / line.split(",")[1], size=(6 + i, 4), colour=(i, i, i))
    (tmp_path / "t.csv").write_text("\n".join([HEADER, *LINES]) + "\n")
    return tmp_path / "t.csv"


def add(dataset, *lines):
    with dataset.open("a") as stream:
        stream.write("\n".join(lines) + "\n")


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_table(dataset, deep):
    progress = []
    report = inspect_table(dataset, deep=deep, on_progress=lambda done, total: progress.append((done, total)))
    assert report.findings == []
    assert report.errors == 0
    assert (report.table, report.rows) == (str(dataset), 8)
    assert report.splits == {
        "train": SplitSummary(5, 2, 2, 0, 0, 0, 1, 2, 2.5, 3, [("2-3", 2)]),
        "validation": SplitSummary(3, 2, 1, 3, 1, 2, 0, 1, 1.5, 2, [("1", 1), ("2-3", 1)]),
    }
    assert report.images == {
        "width": [6, 9.5, 13],
        "height": [4, 4.0, 4],
        "formats": {"JPEG": 1, "PNG": 7},
        "checked": 8,
        "images": 8,
    }
    assert progress == [(i, 8) for i in range(1, 9)]
    assert json.loads(json.dumps(report.to_dict()))["splits"]["train"]["histogram"] == [["2-3", 2]]


def test_only_a_spread_out_sample_is_looked_at_unless_deep(dataset, monkeypatch):
    monkeypatch.setattr(deep, "SAMPLE", 3)
    assert inspect_table(dataset).images["checked"] == 3
    assert inspect_table(dataset).images["width"] == [6, 9.0, 13]
    assert inspect_table(dataset, deep=True).images["checked"] == 8


def test_unreadable_files(dataset):
    folder = dataset.parent
    (folder / "1.png").write_text("no image")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])
    shallow = inspect_table(dataset).findings
    assert [(f.code, f.severity, f.count, f.rows) for f in shallow] == [("unreadable-file", "error", 1, [1])]
    assert shallow[0].message == (
        f"1 row names an unreadable image: cannot read image '{folder}/1.png': "
        "not an image, or of a kind that is not read (row 1); replace or remove"
    )
    report = inspect_table(dataset, deep=True)
    assert [(f.code, f.rows) for f in report.findings] == [("unreadable-file", [1, 2])]
    assert report.errors == 1
    assert report.images["checked"] == 6


def test_an_image_above_the_cap_is_unreadable(dataset):
    found = inspect_table(dataset, max_pixels=40).findings
    assert [(f.code, f.rows) for f in found] == [("unreadable-file", [6, 7, 8])]
    assert "7.jpg': 12 x 4 is more than the 40 pixels allowed (row 7)" in found[0].message


def test_missing_files_are_said_once(dataset):
    (dataset.parent / "1.png").unlink()
    assert [(f.code, f.rows) for f in inspect_table(dataset, deep=True).findings] == [("missing-file", [1])]


def test_boxes_outside_the_image(dataset):
    add(dataset, "a,1.png,train,,,c,,0,7,0,4", "a,2.png,train,,,c,,0,7,0,4", "a,2.png,train,,,c,,0,7,0,5")
    (finding,) = inspect_table(dataset).findings
    assert (finding.code, finding.severity, finding.count, finding.rows) == (
        "box-outside-image",
        "error",
        2,
        [9, 11],
    )
    assert finding.message == (
        "2 boxes reach outside the upright image: "
        "'(0, 0, 7, 4) of 6 x 4' (row 9), '(0, 0, 7, 5) of 7 x 4' (row 11); "
        "expected left, top, right, bottom within it"
    )


def test_identical_files_in_two_splits_or_of_two_labels(dataset):
    folder = dataset.parent
    for source, target in [("6", "9"), ("1", "10"), ("3", "11")]:
        (folder / f"{target}.png").write_bytes((folder / f"{source}.png").read_bytes())
    add(dataset, "v,9.png,train,,,e,,,,,", "v,11.png,train,,,e,,,,,", "a,10.png,train,,,c,,,,,")
    (finding,) = [f for f in inspect_table(dataset, deep=True).findings if f.code == "identical-files"]
    assert (finding.severity, finding.count, finding.rows) == ("warning", 2, [9, 10])
    assert finding.message == (
        "2 rows have the same file content as an earlier row of another split or label: "
        "'9.png' (row 9), '11.png' (row 10); remove all but one"
    )
    assert "identical-files" not in [f.code for f in inspect_table(dataset).findings]


def test_histogram_bins_are_powers_of_two():
    assert histogram(np.array([1, 2, 3, 4, 7, 8, 33])) == [
        ("1", 1), ("2-3", 2), ("4-7", 2), ("8-15", 1), ("16-31", 0), ("32-63", 1)
    ]  # fmt: skip
    assert histogram(np.array([5])) == [("4-7", 1)]


def facts(labels, median):
    return TableFacts(0, 0, labels, 0, 0, 1, median, 9, 0, [], 0)


MEDIAN = "the median train label has"
FITS = "images gives enough negatives and fits most GPUs (32 to 128 is usual)"


@pytest.mark.parametrize(
    ("labels", "median", "n_labels", "n_instances", "why"),
    [
        (
            1000, 10.0, 16, 4,
            [f"{MEDIAN} 10, and more than 4 would cost labels in the batch", f"a batch of 64 {FITS}"],
        ),
        (
            1000, 3.5, 21, 3,
            [f"{MEDIAN} 3.5, and more would be refilled with repeats", f"a batch of 63 {FITS}"],
        ),
        (
            50, 1.0, 32, 2,
            [f"{MEDIAN} 1, and no positive pair can be formed from fewer than 2", f"a batch of 64 {FITS}"],
        ),
        (
            3, 100.0, 3, 10,
            [f"few labels, so more instances of each fill the batch; {MEDIAN} 100",
             "every train label is in each batch of 30 images"],
        ),
    ],
)  # fmt: skip
def test_suggested_sampler(labels, median, n_labels, n_instances, why):
    suggested = suggest_sampler(facts(labels, median))
    why = [f"n_instances {n_instances}: {why[0]}", f"n_labels {n_labels}: {why[1]}"]
    assert suggested == {"n_labels": n_labels, "n_instances": n_instances, "why": why}


def test_no_sampler_is_suggested_for_less_than_two_labels():
    assert suggest_sampler(facts(0, 0.0)) == {}
    assert suggest_sampler(facts(1, 9.0)) == {}
