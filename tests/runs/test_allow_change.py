"""A run that goes on with another spec than it began with, key by key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from metricli import TrainReport
from metricli.errors import CheckpointError, UsageError
from metricli.runs.checkpoints import read_last
from tests.runs.conftest import Listener, assert_same_weights, lines
from tests.runs.test_resuming import interrupted

Fit = Callable[..., TrainReport]
FLAT = ("scheduler=constant", "optimizer={name: sgd, lr: 0.1, momentum: 0.9}")


def rates(report: TrainReport) -> list[float]:
    """The learning rate at each step."""
    return [line["lr"] for line in lines(report, split="train")]


def test_it_is_accepted_key_by_key(fit: Fit) -> None:
    run = interrupted(fit, *FLAT, after=2)
    changed = (*FLAT, "optimizer.lr=0.01", "loss.margin=0.3")
    with pytest.raises(UsageError) as caught:
        fit(*changed, resume=run, allow_change=["optimizer.lr"])
    assert caught.value.message.endswith(": loss.margin: was 0.2, is 0.3")
    assert "--allow-change loss.margin" in caught.value.hint
    listener = Listener()
    done = fit(*changed, resume=run, allow_change=["optimizer.lr", "loss"], reporter=listener)
    assert rates(done) == [0.1, 0.1, 0.01, 0.01]
    assert "the spec has changed, optimizer.lr: was 0.1, is 0.01" in listener.said
    assert yaml.safe_load((run / "spec.resolved.yaml").read_text())["loss"]["margin"] == 0.3
    assert fit(*changed, resume=run).steps == 4  # from now on it is the spec of the run


def test_the_moments_stay(fit: Fit) -> None:
    """Two steps at next to no rate keep the weights, and with them what momentum the first two have left."""
    run = interrupted(fit, *FLAT, after=2)
    before = read_last(run / "checkpoints" / "last.ckpt")[0]
    done = fit(*FLAT, "optimizer.lr=1e-30", resume=run, allow_change=["optimizer.lr"])
    after = read_last(done.last_ckpt)[0]
    name = next(name for name in before["extractor"] if name.endswith("weight"))
    assert before["extractor"][name].equal(after["extractor"][name])
    buffers = [state["optimizer"]["state"][0]["momentum_buffer"] for state in (before, after)]
    assert buffers[0].abs().sum() > 0
    assert not buffers[0].equal(buffers[1])


def test_more_epochs_of_a_finished_run(fit: Fit, whole: Fit) -> None:
    flat = ("scheduler=constant",)
    run = fit(*flat).run_dir
    longer = fit(*flat, "training.epochs=4", resume=run, allow_change=["training.epochs"])
    assert (longer.epochs, longer.steps, longer.stopped) == (4, 8, "epochs")
    assert_same_weights(longer.best_ckpt, whole(*flat, "training.epochs=4").best_ckpt)
    assert lines(longer) == lines(whole(*flat, "training.epochs=4"))


def test_fewer_epochs_end_the_run(fit: Fit) -> None:
    run = interrupted(fit, "training.epochs=3", after=5)
    done = fit("training.epochs=2", resume=run, allow_change=["training.epochs"])
    assert (done.epochs, done.stopped) == (2, "epochs")
    assert done.warnings == ["2 epochs are done and 2 asked for: none is trained"]
    assert read_last(done.last_ckpt)[1]["progress"]["stopped"] == "epochs"


def test_another_length_moves_the_schedule(fit: Fit, whole: Fit) -> None:
    run = interrupted(fit, after=2)
    longer = fit("training.epochs=4", resume=run, allow_change=["training.epochs"])
    planned = whole("training.epochs=4")
    assert rates(longer)[2:] == rates(planned)[2:]
    assert rates(longer)[:2] != rates(planned)[:2]


def test_more_patience_lets_a_stopped_run_go_on(fit: Fit) -> None:
    still = ("training.epochs=4", "training.patience=1", "optimizer={name: sgd, lr: 1e-30}")
    first = fit(*still)
    assert (first.stopped, first.epochs) == ("early stopping", 2)
    patient = (*still, "training.patience=5")
    done = fit(*patient, resume=first.run_dir, allow_change=["training.patience"])
    assert (done.stopped, done.epochs) == ("epochs", 4)


def test_another_optimizer_begins_without_moments(fit: Fit) -> None:
    run = interrupted(fit, *FLAT, after=2)
    other = (*FLAT, "optimizer={name: adam, lr: 0.02}")
    done = fit(*other, resume=run, allow_change=["optimizer"])
    assert rates(done) == [0.1, 0.1, 0.02, 0.02]
    state = read_last(done.last_ckpt)[0]["optimizer"]["state"][0]
    assert "exp_avg" in state
    assert int(state["step"]) == 2


def test_the_average_of_the_weights_may_begin_later(fit: Fit) -> None:
    run = interrupted(fit, after=2)
    done = fit("training.ema={decay: 0.5}", resume=run, allow_change=["training.ema"])
    state = read_last(done.last_ckpt)[0]
    assert state["ema"].keys() == state["extractor"].keys()


def test_another_model_does_not_fit(fit: Fit) -> None:
    run = interrupted(fit, after=2)
    stamp = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    with pytest.raises(CheckpointError, match=r"does not fit the changed spec: .*size mismatch"):
        fit("extractor.dim=6", resume=run, allow_change=["extractor"])
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == stamp
    assert fit(resume=run).steps == 4


def test_a_smaller_batch_goes_on_in_the_epoch(fit: Fit) -> None:
    run = interrupted(fit, "sampler.batches=4", after=3)
    small = ("sampler.batches=2",)
    done = fit(*small, resume=run, allow_change=["sampler.batches"])
    assert [(line["epoch"], line["step"]) for line in lines(done, split="train")] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 4),
        (2, 5),
    ]


@pytest.mark.parametrize(
    ("allowed", "resume", "message"),
    [
        (["optimizer.lrr"], True, r"'optimizer.lrr' is no key of the spec, did you mean 'optimizer.lr'\?"),
        (["epochs"], True, r"'epochs' is no key of the spec, did you mean 'training.epochs'\? give one such"),
        (["margin"], True, r"'margin' is no key of the spec, did you mean 'loss.margin'\?"),
        (["training.epochs"], False, "--allow-change is for a run that goes on"),
    ],
)
def test_what_is_no_change(fit: Fit, allowed: list[str], resume: bool, message: str) -> None:
    where = {"resume": interrupted(fit, after=1)} if resume else {}
    with pytest.raises(UsageError, match=message):
        fit(allow_change=allowed, **where)


def test_a_change_that_is_none_is_said(fit: Fit, tmp_path: Path) -> None:
    run, listener = interrupted(fit, after=1), Listener()
    fit(resume=run, allow_change=["optimizer.lr"], reporter=listener)
    assert "--allow-change optimizer.lr: nothing has changed there" in listener.warned


def test_the_hint_of_a_refusal_accepts_all_that_it_names(fit: Fit) -> None:
    run = interrupted(fit, *FLAT, after=1)
    changed = (
        "loss={name: contrastive, pos_margin: 0.1, neg_margin: 0.6}",
        "optimizer={name: sgd, lr: 0.01, momentum: 0.8}",
        "scheduler=constant",
        "seed=3",
    )
    with pytest.raises(UsageError) as caught:
        fit(*changed, resume=run)
    assert "differs" in caught.value.message, caught.value.message
    said = caught.value.message.partition(f"{str(run)!r}: ")[2].split("; ")
    keys = [change.partition(": was ")[0] for change in said]
    assert len(keys) > 5
    assert {"loss.name", "optimizer.lr", "optimizer.momentum", "seed"} <= set(keys)
    accept = caught.value.hint.partition("accept it with ")[2].partition(", or start")[0]
    words = accept.split("--allow-change ")[1:]
    assert [word.strip() for word in words] == ["loss", "optimizer", "seed"]
    assert fit(*changed, resume=run, allow_change=[word.strip() for word in words]).steps == 4
