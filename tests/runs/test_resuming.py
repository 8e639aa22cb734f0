from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metricli import TrainReport
from metricli.components.tensorfile import read_tensor_file, write_tensor_file
from metricli.errors import CheckpointError, Interrupted, UsageError
from tests.conftest import FIGURES
from tests.runs.conftest import JUDGED, LABELS, Listener, assert_same_weights, lines, meta, write_table

Fit = Callable[..., TrainReport]
LONGER = ("training.epochs=3",)
ARCFACE = (
    "loss={name: arcface, margin: 0.3}",
    "sampler=null",
    "training.batch_size=7",
    "scheduler={name: one_cycle}",
    "optimizer={name: sgd, lr: 0.05, momentum: 0.9, head_lr: 0.1, weight_decay: 0.01}",
)
DROPOUT = ("extractor.model_args={drop_rate: 0.3, drop_path_rate: 0.2}", "extractor.bnneck=true")
EPOCHWISE = ("scheduler={name: exponential, gamma: 0.5, interval: epoch}", "training.freeze_epochs=1")
PLATEAU = ("scheduler={name: plateau, patience: 0, factor: 0.5}", "optimizer={name: adam, amsgrad: true}")


def assert_same_run(one: TrainReport, two: TrainReport) -> None:
    assert_same_weights(one.best_ckpt, two.best_ckpt)
    assert_same_weights(one.last_ckpt, two.last_ckpt)
    assert lines(one) == lines(two)
    assert one.metrics == two.metrics
    assert (one.best_epoch, one.monitor_value, one.steps) == (two.best_epoch, two.monitor_value, two.steps)
    assert meta(one.best_ckpt)["metrics"] == meta(two.best_ckpt)["metrics"]
    states = [json.dumps(meta(report.last_ckpt)["state"]) for report in (one, two)]
    assert states[0] == states[1]


def interrupted(fit: Fit, *overrides: str, after: int) -> Path:
    """A run directory that a signal left behind."""
    with pytest.raises(Interrupted) as caught:
        fit(*overrides, reporter=Listener(stop_after=after))
    assert caught.value.exit_code == 143
    assert f"stopped by a signal after step {after}, saved in " in caught.value.message
    return Path(caught.value.hint.rpartition(" ")[2])


def test_the_same_spec_trains_the_same_run(fit: Fit, whole: Fit) -> None:
    one = whole(*DROPOUT, *LONGER)
    assert_same_run(one, fit(*DROPOUT, *LONGER))
    other = fit(*DROPOUT, *LONGER, "seed=1")
    assert lines(other)[0]["loss"] != lines(one)[0]["loss"]


@pytest.mark.parametrize(
    ("overrides", "after"),
    [((), 1), ((), 2), ((), 5), (ARCFACE, 3), (DROPOUT, 3), (EPOCHWISE, 1), (EPOCHWISE, 3), (PLATEAU, 4)],
)
def test_a_resumed_run_is_an_uninterrupted_one(
    fit: Fit, whole: Fit, overrides: tuple[str, ...], after: int
) -> None:
    run = interrupted(fit, *overrides, *LONGER, after=after)
    logged = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert len(logged) == after
    resumed = fit(*overrides, *LONGER, resume=run)
    assert resumed.run_dir == run
    assert_same_run(whole(*overrides, *LONGER), resumed)


def test_a_run_that_stopped_twice(fit: Fit, whole: Fit) -> None:
    run = interrupted(fit, *LONGER, after=1)
    with pytest.raises(Interrupted):
        fit(*LONGER, resume=run, reporter=Listener(stop_after=2))
    assert_same_run(whole(*LONGER), fit(*LONGER, resume=run))


def test_a_run_killed_after_it_logged_more_than_it_saved(
    fit: Fit, whole: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metricli.runs.training import Training

    save_last, saved = Training.save_last, []

    def save_once(self: Training, **how: bool) -> None:
        if saved:
            raise KeyboardInterrupt
        saved.append(self.run_dir.path)
        save_last(self, **how)

    monkeypatch.setattr(Training, "save_last", save_once)
    with pytest.raises(KeyboardInterrupt):
        fit(*LONGER)
    monkeypatch.undo()
    (run,) = saved
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "cut o')
    assert_same_run(whole(*LONGER), fit(*LONGER, resume=run))


def test_workers_make_no_difference_and_may_change_on_resume(fit: Fit) -> None:
    more = ("sampler.batches=4", "validation.num_workers=0")
    whole = fit(*more)
    run = interrupted(fit, *more, "training.num_workers=0", after=3)
    assert_same_run(whole, fit(*more, "training.num_workers=2", resume=run))


def test_a_finished_run_gives_its_report_again(fit: Fit) -> None:
    first = fit()
    stamps = [path.stat().st_mtime_ns for path in (first.best_ckpt, first.last_ckpt)]
    listener = Listener()
    again = fit(resume=first.run_dir, reporter=listener)
    assert again.metrics == first.metrics
    assert (again.best_epoch, again.epochs, again.stopped) == (first.best_epoch, 2, "epochs")
    assert listener.steps == []
    assert listener.said[-1] == f"the run in {first.run_dir} is finished; its report follows"
    assert stamps == [path.stat().st_mtime_ns for path in (first.best_ckpt, first.last_ckpt)]


def test_another_spec_is_refused_and_the_keys_are_named(fit: Fit) -> None:
    run = interrupted(fit, after=1)
    with pytest.raises(UsageError) as caught:
        fit("seed=3", "loss.margin=0.3", resume=run)
    assert caught.value.message == (
        f"the spec differs from that of the run in {str(run)!r}: "
        "loss.margin: was 0.2, is 0.3; seed: was 0, is 3"
    )
    assert fit("loggers=[tensorboard]", "prediction.batch_size=3", device="cpu", resume=run).steps == 4


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A checkpoint whose saved words are changed."""
    held, words, _ = read_tensor_file(path)
    change(words)
    write_tensor_file(path, held, words)


def test_a_run_of_an_older_version_goes_on_with_the_defaults_of_today(fit: Fit, whole: Fit) -> None:
    run = interrupted(fit, "validation.postprocessors=[k_reciprocal]", after=3)

    def older(words: dict[str, Any]) -> None:
        validation = words["spec"]["validation"]
        for key in ("alignment", "hubness", "mrr"):
            del validation["metrics"][key]
        for key in ("search", "unmatched", "bootstrap", "gallery_table"):
            del validation[key]
        del validation["postprocessors"][0]["top_n"], words["spec"]["loss"]["reduction"]
        del words["spec"]["optimizer"], words["spec"]["training"]["patience"]
        del words["progress"]["best_confidence"]

    rewritten(run / "checkpoints" / "last.ckpt", older)
    same = "validation.postprocessors=[k_reciprocal]"
    with pytest.raises(UsageError) as caught:
        fit(same, "validation.unmatched=zero", "loss.reduction=sum", resume=run)
    assert caught.value.message.endswith(
        ": loss.reduction: was 'mean', is 'sum'; validation.unmatched: was 'skip', is 'zero'"
    )
    assert fit(same, resume=run).steps == 4


def test_a_key_that_is_no_more_is_another_spec(fit: Fit) -> None:
    run = interrupted(fit, after=1)

    def older(words: dict[str, Any]) -> None:
        words["spec"]["training"]["swa"] = True
        del words["spec"]["validation"]["search"]

    rewritten(run / "checkpoints" / "last.ckpt", older)
    with pytest.raises(UsageError) as caught:
        fit(resume=run)
    assert caught.value.message.endswith(f"{str(run)!r}: training.swa: was True, is None")


def test_intervals_keep_the_confidence_they_were_made_with(fit: Fit, spec: dict[str, Any]) -> None:
    from metricli.runs.directory import RunDirectory
    from metricli.runs.history import Progress, report
    from metricli.specs.load import load_spec
    from metricli.specs.train import TrainSpec

    progress = Progress(stopped="epochs")
    progress.keep_intervals({"OVERALL": {"cmc@1": (0.1, 0.2)}}, 0.8)
    loaded = load_spec(spec | {"validation": {"bootstrap": {"confidence": 0.5}}}, TrainSpec)
    found = report(RunDirectory(Path()), loaded.spec, progress)
    assert (found.intervals, found.confidence) == ({"OVERALL": {"cmc@1": (0.1, 0.2)}}, 0.8)
    assert report(RunDirectory(Path()), loaded.spec, Progress()).confidence == 0.95


def test_other_labels_are_refused_with_the_difference(fit: Fit, spec: dict[str, Any], tmp_path: Path) -> None:
    spec["data"]["table"] = str(write_table(tmp_path / "t.csv", LABELS, JUDGED))
    run = interrupted(fit, after=1)
    write_table(tmp_path / "t.csv", [*LABELS[1:], "zed_hollow"], JUDGED)
    with pytest.raises(CheckpointError) as caught:
        fit(resume=run)
    assert caught.value.message == (
        "the train labels are not those of the run: 1 new ['zed_hollow'], 1 gone ['arc_plain']"
    )


def test_auto_goes_on_or_starts(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listener = Listener()
    first = fit(resume="auto", reporter=listener)
    assert "there is no run to resume: starting a new one" in listener.said
    assert first.run_dir.parent == tmp_path / "runs"
    assert fit(resume="auto").run_dir == first.run_dir
    assert fit("name=another", resume="auto").run_dir != first.run_dir


def test_auto_starts_over_a_run_that_has_no_checkpoint_yet(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metricli.runs.training import Training

    def killed(*_args: Any) -> None:
        raise KeyboardInterrupt

    place = {"run_dir": tmp_path / "job", "resume": "auto"}
    monkeypatch.setattr(Training, "validate", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(**place)
    monkeypatch.undo()
    assert (tmp_path / "job" / "metrics.jsonl").exists()
    done = fit(**place)
    assert done.run_dir == tmp_path / "job"
    assert [line["step"] for line in lines(done, split="train")] == [1, 2, 3, 4]
    with pytest.raises(UsageError, match="holds a run already"):
        fit(run_dir=tmp_path / "job")


def test_a_damaged_last_checkpoint_is_refused(fit: Fit) -> None:
    run = interrupted(fit, after=1)
    path = run / "checkpoints" / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its content does not match its sha256"):
        fit(resume=run)
    path.write_bytes(fit().best_ckpt.read_bytes())
    with pytest.raises(CheckpointError, match="which a resume needs"):
        fit(resume=run)


def test_the_table_may_be_found_from_the_checkpoint_alone(
    fit: Fit, spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    from metricli import train, validate

    place = tmp_path / "project"
    place.mkdir()
    write_table(place / "figures.csv", LABELS, JUDGED)
    spec["data"] = {"table": "figures.csv", "root": str(FIGURES.parent)}
    (place / "spec.yaml").write_text(yaml.safe_dump(spec))
    report = train(place / "spec.yaml", run_dir=tmp_path / "run")
    assert meta(report.best_ckpt)["base"] == str(place)
    assert meta(report.best_ckpt)["spec"]["data"]["table"] == "figures.csv"
    moved = tmp_path / "elsewhere" / "model.ckpt"
    moved.parent.mkdir()
    report.best_ckpt.rename(moved)
    monkeypatch.chdir(moved.parent)
    assert validate(ckpt=moved).metrics == report.metrics


def test_what_another_process_has_gone_on_with_is_refused(fit: Fit) -> None:
    from metricli.runs.directory import RunDirectory
    from metricli.runs.resuming import Resumed

    run = RunDirectory(interrupted(fit, after=1))
    resumed = Resumed.read(run)
    resumed.require_unchanged(run)
    fit(resume=run.path)
    with pytest.raises(UsageError, match="another process has gone on with the run"):
        resumed.require_unchanged(run)
