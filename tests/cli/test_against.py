"""`validate --out` and `--against`: saved evaluations, features and checkpoints compared query by query."""

import json
from pathlib import Path

import numpy as np
import pytest

from metricli import predict, validate
from metricli.errors import UsageError
from metricli.runs.against import check_rules, open_other
from metricli.specs.validate import ValidationSpec
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


def other_rules(metrics, **validation):
    return ValidationSpec(metrics=metrics, **validation)


def test_rules_are_compared_before_any_work(cli, features, tmp_path):
    assert cli(*words(features / "a.npy"), "--out", "a").code == 0
    saved, plain = open_other(Path("a")), open_other(features / "a.npy")
    check_rules(saved, other_rules({"cmc": [1], "eer": True}))
    method = {"postprocessors": ["k_reciprocal"], "gallery_features": "x.npy"}
    check_rules(saved, other_rules({"cmc": [1]}, **method))  # which is what a comparison is for
    rules = "'this evaluation' and 'a' were judged by other rules: "
    for changes, said in (
        ({"distance": "euclidean"}, "method.distance is 'euclidean' and 'cosine'"),
        ({"unmatched": "zero"}, "unmatched is 'zero' and 'skip'"),
        ({"search_within": "category"}, "search_within is 'category' and None"),
    ):
        with pytest.raises(UsageError) as raised:
            check_rules(saved, other_rules({"cmc": [1]}, **changes))
        assert raised.value.message == rules + said
        check_rules(plain, other_rules({"cmc": [1]}, **changes))  # it will be judged by them
    only = {"precision": [], "map": [], "map_r": False}
    with pytest.raises(
        UsageError, match=r"in common: cmc@7, and cmc@1, precision@5, map@5, map@r, mrr, minp;"
    ):
        check_rules(saved, other_rules({"cmc": [7], **only}))
    for other in (saved, plain):
        with pytest.raises(UsageError) as raised:
            check_rules(other, other_rules({"cmc": [], **only, "fnmr": [0.01], "eer": True}))
        assert str(raised.value) == (
            "--against compares values of each query; fnmr@0.01, eer have none; ask for a ranking metric, "
            "such as validation.metrics.cmc=[1]"
        )
    (tmp_path / "a" / "metrics.json").unlink()  # no protocol is known
    check_rules(open_other(Path("a")), other_rules({"cmc": [1]}, distance="euclidean"))


def test_what_has_no_value_for_each_query_is_said_not_to_be_compared(cli, features):
    asked = ["validation.metrics={cmc: [1000000], eer: true, alignment: true}"]
    done = cli(*words(features / "b.npy")[:-1], *asked, "--against", features / "a.npy", "--json")
    assert done.code == 0, done.err
    found = done.json["comparison"]
    assert found["notes"][-1] == "not compared, for want of a value for each query: eer, alignment"
    assert found["flips"]["metric"] == "cmc@1000000"
    only = "validation.metrics={cmc: [], precision: [], map: [], map_r: false, eer: true}"
    assert cli(*words(features / "a.npy")[:-1], only, "--out", "none").code == 0
    refused = cli(*words(features / "b.npy"), "--against", "none")
    assert refused.code == 3
    assert "has no column of a metric: none that was asked for has a value for each query" in refused.err


def test_queries_without_a_match_are_said_once(cli, features, tmp_path):
    lines = FIGURES.read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if ",validation,true,true" in line)
    lines[last] = "alone" + lines[last][lines[last].index(",") :]
    (tmp_path / "alone.csv").write_text("\n".join(lines) + "\n")
    done = cli("validate", "--features", features / "a.npy", "--data", "alone.csv")
    assert done.code == 0, done.err
    said = [line for line in done.err.splitlines() if "no match" in line]
    assert len(said) == 1
    assert said[0].startswith("warning: 1 of 90 queries have no match in the gallery and ")
    assert "query-without-match" in cli("inspect-dataset", "alone.csv", "--root", FIGURES.parent).out
