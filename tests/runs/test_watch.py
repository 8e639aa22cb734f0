"""A run that goes wrong in a planted way is told so, once and in whole sentences; a healthy one is not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metricli import TrainReport, dry_run
from metricli.cli.progress import describe
from metricli.errors import CollapseError, NonFiniteError
from metricli.runs.checkpoints import read_best, read_last
from metricli.runs.parts import built_extractor, built_loss
from tests.runs.conftest import Listener, assert_same_weights, lines

Fit = Callable[..., TrainReport]
LONG = ("training.epochs=1", "sampler.batches=32", "sampler.n_labels=6", "scheduler=constant")
ABSURD = (
    "loss.miner=hard_triplets",
    "sampler.n_instances=4",
    "optimizer={name: sgd, lr: 1.0, momentum: 0.9}",
)
"""Hard mining at a rate far too high: all embeddings fall together within ten steps."""
NUMBERS = ("embedding_norm", "embedding_spread", "effective_rank", "alignment", "uniformity")


def troubles(report: TrainReport) -> list[str]:
    """The warnings of the watch."""
    return [said for said in report.warnings if re.search("collapsed|proxies|memory bank", said)]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("loss.miner=hard_triplets",),
        ("loss={name: triplet, miner: all_triplets, memory: {size: 24}}",),
        ("loss=arcface", "optimizer={name: adamw, lr: 0.001, loss_lr: 0.01}"),
        ("loss=[{loss: triplet}, {loss: arcface}]",),
    ],
    ids=["triplet", "hard", "memory", "arcface", "two losses"],
)
def test_a_healthy_run_is_left_in_peace(fit: Fit, overrides: tuple[str, ...]) -> None:
    report = fit("training.epochs=3", "sampler.batches=9", "sampler.n_labels=6", *overrides)
    assert report.steps == 27
    assert troubles(report) == []


def test_embeddings_that_collapse_are_noticed_once(fit: Fit) -> None:
    listener = Listener()
    report = fit(*LONG, *ABSURD, reporter=listener)
    (said,) = troubles(report)
    found = re.fullmatch(
        r"the embeddings have collapsed: from step (\d+) to step (\d+) all of a batch were nearly equal "
        r"\(embedding_spread 0\.0\d+\); try an easier miner such as all_triplets, "
        r"or a lower optimizer\.lr than 1",
        said,
    )
    assert found is not None, said
    assert int(found[2]) - int(found[1]) == 20
    assert listener.warned.count(said) == 1
    assert f"warning: {said}\n" in (report.run_dir / "log.txt").read_text()
    last = lines(report, split="train")[-1]
    assert last["loss"] == pytest.approx(0.2, abs=0.05), "the loss stands at the margin"
    assert last["positive_distance"] < 0.08


def test_a_collapse_can_end_the_run(fit: Fit) -> None:
    with pytest.raises(CollapseError) as caught:
        fit(*LONG[2:], *ABSURD, "training.epochs=4", "sampler.batches=10", "training.on_collapse=stop")
    error = caught.value
    assert (error.exit_code, error.code) == (4, "collapse")
    found = re.fullmatch(
        r"the embeddings have collapsed: from step \d+ to step (\d+) all of a batch were nearly equal "
        r"\(embedding_spread 0\.0\d+\); stopped there, saved in (.*)",
        error.message,
    )
    assert found is not None, error.message
    assert error.hint.startswith("try an easier miner such as all_triplets, or a lower optimizer.lr than 1")
    checkpoints = Path(found[2]) / "checkpoints"
    assert read_last(checkpoints / "last.ckpt")[1]["progress"]["step"] == int(found[1])
    assert 1 <= read_best(checkpoints / "best.ckpt").epoch < int(found[1]) / 10


class Planted(nn.Module):
    """The extractor of the spec, its embeddings changed by a function of them and of the call's number."""

    def __init__(self, built: Any, change: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.built, self.change, self.dim, self.calls = built, change, built.dim, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.change(self.built(images), self.calls)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plant a change of the embeddings into the runs of a test."""

    def call(change: Callable[[Tensor, int], Tensor]) -> None:
        def build(*args: Any, **options: Any) -> Planted:
            return Planted(built_extractor(*args, **options), change)

        monkeypatch.setattr("metricli.runs.building.built_extractor", build)

    return call


def test_equal_embeddings_are_a_collapse(fit: Fit, plant: Any) -> None:
    plant(lambda x, _: x[:1].expand(len(x), -1))
    report = fit(*LONG)
    assert troubles(report) == [
        "the embeddings have collapsed: from step 1 to step 21 all of a batch were nearly equal "
        "(embedding_spread 0); try a lower optimizer.lr than 0.001"
    ]
    assert "effective_rank" not in lines(report, split="train")[0], "that of equal rows is not defined"


def test_embeddings_on_a_line_are_a_collapse(fit: Fit, plant: Any) -> None:
    plant(lambda x, _: x.mean(1, keepdim=True) * torch.ones(x.shape[1]))
    report = fit(*LONG, "extractor.normalize=false", "validation.distance=euclidean")
    (said,) = troubles(report)
    assert said.startswith(
        "the embeddings have collapsed: from step 1 to step 21 all of a batch lay on one line "
        "(effective_rank 1.00); try the soft margin (margin: null), or a lower optimizer.lr than 0.001"
    )


def test_embeddings_within_the_margin_are_a_collapse(fit: Fit, plant: Any) -> None:
    plant(lambda x, _: 1e-3 * nn.functional.normalize(x))
    report = fit(*LONG, "extractor.normalize=false", "validation.distance=euclidean")
    (said,) = troubles(report)
    assert re.match(
        r"the embeddings have collapsed: from step 1 to step 21 positives and negatives were nearer than "
        r"half the margin 0\.2 \(0\.00\d+ and 0\.00\d+\) and the loss stood near it \(0\.2\); "
        r"try the soft margin",
        said,
    ), said


def test_a_memory_bank_of_another_space_is_stale(fit: Fit, plant: Any) -> None:
    plant(lambda x, call: x * (-1) ** call)
    report = fit(*LONG, "loss={name: triplet, miner: all_triplets, memory: {size: 12}}")
    (said,) = troubles(report)
    found = re.fullmatch(
        r"the memory bank is stale: from step 2 to step 22 its images of a label were (\S+) farther "
        r"\(cosine distance\) than those of the batch, whose other labels are (\S+) farther; try a smaller "
        r"memory\.size, a later memory\.start_after, or a lower optimizer\.lr",
        said,
    )
    assert found is not None, said
    assert float(found[1]) > max(0.05, float(found[2]))


def test_proxies_that_nothing_comes_near_are_noticed_once(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_twins(*args: Any, **options: Any) -> Any:
        loss: Any = built_loss(*args, **options)
        with torch.no_grad():
            loss.weight[3:] = loss.weight[0]  # of equal ones the first is the nearest
        return loss

    monkeypatch.setattr("metricli.runs.building.built_loss", with_twins)
    rates = "optimizer={name: sgd, lr: 0.001, loss_lr: 1.0e-30}"
    report = fit("training.epochs=4", "loss=arcface", rates, "sampler.n_labels=6", "sampler.batches=8")
    shares = [line["proxies_unchosen"] for line in lines(report, split="train_epoch")]
    assert all(share >= 0.5 for share in shares)
    (said,) = troubles(report)
    assert said == (
        f"the proxies of {round(6 * shares[1])} of 6 labels ('ring_striped', 'star4_plain', 'tee_plain') "
        "were nearest to no embedding for two epochs, so these labels are hardly learnt; proxies and "
        "embeddings move at unequal paces: try a higher optimizer.loss_lr than 1e-30, or a lower "
        "optimizer.lr than 0.001"
    )


def test_a_loss_that_is_not_finite_ends_the_run_before_the_watch_speaks(fit: Fit, plant: Any) -> None:
    plant(lambda x, call: x * (math.nan if call == 6 else 1))
    listener = Listener()
    with pytest.raises(NonFiniteError, match="step 6"):
        fit(*LONG, reporter=listener)
    assert listener.warned == []
    assert len(listener.steps) == 5


def test_the_numbers_are_in_the_lines_of_the_interval_and_beside_the_bar(fit: Fit) -> None:
    listener = Listener()
    report = fit("training.log_every_steps=3", "sampler.batches=4", "loss=arcface", reporter=listener)
    logged = lines(report, split="train")
    assert [line["step"] for line in logged] == [3, 6]
    for line in logged:
        assert set(NUMBERS) < set(line)
        assert line["embedding_norm"] == pytest.approx(1, abs=1e-6)
        assert 0 < line["positive_distance"] < 2, "arcface has none of its own, so it is that of all pairs"
    assert [step.get("effective_rank") for step in listener.steps] == [
        *[None] * 2,
        *[logged[0]["effective_rank"]] * 3,
        *[logged[1]["effective_rank"]] * 3,
    ]
    assert not set(NUMBERS) & set(lines(report, split="train_epoch")[0])


def test_distances_are_those_of_the_loss_where_it_has_some(fit: Fit) -> None:
    listener = Listener()
    report = fit(*LONG[2:], "loss.miner=hard_triplets", "sampler.n_instances=4", reporter=listener)
    for line, step in zip(lines(report, split="train"), listener.steps, strict=True):
        assert line["positive_distance"] == step["positive_distance"]
        assert line["positive_distance"] ** 2 > line["alignment"], "the farthest, not the mean"


def test_the_live_numbers_are_short() -> None:
    values = {
        "loss": 0.5,
        "effective_rank": 7.25,
        "embedding_norm": 1.0,
        "alignment": 0.5,
        "uniformity": -2.0,
    }
    assert describe(values, "9 images/s") == (
        "loss 0.5000, rank 7.2500, norm 1.0000, align 0.5000, unif -2.0000, 9 images/s"
    )


def test_looking_changes_nothing(fit: Fit) -> None:
    often, never = fit("training.log_every_steps=1"), fit("training.log_every_steps=1000")
    assert_same_weights(often.best_ckpt, never.best_ckpt)


def test_tips_about_the_table_are_said_in_a_dry_run(spec: dict[str, Any]) -> None:
    spec["sampler"]["n_instances"] = 5
    said = dry_run(spec).warnings
    assert [message for message in said if message.startswith("sampler.")] == [
        "sampler.n_instances: 6 of 6 train labels cannot give 5 images ('arc_plain', 'hexagon_hollow', "
        "'plus_dotted', ...): theirs are repeated in a batch, where copies are easy positives; lower it, or "
        "leave them out"
    ]
