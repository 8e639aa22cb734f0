"""`validate --out` and `--against`: saved evaluations, features and checkpoints compared query by query."""

import json

import numpy as np
import pytest

from metricli import predict, validate
from tests.cli.conftest import FIGURES, error_of

METRICS = ["validation.metrics={cmc: [1], map_r: true, mrr: true, minp: true}"]


@pytest.fixture(scope="module")
def features(trained, tmp_path_factory):
    """Features of the trained model on the validation rows, and the same with noise."""
    folder = tmp_path_factory.mktemp("features")
    predict(ckpt=trained.best_ckpt, out=folder / "a.npy", split="validation")
    array = np.load(folder / "a.npy")
    noise = np.random.default_rng(0).normal(size=array.shape)
    np.save(folder / "b.npy", (array + 0.1 * noise).astype(np.float32))
    return folder


def words(path):
    return ["validate", "--features", path, "--data", FIGURES, *METRICS]


def test_features_against_what_was_saved(cli, features, tmp_path):
    assert cli(*words(features / "a.npy"), "--out", "a").code == 0
    done = cli(*words(features / "b.npy"), "--against", "a", "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    found = done.json["comparison"]
    saved = json.loads((tmp_path / "a/metrics.json").read_text())
    overall = found["differences"]["OVERALL"]
    for name, entry in overall.items():
        assert entry["theirs"] == pytest.approx(saved["metrics"]["OVERALL"][name], abs=1e-12)
        assert entry["ours"] == pytest.approx(done.json["metrics"]["OVERALL"][name], abs=1e-12)
        assert entry["low"] <= entry["difference"] <= entry["high"]
    assert list(overall) == ["cmc@1", "precision@5", "map@5", "map@r", "mrr", "minp"]
    assert list(found["differences"]) == list(done.json["metrics"])
    flips = found["flips"]
    assert flips["metric"] == "cmc@1"
    assert (flips["gained"] - flips["lost"]) / found["queries"] == pytest.approx(
        overall["cmc@1"]["difference"]
    )
    assert sum(gained for _, gained, _ in flips["labels"]) == flips["gained"]
    one = cli(*words(features / "b.npy"), "--against", features / "a.npy", "--json")
    assert one.json["comparison"]["differences"] == found["differences"]
    text = cli(*words(features / "b.npy"), "--against", "a").out
    assert text.index("95% intervals") < text.index("\nA  a\nB  ") < text.index("cmc@1 by query, from A to B")


def test_a_checkpoint_against_its_own_features(cli, features, trained):
    done = cli("validate", "--ckpt", trained.best_ckpt, *METRICS, "--against", features / "a.npy", "--json")
    assert done.code == 0, done.err
    entries = done.json["comparison"]["differences"]["OVERALL"].values()
    assert {entry["verdict"] for entry in entries} == {"equal"}
    back = cli(*words(features / "a.npy"), "--against", trained.best_ckpt, "--json")
    assert {e["difference"] for e in back.json["comparison"]["differences"]["OVERALL"].values()} == {0.0}


def test_what_cannot_be_compared_is_refused(cli, features, tmp_path):
    assert cli(*words(features / "a.npy"), "--out", "a", "validation.per_query=csv").code == 0
    against = [*words(features / "b.npy"), "--against"]
    other = cli(*against, "a", "validation.distance=euclidean")
    assert other.code == 2
    assert "other rules: method.distance is 'euclidean' and 'cosine'" in error_of(other)
    within = cli(*against, "a", "validation.search_within=category")
    assert (within.code, "search_within is 'category' and None" in error_of(within)) == (2, True)
    lines = FIGURES.read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if ",validation,true,true" in line)
    (tmp_path / "fewer.csv").write_text("\n".join(lines[:last] + lines[last + 1 :]) + "\n")
    np.save("fewer.npy", np.load(features / "b.npy")[:-1])
    fewer = cli("validate", "--features", "fewer.npy", "--data", "fewer.csv", *METRICS, "--against", "a")
    assert (fewer.code, "1 of 90 queries of 'a' are not among" in error_of(fewer)) == (3, True)
    missing = cli(*against, "nowhere")
    assert missing.code == 2
    assert error_of(missing).startswith("--against 'nowhere' does not exist; give a best.ckpt")
    (tmp_path / "a" / "per_query.csv").write_text("row\n1\n")
    assert cli(*against, "a").code == 3


def test_a_report_saves_itself_in_python(features, tmp_path):
    import pandas as pd

    report = validate(features=features / "a.npy", data=FIGURES)
    report.save(tmp_path / "judged")
    frame = pd.read_parquet(tmp_path / "judged" / "per_query.parquet")
    assert len(frame) == report.queries
    assert frame["cmc@1"].mean() == pytest.approx(report.metrics["OVERALL"]["cmc@1"])
    assert (frame["nearest_is_match"] == (frame["cmc@1"] == 1)).all()
    same = validate(features=features / "a.npy", data=FIGURES, against=tmp_path / "judged")
    assert same.comparison is not None
    assert str(same.comparison).startswith(f"A  {tmp_path / 'judged'}\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda x: np.where(np.arange(x.size).reshape(x.shape) == 40, np.nan, x),
            "1 rows of 'x.npy' hold NaN or infinity",
        ),
        (
            lambda x: np.where(np.arange(x.size).reshape(x.shape) == 40, -np.inf, x),
            "1 rows of 'x.npy' hold NaN or infinity",
        ),
        (lambda x: x[:-1], "'x.npy' has 95 rows, and there are 96 rows of this split"),
        (lambda x: x.astype(np.float64) * 1e200, "the embeddings cannot be searched: queries must be finite"),
        (lambda x: x[:, :0], "the embeddings have no dimension at all"),
    ],
)
def test_embeddings_that_cannot_be_judged(cli, features, spoil, said):
    np.save("x.npy", spoil(np.load(features / "a.npy")))
    done = cli(*words("x.npy"))
    assert (done.code, done.out) == (3, "")
    assert error_of(done).startswith(said)


def test_a_gate_on_the_pairs(cli, features):
    asked = [*words(features / "a.npy")[:-1], "validation.metrics={fnmr: [0.1], eer: true, uniformity: true}"]
    done = cli(*asked, "--fail-under", "fnmr@0.1=0.0", "--fail-under", "uniformity=-0.001", "--json")
    assert done.code == 8
    assert [gate["passed"] for gate in done.json["gate"]] == [False, True]
    assert [gate["at"] for gate in done.json["gate"]] == ["most", "most"]
    assert 0 < done.json["thresholds"]["OVERALL"]["fnmr@0.1"] < 2
    assert "threshold on the distance: fnmr@0.1 at 0." in cli(*asked).out
