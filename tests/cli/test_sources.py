"""Where a verb takes its model and its data from: --ckpt, SPEC, --data, --root, a folder, the newest run."""

import csv
import os
import shutil

import numpy as np
import pytest
import yaml

from tests.cli.conftest import FIGURES, table_lines


@pytest.fixture
def features(cli, trained):
    """The features of the whole drawn set, by path."""

    def load(name, folder="."):
        with open(f"{folder}/{name}.index.csv") as file:
            return dict(zip([row["path"] for row in csv.DictReader(file)], np.load(f"{folder}/{name}.npy")))  # noqa: B905

    assert cli("predict", "--ckpt", trained.best_ckpt, "--out", "whole.npy").code == 0
    load.whole = load("whole")
    return load


def same(found, reference):
    """Features equal to those of the whole set, path by path."""
    assert found
    for path, feature in found.items():
        np.testing.assert_allclose(feature, reference[path], atol=1e-6)


@pytest.fixture
def newest(trained, tmp_path):
    """Two runs below ./runs, of which `late` is the newer; and a third without a best.ckpt."""
    for name, age in (("zz-early", 100), ("late", 0)):
        shutil.copytree(trained.run_dir, tmp_path / "runs" / name)
        best = tmp_path / "runs" / name / "checkpoints/best.ckpt"
        stamp = best.stat().st_mtime - age
        os.utime(best, (stamp, stamp))
    (tmp_path / "runs/zzz-begun/checkpoints").mkdir(parents=True)
    return tmp_path / "runs/late/checkpoints/best.ckpt"


def test_without_ckpt_the_newest_run_is_taken_and_said(cli, newest):
    done = cli("predict", "--out", "f.npy", "--json")
    assert (done.code, done.json["ckpt"]) == (0, str(newest))
    assert done.err == f"no --ckpt given: taking the newest run's, {newest}\n"
    done = cli("validate")
    assert done.err == f"no --ckpt given: taking the newest run's, {newest}\n"
    assert cli("predict", "--out", "f.npy", "-q").err == ""


def test_predict_a_folder(cli, features, figures, trained):
    (figures / "notes.txt").touch()
    inner = figures / "images/inner"
    inner.mkdir()
    (figures / "images/arc_plain_8.png").rename(inner / "moved.png")
    done = cli("predict", "--ckpt", trained.best_ckpt, "--data", "figures", "--out", "f.npy", "--json")
    assert done.code == 0
    with open("f.index.csv") as file:
        rows = list(csv.DictReader(file))
    paths = [row["path"] for row in rows]
    assert paths == sorted(paths)
    assert len(paths) == len(list(figures.rglob("*.png")))
    assert "images/inner/moved.png" in paths
    assert {row["label"] for row in rows} == {""}
    warning = "files that are no images were left out: 1 .csv, 1 .md, 1 .py, 1 .txt"
    assert (done.json["warnings"], done.err) == ([warning], f"warning: {warning}\n")
    found = features("f")
    boxed = {line.split(",")[1] for line in table_lines() if not line.endswith(",,,")}
    same({p: f for p, f in found.items() if p in features.whole and p not in boxed}, features.whole)


def test_predict_a_table_of_paths_with_a_root_elsewhere(cli, features, trained, tmp_path):
    lines = [line.split(",")[1] for line in table_lines() if line.endswith(",,,")]
    (tmp_path / "paths.csv").write_text("\n".join(["path", *lines]))
    words = ["predict", "--ckpt", trained.best_ckpt, "--data", "paths.csv", "--out", "f.npy"]
    refused = cli(*words)
    assert refused.code == 3
    assert f"{len(lines)} rows name a file that does not exist below" in refused.err
    done = cli(*words, "--root", FIGURES.parent)
    assert (done.code, done.err) == (0, "")
    found = features("f")
    assert list(found) == lines
    same(found, features.whole)


def test_data_replaces_the_root_of_the_checkpoint_too(cli, features, figures, trained):
    done = cli("predict", "--ckpt", trained.best_ckpt, "--data", "figures/df.csv", "--out", "f.npy")
    assert done.code == 0
    same(features("f"), features.whole)
    (figures / "images/arc_plain_8.png").unlink()
    assert cli("predict", "--ckpt", trained.best_ckpt, "--data", "figures/df.csv", "--out", "f.npy").code == 3


def test_split_chooses_the_rows(cli, features, trained):
    for split, count in (("train", 108), ("validation", 96)):
        words = ["--ckpt", trained.best_ckpt, "--split", split, "--out", f"{split}.npy", "--json"]
        assert cli("predict", *words).json["rows"] == count
        same(features(split), features.whole)


def test_other_splits_can_be_predicted(cli, features, figures, trained):
    text = FIGURES.read_text().replace(",train,", ",extra,")
    (figures / "extra.csv").write_text(text)
    words = ["--data", "figures/extra.csv", "--split", "extra", "--out", "f.npy", "--json"]
    done = cli("predict", "--ckpt", trained.best_ckpt, *words)
    assert (done.code, done.json["rows"]) == (0, 108)


def test_spec_and_ckpt_model_from_one_and_the_rest_from_the_other(cli, tiny, trained, tmp_path, figures):
    """The spec's model (another size) and training blocks (not even installed) do not count."""
    tiny["extractor"]["dim"] = 64
    tiny["transforms"]["eval"]["size"] = 64
    tiny["loss"] = {"name": "not_installed"}
    tiny["data"] = {"table": "figures/df.csv"}
    tiny["validation"] = {"metrics": {"cmc": [1], "precision": [], "map": [], "map_r": False}}
    tiny["prediction"] = {"dtype": "float16"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(tiny))
    words = ["other.yaml", "--ckpt", trained.best_ckpt, "--json"]
    done = cli("validate", *words)
    assert done.code == 0, done.err
    assert done.json["metrics"]["OVERALL"] == {"cmc@1": trained.metrics["OVERALL"]["cmc@1"]}
    last = cli("validate", *words, "validation.metrics.cmc=[5]")
    assert list(last.json["metrics"]["OVERALL"]) == ["cmc@5"]
    done = cli("predict", *words, "--out", "f.npy")
    assert [done.json[key] for key in ("dim", "dtype")] == [16, "float16"]
    (figures / "images/arc_plain_8.png").unlink()
    assert cli("validate", *words).code == 3


def test_validate_a_spec_alone_is_row_0(cli, spec, trained):
    done = cli("validate", spec, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["embeddings"] == "the extractor as the spec builds it"
    assert done.json["metrics"] != trained.metrics
    assert cli("validate", spec, "--json").json["metrics"] == done.json["metrics"]
    assert cli("validate", spec, "seed=1", "--json").json["metrics"] != done.json["metrics"]


def test_a_checkpoint_needs_neither_its_run_nor_its_spec(cli, trained, tmp_path):
    shutil.copy(trained.best_ckpt, tmp_path / "alone.ckpt")
    done = cli("validate", "--ckpt", "alone.ckpt", "--json")
    assert done.json["metrics"] == trained.metrics


def test_validate_another_table(cli, trained, figures):
    """Only the ring labels, which by themselves are easier to tell apart than among all."""
    header, *lines = table_lines()
    rings = [line for line in lines if line.split(",")[5] == "ring"]
    (figures / "rings.csv").write_text("\n".join([header, *rings]))
    done = cli("validate", "--ckpt", trained.best_ckpt, "--data", "figures/rings.csv", "--json")
    assert done.code == 0
    assert list(done.json["metrics"]) == ["OVERALL", "ring"]
    assert done.json["metrics"]["OVERALL"] == pytest.approx(done.json["metrics"]["ring"])
    assert done.json["metrics"]["ring"]["cmc@1"] >= trained.metrics["ring"]["cmc@1"]
