"""Where results go: refused before the work where they cannot, put in place only when whole."""

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import error_of, listing


@pytest.mark.parametrize(
    ("out", "code", "message"),
    [
        ("f.txt", 2, "--out 'f.txt' ends in '.txt', expected one of .npy, .parquet, .safetensors"),
        ("f", 2, "--out 'f' has no suffix, expected one of .npy, .parquet, .safetensors"),
        ("no/f.npy", 2, "--out 'no/f.npy': the folder 'no' does not exist; make it first"),
        ("folder.npy", 2, "--out 'folder.npy' is a folder; give a file name in it"),
        ("file/f.npy", 2, "--out 'file/f.npy': the folder 'file' does not exist; make it first"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_any_work(refused, tmp_path, out, code, message):
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file").touch()
    done = refused("predict", "--ckpt", "missing.ckpt", "--out", out)
    assert (done.code, error_of(done)) == (code, message)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_write_permission(refused, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    done = refused("predict", "--ckpt", "missing.ckpt", "--out", "closed/f.npy")
    assert (done.code, error_of(done)) == (7, "cannot write in 'closed': Permission denied")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a place that nobody can write in")
def test_a_place_nobody_can_write_in(refused):
    done = refused("predict", "--ckpt", "missing.ckpt", "--out", "/proc/f.npy")
    assert done.code == 7
    assert error_of(done).startswith("cannot write in '/proc': ")


@pytest.fixture
def small_disk():
    """No file may grow beyond 8 kB, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors"])
def test_a_full_disk_leaves_the_old_features_whole(cli, trained, tmp_path, small_disk, suffix):
    words = ["predict", "--ckpt", trained.best_ckpt, "--out", f"f{suffix}"]
    assert cli(*words, "--split", "validation").code == 0
    before = listing(tmp_path)
    small_disk(8000)
    done = cli(*words)
    small_disk(resource.RLIM_INFINITY)
    assert done.code == 7
    assert error_of(done).startswith(f"cannot write 'f{suffix}': ")
    assert listing(tmp_path) == before


def test_a_full_disk_while_training_is_one_sentence(cli, spec, tmp_path, small_disk):
    small_disk(8000)
    done = cli("train", spec, "--run-dir", "run", "-q")
    small_disk(resource.RLIM_INFINITY)
    assert done.code == 7
    assert error_of(done).startswith(f"cannot write '{tmp_path}/run/checkpoints/last.ckpt': ")
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / "run/checkpoints/best.ckpt").exists()


def test_a_bad_image_leaves_the_old_features_whole(refused, cli, trained, tmp_path, figures):
    words = ["predict", "--ckpt", trained.best_ckpt, "--data", "figures/df.csv", "--out", "f.npy"]
    assert cli(*words).code == 0
    (figures / "images/arc_plain_8.png").write_bytes(b"torn")
    assert refused(*words).code == 3


def test_features_appear_only_when_whole(cli, trained, tmp_path, monkeypatch):
    from metricli.runs.block_writer import BlockWriter

    seen = []
    write = BlockWriter.write

    def watched(self, at, features):
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        write(self, at, features)

    np.save(tmp_path / "f.npy", np.zeros((2, 2), "f4"))
    monkeypatch.setattr(BlockWriter, "write", watched)
    done = cli("predict", "--ckpt", trained.best_ckpt, "--out", "f.npy", "prediction.batch_size=100")
    assert done.code == 0
    assert seen == [["f.npy", "f.npy.part"]] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.index.csv", "f.json", "f.npy"]
    assert np.load(tmp_path / "f.npy").shape == (204, 16)


def test_shards_are_merged_into_one_file(cli, trained, tmp_path):
    words = ["predict", "--ckpt", trained.best_ckpt]
    for i in (1, 2):
        done = cli(*words, "--shard", f"{i}/2", "--out", f"s{i}.npy", "--json")
        assert (done.code, done.json["rows"], done.json["shard"]) == (0, 102, f"{i}/2")
    assert cli(*words, "--out", "whole.npy").code == 0
    missing = cli("merge", "s2.npy", "--out", "f.npy")
    assert (missing.code, error_of(missing)) == (
        3,
        "1 of 2 shards are missing: 1/2; predict them, or give their files too",
    )
    assert cli("merge", "s1.npy", "s2.npy", "--out", "s1.npy").code == 2
    done = cli("merge", "s1.npy", "s2.npy", "--out", "f.npy")
    assert (done.code, done.err) == (0, "")
    assert done.out == "204 rows of 16 float32 in f.npy\nindex f.index.csv, manifest f.json\n"
    np.testing.assert_allclose(np.load("f.npy"), np.load("whole.npy"), atol=1e-6)
    assert not list(tmp_path.glob("*.part"))


def test_a_shard_that_is_none(refused):
    done = refused("predict", "--shard", "0/8", "--out", "f.npy")
    assert (done.code, error_of(done)) == (
        2,
        "--shard '0/8': expected I/N with 1 <= I <= N, such as 2/8; array jobs count from 1 with --array=1-N",
    )


@pytest.mark.parametrize("out", ["table.parquet", "table.npy"])
def test_features_never_replace_their_own_table(refused, trained, figures, out):
    import pandas as pd

    name = "table.parquet" if out.endswith("parquet") else "table.index.csv"
    frame = pd.read_csv(figures / "df.csv")[["path"]]
    frame.to_parquet(figures / name) if name.endswith("parquet") else frame.to_csv(
        figures / name, index=False
    )
    table = figures / name
    done = refused("predict", "--ckpt", trained.best_ckpt, "--data", table, "--out", figures / out)
    assert done.code == 2
    assert error_of(done) == f"--out '{figures / out}' would replace the table '{table}'; give another name"


def test_validate_writes_its_document_into_a_folder(cli, trained, tmp_path):
    import json

    done = cli("validate", "--ckpt", trained.best_ckpt, "--out", "made/here", "--json")
    assert done.code == 0
    names = ("metrics.json", "per_query.parquet", "pictures.json", "report.html")
    files = {f"made/here/{name}" for name in names}
    assert listing(tmp_path).keys() == {"made", "made/here", *files}
    assert json.loads((tmp_path / "made/here/metrics.json").read_text()) == done.json


def test_validate_refuses_a_file_as_its_folder_before_any_work(refused, tmp_path):
    (tmp_path / "file").touch()
    done = refused("validate", "--ckpt", "missing.ckpt", "--out", "file")
    assert (done.code, error_of(done)) == (2, "--out 'file' is a file; give a folder for metrics.json")


def test_init_writes_whole_or_not_at_all(cli, refused, figures, small_disk):
    done = refused("init", "figures/df.csv", "--out", "no/spec.yaml")
    assert (done.code, error_of(done)) == (2, "--out 'no/spec.yaml': the folder 'no' does not exist")
    small_disk(100)
    done = refused("init", "figures/df.csv", "--out", "spec.yaml")
    small_disk(resource.RLIM_INFINITY)
    assert (done.code, error_of(done)) == (
        7,
        "cannot write 'spec.yaml': File too large; check the space and the rights there",
    )
    assert cli("init", "figures/df.csv", "--out", "spec.yaml").code == 0
    done = refused("init", "figures/df.csv", "--out", "spec.yaml")
    assert (done.code, error_of(done)) == (2, "'spec.yaml' exists already; give another --out")


def test_a_validation_does_not_write_into_a_run(cli, refused, trained, tmp_path):
    shutil.copytree(trained.run_dir, "run")
    done = refused("validate", "--ckpt", "run", "--out", "run")
    assert done.code == 2
    assert error_of(done).startswith(
        "--out 'run' is a run, which has a report of its own; give another folder"
    )
    below = cli("validate", "--ckpt", "run", "--out", "run/judged")
    assert (below.code, below.err) == (0, "report run/judged/report.html\n")


@pytest.mark.parametrize("fault", ["pictures_of", "report"])
def test_what_fails_in_a_picture_costs_no_metrics(cli, trained, monkeypatch, fault):
    """Whatever it is: a fault of ours in what is only to be looked at."""

    def fail(*_, **__):
        raise IndexError("a fault")

    where = "metricli.runs.validate" if fault == "pictures_of" else "metricli.api"
    monkeypatch.setattr(f"{where}.{fault}", fail)
    done = cli("validate", "--ckpt", trained.best_ckpt, "--out", "judged", "--json")
    assert done.code == 0, done.err
    assert "could not be" in done.err
    assert "IndexError: a fault" in done.err
    assert json.loads(Path("judged/metrics.json").read_text())["metrics"] == trained.metrics
    assert Path("judged/per_query.parquet").is_file()
