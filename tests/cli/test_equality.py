"""The command line and Python do the same thing, and scoring a model is scoring its saved features."""

import copy
import csv
import hashlib
import json

import numpy as np
import pytest

import metricli
from tests.cli.conftest import FIGURES, table_lines

TIMED = ("seconds", "run_dir", "best_ckpt", "last_ckpt", "out", "index", "manifest")


def timeless(document):
    """A document without what differs from run to run."""
    return {key: value for key, value in document.items() if key not in TIMED}


def close(one, other):
    """Metrics equal to 1e-6, category by category."""
    assert one.keys() == other.keys()
    for category, metrics in one.items():
        assert metrics == pytest.approx({name: other[category][name] for name in metrics}, abs=1e-6)


def test_train_the_same_spec_both_ways(cli, spec, tiny, trained, tmp_path):
    done = cli("train", spec, "--run-dir", "run", "--json")
    assert timeless(done.json) == timeless(trained.to_dict())
    from metricli.components.tensorfile import read_tensor_file

    mine = read_tensor_file(tmp_path / "run/checkpoints/best.ckpt")[0]
    others = read_tensor_file(trained.best_ckpt)[0]
    assert mine.keys() == others.keys()
    for name, tensor in mine.items():
        np.testing.assert_array_equal(tensor.numpy(), others[name].numpy())


def test_a_spec_object_trains_as_its_mapping(tiny, trained, tmp_path):
    spec = metricli.TrainSpec.model_validate(copy.deepcopy(tiny))
    report = metricli.train(spec, run_dir=tmp_path / "run")
    assert timeless(report.to_dict()) == timeless(trained.to_dict())


def test_overrides_are_the_same_as_keys(cli, spec, tiny):
    tiny["loss"]["margin"] = 0.5
    tiny["training"]["epochs"] = 1
    done = cli("train", spec, "loss.margin=0.5", "training.epochs=1", "--run-dir", "run", "--json")
    report = metricli.train(tiny, run_dir="other")
    assert timeless(done.json) == timeless(report.to_dict())
    assert done.json["steps"] == 2


def test_validate_both_ways(cli, spec, trained):
    done = cli("validate", "--ckpt", trained.best_ckpt, "--json")
    assert timeless(done.json) == timeless(metricli.validate(ckpt=trained.best_ckpt).to_dict())
    assert done.json["metrics"] == trained.metrics


def test_predict_both_ways(cli, trained, tmp_path):
    assert cli("predict", "--ckpt", trained.best_ckpt, "--out", "a.npy").code == 0
    report = metricli.predict(ckpt=trained.best_ckpt, out=tmp_path / "b.npy")
    assert (report.rows, report.dim) == (204, 16)
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))
    assert (tmp_path / "a.index.csv").read_text() == (tmp_path / "b.index.csv").read_text()
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert (one.pop("out"), other.pop("out")) == ("a.npy", "b.npy")
    assert one == other


def test_evaluate_in_memory_is_validate(cli, spec, trained):
    assert cli("predict", "--ckpt", trained.best_ckpt, "--split", "validation", "--out", "f.npy").code == 0
    validation = metricli.ValidationSpec(metrics={"cmc": [1, 5], "map": [5], "map_r": True}, monitor="cmc@1")
    report = metricli.evaluate(np.load("f.npy"), FIGURES, validation=validation)
    close(report.metrics, trained.metrics)


@pytest.mark.parametrize("split", ["all", "validation"])
@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors"])
def test_validate_ckpt_is_validate_features(cli, spec, trained, suffix, split):
    done = cli("predict", "--ckpt", trained.best_ckpt, "--split", split, "--out", f"f{suffix}", "--json")
    assert (done.code, done.json["rows"]) == (0, {"all": 204, "validation": 96}[split])
    scored = cli("validate", spec, "--features", f"f{suffix}", "--json")
    assert (scored.code, scored.json["embeddings"]) == (0, f"f{suffix}")
    close(scored.json["metrics"], trained.metrics)
    bare = cli("validate", "--features", f"f{suffix}", "--data", FIGURES, "--json")
    assert bare.json["metrics"]["OVERALL"]["cmc@1"] == pytest.approx(
        trained.metrics["OVERALL"]["cmc@1"], abs=1e-6
    )


def test_half_precision_features_score_almost_the_same(cli, spec, trained):
    words = ["--ckpt", trained.best_ckpt, "--dtype", "float16", "--split", "validation"]
    assert cli("predict", *words, "--out", "f.npy").code == 0
    assert np.load("f.npy").dtype == np.float16
    found = cli("validate", spec, "--features", "f.npy", "--json").json["metrics"]["OVERALL"]
    assert found == pytest.approx(trained.metrics["OVERALL"], abs=0.05)


def test_features_without_an_index_are_the_rows_of_the_split(cli, spec, trained, tmp_path):
    assert cli("predict", "--ckpt", trained.best_ckpt, "--split", "validation", "--out", "f.npy").code == 0
    (tmp_path / "f.index.csv").unlink()
    close(cli("validate", spec, "--features", "f.npy", "--json").json["metrics"], trained.metrics)


def test_every_format_is_read_by_its_own_library(cli, trained):
    import pandas as pd
    from safetensors.numpy import load_file

    for suffix in (".npy", ".parquet", ".safetensors"):
        out = f"f-{suffix[1:]}{suffix}"
        assert cli("predict", "--ckpt", trained.best_ckpt, "--split", "validation", "--out", out).code == 0
    array = np.load("f-npy.npy")
    assert (array.shape, array.dtype) == ((96, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(load_file("f-safetensors.safetensors")["features"], array)
    frame = pd.read_parquet("f-parquet.parquet")
    np.testing.assert_array_equal(np.stack(frame["features"]), array)
    rows = [line.split(",") for line in table_lines()[1:] if ",validation," in line]
    assert frame["path"].tolist() == [row[1] for row in rows]
    assert frame["label"].tolist() == [row[0] for row in rows]
    assert frame["row"].tolist() == list(range(96))


def test_index_and_manifest(cli, trained, tmp_path):
    assert cli("predict", "--ckpt", trained.best_ckpt, "--out", "f.npy").code == 0
    with (tmp_path / "f.index.csv").open() as file:
        index = list(csv.DictReader(file))
    rows = [line.split(",") for line in table_lines()[1:]]
    assert [entry["path"] for entry in index] == [row[1] for row in rows]
    assert [entry["label"] for entry in index] == [row[0] for row in rows]
    assert [int(entry["row"]) for entry in index] == list(range(204))
    assert {entry["status"] for entry in index} == {"ok"}
    manifest = json.loads((tmp_path / "f.json").read_text())
    digest = hashlib.sha256(trained.best_ckpt.read_bytes()).hexdigest()
    expected = {"rows": 204, "dim": 16, "dtype": "float32", "skipped": 0, "ckpt_sha256": digest}
    assert expected.items() <= manifest.items()
    single = metricli.predict(ckpt=trained.best_ckpt, out=tmp_path / "g.npy", split="validation")
    at = [i for i, row in enumerate(rows) if row[2] == "validation"]
    assert single.rows == len(at)
    np.testing.assert_allclose(np.load("g.npy"), np.load("f.npy")[at], atol=1e-6)
