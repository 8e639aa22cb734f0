"""Tables, images and features that are missing or wrong: exit 3, named, with nothing written."""

import numpy as np
import pytest

from tests.cli.conftest import FIGURES, error_of, table_lines, unbroken


@pytest.mark.parametrize("verb", ["train", "validate", "predict"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such table: {table}"),
        ("", "{table} is empty; expected a header such as label,path,split and a line for each image"),
        (
            "label,path,split,is_query,is_gallery\n",
            "{table}: the table has no rows; below the header, one line for each image",
        ),
        ("label\nx\n", "{table} has no column"),
    ],
)
def test_a_table_that_is_no_table(refused, spec, trained, tmp_path, verb, text, message):
    table = tmp_path / "table.csv"
    if text is not None:
        table.write_text(text)
    words = {
        "train": ["train", spec, f"data.table={table}", "--run-dir", "run"],
        "validate": ["validate", "--ckpt", trained.best_ckpt, "--data", table],
        "predict": ["predict", "--ckpt", trained.best_ckpt, "--data", table, "--out", "f.npy"],
    }[verb]
    done = refused(*words)
    assert done.code == 3
    assert error_of(done).startswith(message.format(table=table))


def test_a_table_without_labels_cannot_be_judged_but_predicted(cli, refused, trained, tmp_path, figures):
    rows = [line.split(",") for line in table_lines()]
    (figures / "bare.csv").write_text("".join(f"{row[1]}\n" for row in rows))
    done = refused("validate", "--ckpt", trained.best_ckpt, "--data", figures / "bare.csv")
    assert done.code == 3
    assert error_of(done) == (
        f"{figures / 'bare.csv'} has no columns 'label', 'split', 'is_query', 'is_gallery'; "
        "found 'path'; add them"
    )
    done = cli("predict", "--ckpt", trained.best_ckpt, "--data", figures / "bare.csv", "--out", "f.npy")
    assert (done.code, len(np.load(tmp_path / "f.npy"))) == (0, len(rows) - 1)


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_a_split_that_the_table_lacks(refused, trained, verb):
    out = ["--out", "f.npy"] if verb == "predict" else []
    done = refused(verb, "--ckpt", trained.best_ckpt, "--split", "valid", *out)
    assert done.code == 3
    assert "split 'valid'" in error_of(done)
    assert "'train', 'validation'" in error_of(done)


def test_a_missing_image_is_named_with_its_row(refused, spec, figures):
    lines = table_lines()
    path = lines[5].split(",")[1]
    (figures / path).unlink()
    done = refused("train", spec, "data.table=figures/df.csv", "--run-dir", "run")
    assert done.code == 3
    assert f"'{path}' (row 5)" in error_of(done)


def test_no_train_rows(refused, spec, figures):
    table = figures / "judged.csv"
    table.write_text("".join(f"{line}\n" for line in table_lines() if ",train," not in line))
    done = refused("train", spec, f"data.table={table}", "--run-dir", "run")
    assert done.code == 3
    assert "no row has the split 'train': nothing to train on" in error_of(done)


@pytest.fixture
def torn(figures):
    """The drawn set with its validation images 1 and 2 cut off in the middle; their paths."""
    paths = [line.split(",")[1] for line in table_lines()[1:] if ",validation," in line][1:3]
    for path in paths:
        content = (figures / path).read_bytes()
        (figures / path).write_bytes(content[: len(content) // 2])
    return paths


@pytest.mark.parametrize("verb", ["train", "validate", "predict"])
def test_a_torn_image_stops_the_work_and_is_named(refused, spec, trained, figures, torn, verb):
    words = {
        "train": ["train", spec, "data.table=figures/df.csv", "--dry-run"],
        "validate": ["validate", "--ckpt", trained.best_ckpt, "--data", "figures/df.csv"],
        "predict": ["predict", "--ckpt", trained.best_ckpt, "--data", "figures/df.csv", "--out", "f.npy"],
    }[verb]
    done = refused(*words)
    assert done.code == 3
    assert error_of(done) == (
        f"cannot read image '{figures / torn[0]}': image file is truncated; "
        "repair or remove it, or set data.on_bad_image=skip"
    )


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors"])
def test_a_skipped_image_leaves_its_row_in_place(cli, trained, tmp_path, torn, suffix):
    import csv

    from metricli.runs.saved_features import read_array

    out = tmp_path / f"f{suffix}"
    words = ["--ckpt", trained.best_ckpt, "--data", "figures/df.csv", "data.on_bad_image=skip"]
    done = cli("predict", *words, "--out", out, "--json")
    assert (done.code, done.json["skipped"]) == (0, torn)
    named = ", ".join(map(repr, torn))
    assert done.err == f"warning: 2 of 204 images could not be read and were skipped: {named}\n"

    whole = cli("predict", "--ckpt", trained.best_ckpt, "--out", tmp_path / "whole.npy")
    assert whole.code == 0
    features, reference = read_array(out), np.load(tmp_path / "whole.npy")
    with (tmp_path / "f.index.csv").open() as file:
        index = list(csv.DictReader(file))
    bad = [i for i, row in enumerate(index) if row["status"] == "skipped"]
    assert [index[i]["path"] for i in bad] == torn
    assert np.isnan(features[bad]).all()
    good = [i for i in range(len(index)) if i not in bad]
    np.testing.assert_allclose(features[good], reference[good], atol=1e-6)

    judged = cli("validate", *words, "--json")
    scored = cli("validate", "--features", out, "--data", "figures/df.csv", "--json")
    assert (judged.code, scored.code) == (0, 0)
    assert judged.json["skipped"] == scored.json["skipped"] == torn
    assert judged.json["queries"] == scored.json["queries"] == 88
    for category, metrics in judged.json["metrics"].items():
        for name, value in metrics.items():
            assert scored.json["metrics"][category][name] == pytest.approx(value, abs=1e-6)


def test_training_with_torn_images_takes_others_and_says_which(cli, spec, figures, torn):
    path = next(line.split(",")[1] for line in table_lines()[1:] if ",train," in line)
    (figures / path).write_bytes(b"no image")
    table = ["data.table=figures/df.csv", "data.on_bad_image=skip", "training.epochs=1", "sampler.batches=12"]
    done = cli("train", spec, *table, "--run-dir", "run", "--json")
    assert done.code == 0, done.err
    assert set(done.json["skipped"]) == {path, *torn}
    assert "another image takes its place, of its label if there is one" in unbroken(done.err)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: None, "the features file 'f.npy' does not exist"),
        (lambda f: f.write_text("hello"), "cannot read the features 'f.npy': "),
        (
            lambda f: np.save(f, np.ones((5, 3), "f4")),
            "'f.npy' has 5 rows, and there are 96 rows of this split",
        ),
        (
            lambda f: np.save(f, np.ones((96, 3), int)),
            "'f.npy' holds int64 (96, 3), expected floats (rows, dim)",
        ),
        (lambda f: np.save(f, np.ones(96)), "'f.npy' holds float64 (96,), expected floats (rows, dim)"),
        (
            lambda f: np.save(f, np.where(np.arange(96)[:, None] == 7, np.nan, np.ones((96, 3)))),
            "1 rows of 'f.npy' hold NaN or infinity",
        ),
    ],
)
def test_features_that_cannot_be_judged(refused, tmp_path, make, message):
    make(tmp_path / "f.npy")
    done = refused("validate", "--features", "f.npy", "--data", FIGURES)
    assert done.code == 3
    assert error_of(done).startswith(message)


def test_features_of_another_table_are_refused(cli, refused, trained, figures):
    cli("predict", "--ckpt", trained.best_ckpt, "--split", "validation", "--out", "f.npy")
    header, *lines = table_lines()
    (figures / "turned.csv").write_text("\n".join([header, *reversed(lines)]) + "\n")
    done = refused("validate", "--features", "f.npy", "--data", "figures/turned.csv")
    assert done.code == 3
    assert "row 0 of 'f.index.csv' is " in error_of(done)
    assert "give the table and split that the features were made from" in error_of(done)
