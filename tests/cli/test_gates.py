"""--fail-under: exit 8 where a metric is on the wrong side of its limit."""

import math

import pytest

from tests.cli.conftest import VALIDATE_KEYS, metrics_text


@pytest.mark.parametrize(
    ("gate", "code"),
    [(["cmc@1=0.05"], 0), (["cmc@1=0.99"], 8), (["star/cmc@5=0.1", "ring/map@r=0.99"], 8)],
)
def test_fail_under(cli, trained, gate, code):
    words = [word for limit in gate for word in ("--fail-under", limit)]
    done = cli("validate", "--ckpt", trained.best_ckpt, *words, "--json")
    assert done.code == code
    assert list(done.json) == [*VALIDATE_KEYS, "gate"]
    assert (
        [entry["passed"] for entry in done.json["gate"]] == [code == 0] if len(gate) == 1 else [True, False]
    )
    if code == 0:
        assert done.err == ""
        return
    failed = done.json["gate"][-1]
    value = trained.metrics[failed["category"]][failed["metric"]]
    assert failed == {
        "metric": failed["metric"],
        "category": failed["category"],
        "limit": 0.99,
        "value": value,
        "at": "least",
        "passed": False,
    }
    assert done.err == (
        f"error: quality gate: {failed['metric']} of {failed['category']} is {value:.4f}, "
        "at least 0.99 is asked for\n"
    )
    said = cli("validate", "--ckpt", trained.best_ckpt, *words)
    assert (said.code, said.err) == (8, done.err)
    assert said.out.startswith(metrics_text(trained))


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("cmc@1", "--fail-under 'cmc@1' is not METRIC=VALUE; for example --fail-under cmc@1=0.8"),
        ("cmc@1=high", "--fail-under 'cmc@1=high' is not METRIC=VALUE; for example --fail-under cmc@1=0.8"),
        ("cmc@1=nan", "--fail-under 'cmc@1=nan' is not METRIC=VALUE; for example --fail-under cmc@1=0.8"),
        (
            "cmc@2=0.1",
            "the metric 'cmc@2' is not computed, did you mean 'cmc@5'? "
            "computed: cmc@1, cmc@5, precision@5, map@5, map@r",
        ),
        ("cmc@1=80", "--fail-under 'cmc@1=80': metrics lie between 0 and 1, got 80"),
        ("cmc@1=-0.1", "--fail-under 'cmc@1=-0.1': metrics lie between 0 and 1, got -0.1"),
    ],
)
def test_a_gate_that_cannot_be_meant(refused, trained, gate, message):
    done = refused("validate", "--ckpt", trained.best_ckpt, "--fail-under", gate)
    assert (done.code, done.err) == (2, f"error: {message}\n")


def test_a_gate_of_an_unknown_category_fails_after_the_metrics(cli, trained):
    words = ("validate", "--ckpt", trained.best_ckpt, "--fail-under", "moon/cmc@1=0.1")
    message = "--fail-under: no category 'moon'; there are: OVERALL, glyph, polygon, ring, star"
    done = cli(*words)
    assert (done.code, done.err) == (2, f"error: {message}\n")
    assert done.out.startswith(metrics_text(trained))
    done = cli(*words, "--json")
    assert (done.code, done.err) == (2, f"error: {message}\n")
    assert done.json["metrics"] == trained.metrics
    assert done.json["error"]["message"] == message


@pytest.mark.parametrize(
    ("value", "limit", "shown"),
    [(0.28496, 0.285, "0.28496"), (0.2, 0.285, "0.2000"), (0.98996, 0.98999, "0.98996")],
)
def test_a_failed_gate_shows_digits_that_tell_value_and_limit_apart(value, limit, shown):
    from metricli.cli.gates import enforce, parse
    from metricli.errors import GateError

    (gate,) = parse([f"map@r={limit}"])
    with pytest.raises(GateError, match=rf"is {shown}, at least {limit} is asked for$"):
        enforce([gate.check({"OVERALL": {"map@r": value}})])


def test_metrics_that_cannot_be_written_are_shown(cli, trained, monkeypatch):
    from metricli.errors import ResourceError
    from metricli.reports import ValidateReport

    def full(report, folder):
        raise ResourceError("cannot write 'm/metrics.json': disk full")

    monkeypatch.setattr(ValidateReport, "save", full)
    done = cli("validate", "--ckpt", trained.best_ckpt, "--out", "m")
    assert (done.code, done.err) == (7, "error: cannot write 'm/metrics.json': disk full\n")
    assert done.out.startswith(metrics_text(trained))


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(refused, tmp_path):
    (tmp_path / "file").touch()
    done = refused("validate", "--ckpt", "missing.ckpt", "--out", "file/m")
    assert done.code == 2
    assert "lies below the file" in done.err
    assert refused("validate", "--ckpt", "missing.ckpt", "--out", "/proc/no/m").code == 7


def test_a_gate_of_a_metric_that_is_better_low():
    from metricli.cli.gates import parse

    low, high = parse(["eer=0.2", "cmc@1=0.2"])
    metrics = {"OVERALL": {"eer": 0.1, "cmc@1": 0.1}}
    assert (low.check(metrics)["at"], low.check(metrics)["passed"]) == ("most", True)
    assert (high.check(metrics)["at"], high.check(metrics)["passed"]) == ("least", False)
    nothing = {"OVERALL": {"cmc@1": math.nan}}
    assert high.check(nothing) | {"limit": 0} == {
        **high.check(nothing),
        "limit": 0,
        "value": None,
        "passed": False,
    }
