"""Who may find whom, from a table and a spec, against loops over the rows."""

import json
import math

import numpy as np
import pytest
import torch

from metricli import evaluate, validate
from metricli.data.table import read_table
from metricli.errors import DataError
from metricli.reporter import SilentReporter
from metricli.runs.protocol import Judged, protocol_of
from metricli.runs.train import open_training_table
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec
from metricli.specs.validate import ValidationSpec

HEADER = "label,path,split,is_query,is_gallery,category,sequence,ignore"
ROWS = [
    # label, query, gallery, category, sequence, ignore, place on a line
    ("a", 1, 1, "x", "", "", 0.0),
    ("a", 1, 1, "x", "s", "", 0.3),
    ("a", 1, 1, "x", "s", "", 1.5),
    ("b", 1, 1, "x", "", "", 1.6),
    ("b", 0, 1, "y", "", "", 1.8),
    ("b", 1, 0, "y", "", "", 1.95),
    ("c", 1, 1, "y", "", "1", 0.1),
    ("d", 1, 1, "y", "", "", 2.9),
    ("d", 1, 1, "y", "", "0", 3.1),
]
POINTS = np.array([[row[-1]] for row in ROWS])


def write(folder, rows, name="t.csv"):
    lines = [
        f"{label},{i}.jpg,validation,{q},{g},{category},{sequence},{ignore}"
        for i, (label, q, g, category, sequence, ignore, _) in enumerate(rows)
    ]
    (folder / name).write_text("\n".join([HEADER, *lines]) + "\n")
    return folder / name


def naive(rows, gallery_rows=None, *, within=False, same=True, unmatched="skip"):
    """cmc@1 and map@r of each judged query, and their means, from loops."""
    gallery_rows = rows if gallery_rows is None else gallery_rows
    values = []
    for i, (label, query, _, category, sequence, ignore, place) in enumerate(rows):
        if not query or ignore == "1":
            continue
        ranked = sorted(
            (abs(place - other[-1]), j)
            for j, other in enumerate(gallery_rows)
            if other[2]
            and other[5] != "1"
            and not (same and i == j)
            and (sequence == "" or sequence != other[4])
            and (not within or other[3] == category)
        )
        hits = [gallery_rows[j][0] == label for _, j in ranked]
        n = sum(hits)
        if n == 0:
            values.append((0.0, 0.0) if unmatched == "zero" else (math.nan, math.nan))
            continue
        precision = sum(sum(hits[: r + 1]) / (r + 1) for r in range(n) if hits[r]) / n
        values.append((float(hits[0]), precision))
    return np.nanmean(np.array(values), axis=0)


def spec(**changes):
    return ValidationSpec(metrics={"cmc": [1], "precision": [], "map": []}, distance="euclidean", **changes)


def found(report):
    return [report.metrics["OVERALL"][name] for name in ("cmc@1", "map@r")]


def test_ignored_rows_neither_ask_nor_are_found(tmp_path):
    report = evaluate(POINTS, write(tmp_path, ROWS), validation=spec())
    assert found(report) == pytest.approx(naive(ROWS), abs=1e-12)
    assert report.ignored == 1
    assert (report.queries, report.gallery) == (7, 7)
    with_junk = [(*row[:5], "", row[-1]) for row in ROWS]
    other = evaluate(POINTS, write(tmp_path, with_junk), validation=spec())
    assert found(other) == pytest.approx(naive(with_junk), abs=1e-12)
    assert found(other) != pytest.approx(found(report))


def test_a_search_within_the_category(tmp_path):
    report = evaluate(POINTS, write(tmp_path, ROWS), validation=spec(search_within="category"))
    assert found(report) == pytest.approx(naive(ROWS, within=True), abs=1e-12)
    assert found(report) != pytest.approx(naive(ROWS))
    rows = [*ROWS[:3], ("b", 1, 1, "", "", "", 2.0)]
    with pytest.raises(DataError, match=r"each judged row, and 1 lack it, the first '3.jpg'"):
        evaluate(POINTS[:4], write(tmp_path, rows), validation=spec(search_within="category"))


def test_the_three_ways_with_queries_without_a_match(tmp_path):
    rows = [*ROWS, ("alone", 1, 1, "x", "", "", 0.2)]
    points = np.array([[row[-1]] for row in rows])
    table = write(tmp_path, rows)
    for policy in ("skip", "zero"):
        report = evaluate(points, table, validation=spec(unmatched=policy))
        assert found(report) == pytest.approx(naive(rows, unmatched=policy), abs=1e-12)
        assert report.unmatched == ["9.jpg"]
        assert report.queries_without_match == 1
        assert any(
            message.startswith("1 of 8 queries have no match in the gallery and")
            for message in report.warnings
        )
    with pytest.raises(DataError, match=r"1 of 8 queries have no match in the gallery: '9.jpg'"):
        evaluate(points, table, validation=spec(unmatched="error"))


def test_new_queries_against_the_saved_features_of_an_old_gallery(tmp_path):
    table = write(tmp_path, ROWS)
    old = POINTS[::-1].copy()
    np.save(tmp_path / "old.npy", old.astype(np.float32))
    report = evaluate(
        POINTS.astype(np.float32), table, validation=spec(gallery_features=str(tmp_path / "old.npy"))
    )
    moved = [(*row[:-1], float(place[0])) for row, place in zip(ROWS, old, strict=True)]
    assert found(report) == pytest.approx(naive(ROWS, moved), abs=1e-12)


def test_a_gallery_of_another_table(tmp_path):
    theirs = [("b", 0, 1, "x", "", "", 2.0), ("a", 0, 1, "x", "", "", 0.9), ("d", 0, 1, "y", "s", "", 1.2)]
    table, other = write(tmp_path, ROWS), write(tmp_path / "..", theirs, f"{tmp_path.name}_old.csv")
    np.save(tmp_path / "old.npy", np.array([[row[-1]] for row in theirs]))
    words = {"gallery_features": str(tmp_path / "old.npy"), "gallery_table": str(other)}
    report = evaluate(POINTS, table, validation=spec(**words))
    assert found(report) == pytest.approx(naive(ROWS, theirs, same=False), abs=1e-12)
    assert report.gallery == 3
    beside = write(tmp_path, theirs, "old.csv")  # the same folder: its 1.jpg is the table's 1.jpg
    report = evaluate(POINTS, table, validation=spec(**words | {"gallery_table": str(beside)}))
    assert found(report) == pytest.approx(naive(ROWS, theirs), abs=1e-12)


def test_a_gallery_of_another_dimension_is_refused(tmp_path):
    np.save(tmp_path / "old.npy", np.ones((len(ROWS), 3)))
    with pytest.raises(DataError, match="the queries have 1 dimensions, and gallery_features 3"):
        evaluate(POINTS, write(tmp_path, ROWS), validation=spec(gallery_features=str(tmp_path / "old.npy")))


def test_an_approximate_search_says_that_it_is(tmp_path):
    pytest.importorskip("faiss")
    exact = evaluate(POINTS, write(tmp_path, ROWS), validation=spec())
    report = evaluate(POINTS, tmp_path / "t.csv", validation=spec(search={"index": "Flat"}))
    assert found(report) == found(exact)
    assert report.search == "approximate (Flat)"
    assert any("approximate" in message for message in report.warnings)
    assert json.loads(json.dumps(report.to_dict()))["search"] == report.search


def test_an_image_reached_another_way_is_still_the_query_itself(tmp_path):
    """By a link to the folder or to the file, by dots, by an absolute path, and from a copy of the table."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(len(ROWS)):
        (images / f"{i}.jpg").touch()
    (tmp_path / "link").symlink_to(images)
    (images / "alias.jpg").symlink_to(images / "1.jpg")
    np.save(tmp_path / "x.npy", POINTS)
    table = write(images, ROWS)

    def judged(paths, place):
        lines = table.read_text()
        for i, path in enumerate(paths):
            lines = lines.replace(f",{i}.jpg,", f",{path},")
        place.write_text(lines)
        words = {"gallery_features": str(tmp_path / "x.npy"), "gallery_table": str(place)}
        return evaluate(POINTS, table, validation=spec(**words))

    alone = evaluate(POINTS, table, validation=spec())
    plain = [f"{i}.jpg" for i in range(len(ROWS))]
    ways = {
        "another name": (plain, images / "copy.csv"),
        "another root": (plain, tmp_path / "link" / "copy.csv"),
        "a folder above": ([f"link/../images/{path}" for path in plain], tmp_path / "above.csv"),
        "absolute": ([f"{tmp_path}/link/{path}" for path in plain], tmp_path / "absolute.csv"),
        "a link": (["0.jpg", "alias.jpg", *plain[2:]], images / "alias.csv"),
    }
    for way, (paths, place) in ways.items():
        report = judged(paths, place)
        assert found(report) == pytest.approx(naive(ROWS), abs=1e-12), way
        same = way in ("another name", "another root")
        assert (report.protocol["rows_digest"] == alone.protocol["rows_digest"]) == same, way
    apart = judged(plain, tmp_path / "apart.csv")  # these images are not there: not the same ones
    assert found(apart) == pytest.approx(naive(ROWS, same=False), abs=1e-12)
    assert apart.protocol["rows_digest"] != alone.protocol["rows_digest"]


def test_paths_written_alike_in_another_folder_are_doubtful(tmp_path):
    rows = read_table(write(tmp_path, ROWS), need="evaluate").split("validation")
    (tmp_path / "other").mkdir()
    others = read_table(write(tmp_path / "other", ROWS[:2]), need="evaluate").split("validation")
    judged = Judged(rows, torch.zeros(len(rows), 2), np.ones(len(rows), dtype=bool))
    gallery = Judged(others, torch.zeros(len(others), 2), np.ones(len(others), dtype=bool))
    (note,) = protocol_of(judged, gallery, spec()).notes
    assert note.startswith(
        "2 of 7 queries have the path of a row of gallery_table, the first '0.jpg', but in another folder"
    )
    assert protocol_of(judged, Judged(rows, judged.embeddings, judged.readable), spec()).notes == []


def test_a_gallery_s_own_features_compare_with_saved_ones_of_the_same_rows(tmp_path):
    table = write(tmp_path, ROWS)
    np.save(tmp_path / "new.npy", POINTS)
    np.save(tmp_path / "old.npy", POINTS + np.random.default_rng(0).normal(size=POINTS.shape))
    words = {"features": tmp_path / "new.npy", "data": table}
    base = {"validation": {"metrics": {"cmc": [1]}, "distance": "euclidean"}}
    validate(base, **words).save(tmp_path / "own")
    for given in ({}, {"gallery_table": str(table)}):
        other = {"validation": base["validation"] | {"gallery_features": str(tmp_path / "old.npy")} | given}
        report = validate(other, **words, against=tmp_path / "own")
        assert report.comparison is not None
        assert report.comparison.notes == [
            f"gallery: {tmp_path / 'new.npy'} has {tmp_path / 'old.npy'}, {tmp_path / 'own'} has its own "
            "embeddings"
        ]


def test_pairs_are_judged_beside_a_changed_order(tmp_path):
    metrics = {"cmc": [1], "precision": [], "map": [], "eer": True, "roc_auc": True}
    table = write(tmp_path, ROWS)
    plain = evaluate(POINTS, table, validation=ValidationSpec(metrics=metrics, distance="euclidean"))
    cut = [{"name": "constant_threshold", "max_distance": 0.2}]
    spec = ValidationSpec(metrics=metrics, distance="euclidean", postprocessors=cut)
    found = evaluate(POINTS, table, validation=spec)
    for category, row in plain.metrics.items():
        for name in ("eer", "roc_auc"):
            assert found.metrics[category][name] == pytest.approx(row[name], nan_ok=True)
    assert list(found.metrics["OVERALL"]) == list(plain.metrics["OVERALL"])
    assert found.thresholds["OVERALL"] == plain.thresholds["OVERALL"]
    assert any(message.startswith("eer, roc_auc: of the distances") for message in found.warnings)


def test_queries_alone_may_be_trained_and_judged_against_another_table(tmp_path):
    queries = [(label, 1, 0, "", "", "", place) for label, _, _, _, _, _, place in ROWS]
    theirs = [("a", 0, 1, "", "", "", 0.9), ("b", 0, 1, "", "", "", 1.2)]
    table, other = write(tmp_path, queries), write(tmp_path, theirs, "old.csv")
    np.save(tmp_path / "old.npy", np.array([[row[-1]] for row in theirs]))
    words = {"gallery_features": str(tmp_path / "old.npy"), "gallery_table": str(other)}
    report = evaluate(POINTS, table, validation=spec(**words))
    assert found(report) == pytest.approx(naive(queries, theirs), abs=1e-12)  # in one folder: one 0.jpg
    with table.open("a") as file:
        file.write("".join(f"{label},t{label}{n}.jpg,train,,,,,\n" for label in "xy" for n in range(2)))
    for path in tmp_path.joinpath("t.csv").read_text().splitlines()[1:]:
        (tmp_path / path.split(",")[1]).touch()
    run = {
        "data": {"table": str(table)},
        "extractor": {"name": "timm", "model": "test_resnet", "pretrained": False},
        "sampler": {"name": "balanced", "n_labels": 2, "n_instances": 2},
        "loss": "triplet",
    }
    opened = open_training_table(load_spec(run | {"validation": words}, TrainSpec), SilentReporter())
    assert len(opened[0]) == len(ROWS) + 4
    with pytest.raises(DataError, match="no row of validation is in the gallery"):
        open_training_table(load_spec(run, TrainSpec), SilentReporter())
