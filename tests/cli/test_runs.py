"""Run directories from the command line: begun, refused, resumed, finished, diverged."""

import copy
import json
import os
import signal
import time

import numpy as np
import pytest

from tests.cli.conftest import TINY, error_of, listing, process, table_lines, unbroken

LONGER = ["training.epochs=3", "sampler.batches=4"]


def last_weights(run):
    """Every tensor of a run's last.ckpt."""
    from metricli.components.tensorfile import read_tensor_file

    return read_tensor_file(run / "checkpoints/last.ckpt")[0]


def assert_same_run(one, other):
    """The same weights and state to the bit, and the same history."""
    mine, others = last_weights(one), last_weights(other)
    assert mine.keys() == others.keys()
    for name, tensor in mine.items():
        np.testing.assert_array_equal(tensor.numpy(), others[name].numpy(), err_msg=name)
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The report of a run of three epochs of four steps that nobody interrupted."""
    import metricli

    return metricli.train(copy.deepcopy(TINY), LONGER, run_dir=tmp_path_factory.mktemp("whole") / "run")


def test_a_run_directory_that_holds_a_run(refused, spec, trained, tmp_path):
    (tmp_path / "run").symlink_to(trained.run_dir)
    done = refused("train", spec, "--run-dir", "run")
    message = "'run' holds a run already; go on with --resume run, or give another --run-dir"
    assert (done.code, error_of(done)) == (2, message)


def test_a_run_directory_that_is_a_file(refused, spec, tmp_path):
    (tmp_path / "run").touch()
    done = refused("train", spec, "--run-dir", "run")
    assert (done.code, error_of(done)) == (2, "the run directory 'run' is a file")


def test_a_run_directory_that_cannot_be_made(refused, spec, tmp_path):
    (tmp_path / "file").touch()
    done = refused("train", spec, "--run-dir", "file/run")
    assert done.code == 7
    assert error_of(done) == (
        f"cannot write the run directory '{tmp_path}/file/run': Not a directory; "
        "give another place with --run-dir"
    )


def test_a_start_that_fails_leaves_no_half_run(refused, spec, monkeypatch):
    import yaml

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(yaml, "safe_dump", full)
    done = refused("train", spec, "--run-dir", "run")
    assert done.code == 7
    assert "No space left on device" in error_of(done)


@pytest.mark.parametrize("place", ["nothing", "empty"])
def test_resume_of_nothing(refused, spec, tmp_path, place):
    (tmp_path / "empty").mkdir()
    done = refused("train", spec, "--resume", place)
    assert done.code == 2
    assert error_of(done) == (
        f"{place!r} holds no checkpoints/last.ckpt to resume; give a run directory, "
        "one of its step directories, or --resume auto"
    )


def test_resume_auto_of_nothing_starts_and_says_so(cli, spec, tmp_path):
    done = cli("train", spec, "--resume", "auto", "--run-dir", "run", "training.epochs=1")
    assert done.code == 0
    assert done.err.startswith("there is no run to resume: starting a new one\nrun directory ")
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()


def test_resume_and_run_dir_must_agree(refused, spec, trained):
    done = refused("train", spec, "--resume", trained.run_dir, "--run-dir", "other")
    message = f"--resume '{trained.run_dir}' and --run-dir 'other' are two places; give one of them"
    assert (done.code, error_of(done)) == (2, message)


@pytest.mark.parametrize("how", ["folder", "auto"])
def test_resume_of_a_finished_run_prints_its_report(cli, spec, trained, tmp_path, how):
    (tmp_path / "runs").mkdir()
    link = tmp_path / "runs/tiny-20260101T000000Z-abcd"
    link.symlink_to(trained.run_dir)
    before = listing(trained.run_dir)
    done = cli("train", spec, "--resume", trained.run_dir if how == "folder" else "auto", "--json")
    assert done.code == 0
    path = trained.run_dir if how == "folder" else link
    assert done.err == f"the run in {path} is finished; its report follows\n"
    assert list(done.json["metrics"]["OVERALL"]) == list(trained.metrics["OVERALL"])
    assert done.json["metrics"] == trained.metrics
    assert (done.json["best_epoch"], done.json["steps"]) == (trained.best_epoch, trained.steps)
    assert listing(trained.run_dir) == before


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("loss.margin=0.3", "loss.margin: was 0.2, is 0.3"),
        ("training.epochs=5", "training.epochs: was 2, is 5"),
    ],
)
def test_resume_with_a_changed_spec(refused, spec, trained, override, change):
    done = refused("train", spec, override, "--resume", trained.run_dir)
    assert done.code == 2
    assert error_of(done) == (
        f"the spec differs from that of the run in '{trained.run_dir}': {change}; "
        f"resume with the same spec, accept it with --allow-change {change.partition(':')[0]}, "
        "or start another run"
    )


def test_no_validation_rows_trains_on_and_says_so(cli, spec, figures):
    table = figures / "train.csv"
    table.write_text("".join(f"{line}\n" for line in table_lines() if ",validation," not in line))
    done = cli("train", spec, f"data.table={table}", "--run-dir", "run", "--json")
    assert done.code == 0
    message = "no row has the split 'validation': the last epoch will be taken as the best, unjudged"
    assert done.json["warnings"] == [message]
    assert done.err.count("warning: ") == 1
    assert done.err.startswith(f"warning: {message}\n")
    assert (done.json["metrics"], done.json["best_epoch"], done.json["monitor_value"]) == ({}, 2, None)
    said = cli("train", spec, f"data.table={table}", "--resume", "run")
    assert said.out.startswith("best epoch  2 of 2\n")
    assert cli("predict", "--ckpt", "run", "--out", "f.npy").code == 0


def test_diverging_training(cli, spec, tmp_path):
    words = ["optimizer={name: sgd, lr: 1e9}", "--run-dir", "run", "-q"]
    done = cli("train", spec, *words)
    assert done.code == 4
    assert "is NaN or infinite" in error_of(done)
    assert "lower learning rate" in error_of(done)
    assert len(error_of(done).splitlines()) == 1
    assert not (tmp_path / "run/checkpoints/best.ckpt").exists()
    assert "NaN" not in (tmp_path / "run/metrics.jsonl").read_text()
    other = cli("train", spec, *words[:1], "--run-dir", "other", "--json")
    assert (other.code, other.json["error"]["code"]) == (4, "non-finite")


def test_ctrl_c_saves_and_the_resumed_run_ends_equal(cli, spec, tmp_path, whole):
    running = process("train", spec, *LONGER, "--run-dir", "cut", cwd=tmp_path)
    rows = tmp_path / "cut/metrics.jsonl"
    while running.poll() is None and not (rows.exists() and rows.read_text().count("\n") >= 2):
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, ""), err
    *_, line = unbroken(err).strip().splitlines()
    assert line.startswith("error: stopped by a signal after step ")
    assert line.endswith(
        f", saved in {tmp_path}/cut; "
        f"go on with: metricli train {tmp_path}/cut/spec.resolved.yaml --resume {tmp_path}/cut"
    )
    done = cli("train", spec, *LONGER, "--resume", "cut", "--json")
    assert done.code == 0
    assert done.err.startswith(f"going on with {tmp_path}/cut at epoch ")
    assert done.json["metrics"] == whole.metrics
    assert done.json["steps"] == whole.steps == 12
    assert_same_run(tmp_path / "cut", whole.run_dir)


@pytest.mark.parametrize("at", [6, 8])
def test_sigterm_saves_and_exits_143(cli, spec, tmp_path, monkeypatch, whole, at):
    from metricli.cli.progress import PlainReporter

    steps = []

    def advance(self, amount, values=None):
        if self.unit == "step":
            steps.append(amount)
            if len(steps) == at:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PlainReporter, "advance", advance)
    done = cli("train", spec, *LONGER, "--run-dir", "cut", "--json")
    assert done.code == 143
    assert done.json["error"]["code"] == "interrupted"
    assert (
        unbroken(done.err)
        .strip()
        .splitlines()[-1]
        .startswith(f"error: stopped by a signal after step {at}, saved in ")
    )
    rows = (tmp_path / "cut/metrics.jsonl").read_text().splitlines()
    saved = [json.loads(row)["step"] for row in rows]
    assert max(saved) == at
    assert cli("train", spec, *LONGER, "--resume", "auto", "--run-dir", "cut").code == 0
    assert_same_run(tmp_path / "cut", whole.run_dir)


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_a_signal_stops_the_other_verbs_at_once(cli, trained, tmp_path, monkeypatch, verb):
    from metricli.cli.progress import PlainReporter

    signum = {"validate": signal.SIGINT, "predict": signal.SIGTERM}[verb]
    monkeypatch.setattr(PlainReporter, "advance", lambda *_: os.kill(os.getpid(), signum))
    out = ["--out", "f.npy"] if verb == "predict" else []
    done = cli(verb, "--ckpt", trained.best_ckpt, *out, "--json")
    message = "interrupted" if signum == signal.SIGINT else "terminated"
    hint = done.json["error"]["hint"]
    said = f"{message}; {hint}" if hint else message
    assert (done.code, done.err) == (128 + signum, f"error: {said}\n")
    assert done.json == {"error": {"code": "interrupted", "message": message, "hint": hint}}
    assert not (tmp_path / "f.npy").exists()
    assert verb == "predict" or (hint, listing(tmp_path)) == ("", {})
