"""Lists of losses, memory banks and losses of pytorch-metric-learning in whole runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metricli import TrainReport, dry_run
from metricli.errors import UsageError
from metricli.runs.checkpoints import read_last
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec
from tests.runs.conftest import lines
from tests.runs.test_resuming import LONGER, assert_same_run, interrupted

Fit = Callable[..., TrainReport]
MEMORY = ("loss={name: triplet, memory: {size: 10, start_after: 2}}",)
SEVERAL = (
    "loss=[{weight: 0.5, loss: triplet}, {loss: {name: arcface, scale: 16}}, "
    "{weight: 2, loss: {name: triplet, miner: all_triplets, memory: {size: 15}}}]",
)
PML = ("loss={name: pml, loss: ProxyAnchorLoss, args: {alpha: 8}}",)


@pytest.mark.parametrize("overrides", [MEMORY, SEVERAL, PML], ids=["memory", "several", "pml"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_resumed_run_is_an_uninterrupted_one(
    fit: Fit, whole: Fit, overrides: tuple[str, ...], after: int
) -> None:
    run = interrupted(fit, *overrides, *LONGER, after=after)
    assert_same_run(whole(*overrides, *LONGER), fit(*overrides, *LONGER, resume=run))


def test_a_bank_changes_the_run_from_the_step_on_that_it_is_used(whole: Fit) -> None:
    with_bank, without = whole(*MEMORY, *LONGER), whole("loss={name: triplet}", *LONGER)
    losses = [[row["loss"] for row in lines(run, split="train")] for run in (with_bank, without)]
    assert len(losses[0]) == 6
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2] > losses[1][2]
    rows = lines(with_bank, split="train")
    assert [row["memory_fill"] for row in rows] == pytest.approx([0, 0.6, 1, 1, 1, 1])
    assert [row["memory_loss"] > 0 for row in rows[:4]] == [False, False, True, True]
    state = read_last(with_bank.last_ckpt)[0]["loss"]
    assert tuple(state["embeddings"].shape) == (10, 8)
    assert state["position"].tolist() == [6 * 6 % 10, 10, 6]


def test_each_loss_of_a_list_is_logged_and_they_sum(whole: Fit) -> None:
    for row in lines(whole(*SEVERAL, *LONGER), split="train"):
        total = 0.5 * row["triplet_0_loss"] + row["arcface_loss"] + 2 * row["triplet_2_loss"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert {"triplet_0_active", "arcface_accuracy", "triplet_2_active", "triplet_2_memory_fill"} <= set(
            row
        )


def test_the_resolved_spec_is_the_same_spec(whole: Fit) -> None:
    run = whole(*SEVERAL, *LONGER)
    written = yaml.safe_load((run.run_dir / "spec.resolved.yaml").read_text())
    spec = load_spec(run.run_dir / "spec.resolved.yaml", TrainSpec).spec
    assert spec.model_dump(mode="json") == written
    assert [(weight, loss.name) for weight, loss in spec.losses] == [
        (0.5, "triplet"),
        (1.0, "arcface"),
        (2.0, "triplet"),
    ]


def test_a_resume_with_another_weight_is_refused(fit: Fit) -> None:
    run = interrupted(fit, *SEVERAL, *LONGER, after=1)
    with pytest.raises(UsageError) as caught:
        fit(*SEVERAL, *LONGER, "loss.1.weight=3", resume=run)
    assert "loss.1.weight: was 1.0, is 3.0" in caught.value.message
    assert "miner" not in caught.value.message


def test_a_dry_run_takes_a_step(spec: dict[str, Any]) -> None:
    report = dry_run(spec, SEVERAL)
    batch = report.train_batch
    total = 0.5 * batch["triplet_0_loss"] + batch["arcface_loss"] + 2 * batch["triplet_2_loss"]
    assert batch["loss"] == pytest.approx(total, rel=1e-5)


def test_a_proxy_loss_of_the_package_learns_its_proxies(whole: Fit) -> None:
    report = whole(*PML, *LONGER)
    other = whole(*PML)
    ends = [read_last(run.last_ckpt)[0]["loss"]["loss.proxies"] for run in (report, other)]
    assert tuple(ends[0].shape) == (6, 8)
    assert not torch.equal(ends[0], ends[1])


def test_the_command_line_says_what_is_wrong(cli: Any, spec: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    done = cli("train", str(path), "loss=[{weight: 0, loss: triplet}]")
    assert done.code == 2
    assert "loss.0.weight  must be greater than 0, got 0 (from the command line)" in done.err
