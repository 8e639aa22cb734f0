"""What each command prints where: data to stdout, the rest to stderr, one document with --json."""

import csv
import itertools
import json
import re

from tests.cli.conftest import FIGURES, METRICS, VALIDATE_KEYS, listing, metrics_text

CATEGORIES = ["OVERALL", "glyph", "polygon", "ring", "star"]
TRAIN_KEYS = [
    "schema_version",
    "metrics",
    "run_dir",
    "best_ckpt",
    "last_ckpt",
    "best_epoch",
    "epochs",
    "steps",
    "monitor",
    "monitor_value",
    "stopped",
    "skipped",
    "warnings",
    "seconds",
    "intervals",
    "confidence",
]
PREDICT_KEYS = [
    "schema_version",
    "out",
    "index",
    "manifest",
    "rows",
    "dim",
    "dtype",
    "ckpt",
    "skipped",
    "warnings",
    "seconds",
    "resumed",
    "shard",
]
DRY_KEYS = [
    "schema_version",
    "train_batch",
    "eval_batch",
    "parameters",
    "trainable",
    "memory_mb",
    "steps_per_epoch",
    "warnings",
]
INSPECT_KEYS = ["schema_version", "table", "rows", "findings", "splits", "images", "suggested"]


def test_train_prints_its_report_on_stdout_and_its_progress_on_stderr(cli, spec, trained, tmp_path):
    done = cli("train", spec, "--run-dir", "run")
    assert done.code == 0
    assert re.sub(r"in \d:\d\d\n", "in 0:00\n", done.out) == metrics_text(trained) + (
        f"best epoch  {trained.best_epoch} of 2 (cmc@1 {trained.monitor_value:.4f})\n"
        "trained     4 steps in 0:00\n"
        "best        run/checkpoints/best.ckpt\n"
        "last        run/checkpoints/last.ckpt\n"
        "report      run/report.html\n"
        "next        metricli validate --ckpt run/checkpoints/best.ckpt\n"
    )
    first, *epochs = done.err.splitlines()
    assert first == f"run directory {tmp_path}/run"
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert [line.endswith("  best") for line in epochs] == [True, trained.best_epoch == 2]
    assert all("  cmc@1 0." in line and "  loss 0." in line for line in epochs)


def test_train_quiet_says_nothing_but_the_result(cli, spec):
    done = cli("train", spec, "--run-dir", "run", "-q", "--json")
    assert (done.code, done.err) == (0, "")
    assert list(done.json) == TRAIN_KEYS


def test_train_json(cli, spec, trained, tmp_path):
    done = cli("train", spec, "--json")
    document = done.json
    assert (done.code, list(document), document["schema_version"]) == (0, TRAIN_KEYS, 1)
    assert list(document["metrics"]) == CATEGORIES
    assert all(list(row) == METRICS for row in document["metrics"].values())
    assert document["metrics"] == trained.metrics
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("tiny-")
    assert document["run_dir"] == str(run)
    assert document["best_ckpt"] == str(run / "checkpoints/best.ckpt")
    content = {path.name for path in run.iterdir()}
    assert content >= {"checkpoints", "env.json", "log.txt", "metrics.jsonl", "spec.resolved.yaml"}


def test_dry_run_tries_everything_and_writes_nothing(cli, spec, tmp_path):
    before = listing(tmp_path)
    done = cli("train", spec, "--dry-run", "--json")
    assert (done.code, done.err, list(done.json)) == (0, "", DRY_KEYS)
    batch = done.json["train_batch"]
    assert (batch["images"], batch["shape"], batch["labels"]) == (12, [12, 3, 32, 32], 6)
    assert done.json["eval_batch"] == {"images": 96, "shape": [96, 3, 32, 32], "embeddings": [96, 16]}
    assert done.json["steps_per_epoch"] == 2
    said = cli("train", spec, "--dry-run")
    assert said.out.startswith("dry run\ntrain batch images             12\n")
    assert said.out.endswith("\nnothing was written\n")
    assert listing(tmp_path) == before


def pairs_of_figures():
    """Genuine and impostor pairs of two images that are not of one sequence, counted in the table."""
    with FIGURES.open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "validation"]
    counts = [0, 0]
    for query, item in itertools.product(rows, rows):
        seen = query["is_query"] == item["is_gallery"] == "true" and query is not item
        if seen and not (query["sequence"] and query["sequence"] == item["sequence"]):
            counts[query["label"] != item["label"]] += 1
    return counts


def test_validate(cli, trained):
    done = cli("validate", "--ckpt", trained.best_ckpt)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(metrics_text(trained))
    title, head, *lines, nothing, last, summary = done.out.removeprefix(metrics_text(trained)).splitlines()
    assert title == "cosine distances between the embeddings of {:,} genuine and {:,} impostor pairs".format(
        *pairs_of_figures()
    )
    assert (head.split(), len(lines), nothing) == (["genuine", "impostor"], 12, "")
    assert all(re.match(r" *\d\.\d{3} to \d\.\d{3}( +(\d+\.\d|<0\.1) % +#+){0,2}$", line) for line in lines)
    assert f"{last}\n{summary}\n" == (
        "95% intervals: bootstrap over labels; too narrow where there are fewer than 10\n"
        "90 queries (0 without match), 90 gallery rows; cosine distance, exact search; split validation; "
        f"embeddings: {trained.best_ckpt}\n"
    )


def test_validate_json(cli, trained):
    done = cli("validate", "--ckpt", trained.run_dir, "--json")
    assert (done.code, done.err, list(done.json)) == (0, "", VALIDATE_KEYS)
    assert list(done.json["metrics"]) == CATEGORIES
    assert done.json["metrics"] == trained.metrics
    assert (done.json["queries"], done.json["gallery"], done.json["schema_version"]) == (90, 90, 1)


def test_nan_is_null(cli, tmp_path):
    """A category whose queries have no match has no metrics, and JSON has no NaN."""
    import numpy as np

    rows = ["a,1.png,validation,True,True,x", "a,2.png,validation,True,True,x"]
    rows += ["b,3.png,validation,True,True,y"]
    (tmp_path / "t.csv").write_text("\n".join(["label,path,split,is_query,is_gallery,category", *rows]))
    for i in (1, 2, 3):
        (tmp_path / f"{i}.png").touch()
    np.save(tmp_path / "f.npy", np.eye(3, dtype="f4"))
    words = ["validate", "--features", "f.npy", "--data", "t.csv", "validation.metrics={cmc: [1]}"]
    done = cli(*words, "--json")
    assert done.code == 0, done.err
    assert "NaN" not in done.out
    assert done.json["metrics"]["y"]["cmc@1"] is None
    assert done.json["metrics"]["OVERALL"]["cmc@1"] == 1.0
    assert done.json["queries_without_match"] == 1
    line = next(line for line in cli(*words).out.splitlines() if line.startswith("y"))
    assert line.split() == ["y", "-", "-", "-", "-"]


def test_predict(cli, trained, tmp_path):
    done = cli("predict", "--ckpt", trained.best_ckpt, "--out", "f.npy")
    assert (done.code, done.err) == (0, "")
    assert done.out == "204 rows of 16 float32 in f.npy\nindex f.index.csv, manifest f.json\n"
    done = cli("predict", "--ckpt", trained.best_ckpt, "--out", "f.npy", "--dtype", "float16", "--json")
    assert (done.code, done.err, list(done.json)) == (0, "", PREDICT_KEYS)
    assert [done.json[key] for key in ("out", "rows", "dim", "dtype")] == ["f.npy", 204, 16, "float16"]


def test_inspect_dataset(cli, spec):
    done = cli("inspect-dataset", FIGURES, "--json")
    assert (done.code, done.err, list(done.json)) == (0, "", INSPECT_KEYS)
    assert (done.json["rows"], done.json["findings"]) == (204, [])
    assert done.json["suggested"]["n_labels"] == 12
    assert cli("inspect-dataset", spec, "--json").json == done.json
    said = cli("inspect-dataset", FIGURES).out.splitlines()
    assert said[0] == "no findings"
    assert [line.split() for line in said[2:4]] == [["train", "validation"], ["rows", "108", "96"]]


def test_inspect_dataset_exits_3_for_errors_and_0_for_warnings(cli, figures):
    missing = figures / "images/arc_plain_8.png"
    missing.unlink()
    done = cli("inspect-dataset", "figures/df.csv", "--json")
    assert (done.code, done.err) == (3, "")
    (finding,) = done.json["findings"]
    assert list(finding) == ["code", "severity", "count", "rows", "message"]
    assert [finding[key] for key in ("code", "severity", "count")] == ["missing-file", "error", 1]
    said = cli("inspect-dataset", "figures/df.csv")
    assert said.code == 3
    assert said.out.startswith(f"error: {finding['message']} [missing-file]\n")

    text = FIGURES.read_text().replace(",validation,", ",train,")
    (figures / "df.csv").write_text(text.replace(",True", ",").replace("arc_plain_8", "arc_plain_7"))
    done = cli("inspect-dataset", "figures/df.csv", "--json")
    assert {finding["severity"] for finding in done.json["findings"]} == {"warning"}
    assert done.code == 0


def test_documents_are_single(cli, trained):
    """`json.loads` refuses anything after the document; the decoder says where it ended."""
    done = cli("validate", "--ckpt", trained.best_ckpt, "--json")
    _, end = json.JSONDecoder().raw_decode(done.out)
    assert done.out[end:] == "\n"
