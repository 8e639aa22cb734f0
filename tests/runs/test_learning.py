from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metricli import TrainReport, validate
from metricli.components.dataset import Batch
from metricli.components.extractors import timm_extractor
from metricli.errors import NonFiniteError, SpecError
from metricli.reporter import SilentReporter
from metricli.runs.building import build_learner
from metricli.runs.checkpoints import read_best, read_last
from metricli.runs.context import open_context
from metricli.runs.learner import Learner
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec
from tests.runs.conftest import Listener, lines, tensors

Fit = Callable[..., TrainReport]
SGD = "optimizer={name: sgd, lr: 1.0}"


@pytest.fixture
def learn(spec: dict[str, Any]) -> Callable[..., Learner]:
    """A learner of the spec with overrides, over three labels and two steps an epoch."""

    def build(*overrides: str) -> Learner:
        loaded = load_spec(spec, TrainSpec, overrides).spec
        context = open_context(loaded.compute, SilentReporter(), loaded.training.precision)
        learner = build_learner(loaded, context, num_labels=3, label_to_category=None, steps_per_epoch=2)
        learner.start_epoch(0)
        return learner

    return build


def batch(*labels: int, fill: float | None = None) -> Batch:
    images = torch.rand(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(3))
    if fill is not None:
        images[0] = fill
    return Batch(images, torch.tensor(labels), torch.arange(len(labels)))


def copied(learner: Learner) -> list[Tensor]:
    return [p.detach().clone() for module in (learner.extractor, learner.loss) for p in module.parameters()]


def moved(learner: Learner, before: list[Tensor]) -> float:
    apart = [(new - old).norm() ** 2 for new, old in zip(copied(learner), before, strict=True)]
    return math.sqrt(float(sum(apart)))


@pytest.mark.parametrize("limit", [None, 1e-3, 1e6])
def test_the_gradient_is_clipped_before_the_step(learn: Any, limit: float | None) -> None:
    learner = learn(SGD, f"training.grad_clip_norm={limit}".replace("None", "null"))
    before = copied(learner)
    values = learner.step(batch(0, 0, 1, 1, 2, 2), 0)
    assert values["grad_norm"] > 0.1, "what is logged is the norm before clipping"
    expected = values["grad_norm"] if limit is None else min(limit, values["grad_norm"])
    assert moved(learner, before) == pytest.approx(expected, rel=1e-3)


def test_rates_and_decay_of_the_groups_reach_the_optimizer(learn: Any) -> None:
    learner = learn(
        "optimizer={name: adamw, lr: 0.001, head_lr: 0.01, weight_decay: 0.1}", "scheduler={name: constant}"
    )
    groups = learner.optimizer.param_groups
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in groups} == {
        "backbone": (0.001, 0.1),
        "backbone, no decay": (0.001, 0.0),
        "head": (0.01, 0.1),
        "head, no decay": (0.01, 0.0),
    }
    everything = [p for m in (learner.extractor, learner.loss) for p in m.parameters()]
    assert {id(p) for p in learner.parameters} == {id(p) for p in everything}


def test_weights_of_the_loss_learn(learn: Any) -> None:
    learner = learn("loss={name: arcface}", "sampler=null", "training.batch_size=4")
    before = learner.loss.weight.detach().clone()
    learner.step(batch(0, 1, 2, 0), 0)
    assert not torch.equal(learner.loss.weight, before)


@pytest.mark.parametrize("fill", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_step(learn: Any, fill: float) -> None:
    learner = learn()
    before = copied(learner)
    with pytest.raises(NonFiniteError) as caught:
        learner.step(batch(0, 0, 1, 1, fill=fill), 6)
    assert caught.value.message.startswith("the loss is NaN or infinite at step 7; this step was not taken; ")
    assert caught.value.exit_code == 4
    assert moved(learner, before) == 0


class Cliff(nn.Module):
    """A loss of 0 with a gradient of NaN."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return (embeddings - embeddings.detach()).abs().sum().sqrt()


@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_a_gradient_that_is_not_finite_stops_before_the_step(learn: Any, clip: str) -> None:
    learner = learn(f"training.grad_clip_norm={clip}")
    learner.loss = Cliff()
    before = copied(learner)
    with pytest.raises(NonFiniteError) as caught:
        learner.step(batch(0, 0, 1, 1), 0)
    assert caught.value.message == (
        "the gradient is NaN or infinite at step 1; this step was not taken; "
        "its 4 images: row 0, row 1, row 2, row 3"
    )
    assert moved(learner, before) == 0


def test_a_run_that_diverges_stops(fit: Fit) -> None:
    with pytest.raises(NonFiniteError, match="is NaN or infinite"):
        fit("optimizer={name: sgd, lr: 1e38}", "training.epochs=4")


@pytest.mark.parametrize("miner", ["all_triplets", "hard_triplets"])
def test_a_batch_without_triplets_is_a_step_of_nothing(learn: Any, miner: str) -> None:
    learner = learn(SGD, f"loss.miner={miner}")
    before = copied(learner)
    values = learner.step(batch(1, 1, 1, 1), 0)
    assert (values["loss"], values["grad_norm"]) == (0.0, 0.0)
    assert moved(learner, before) == 0
    assert learner.step(batch(0, 0, 1, 1), 1)["grad_norm"] > 0


def initial() -> dict[str, Tensor]:
    torch.manual_seed(0)
    found: dict[str, Tensor] = timm_extractor("test_resnet", dim=8).state_dict()
    return found


def test_a_frozen_backbone_keeps_weights_and_statistics(fit: Fit) -> None:
    report = fit(
        "training.epochs=2", "training.freeze_epochs=2", "optimizer.name=adamw", "optimizer.weight_decay=0.5"
    )
    state = read_last(report.last_ckpt)[0]["extractor"]
    assert any(name.endswith("running_mean") for name in state)
    for name, tensor in initial().items():
        assert torch.equal(state[name], tensor) == name.startswith("backbone."), name


def test_a_backbone_thaws_after_its_frozen_epochs(fit: Fit) -> None:
    listener = Listener()
    report = fit("training.epochs=2", "training.freeze_epochs=1", reporter=listener)
    state = read_last(report.last_ckpt)[0]["extractor"]
    before = initial()
    for name in ("conv1.0.weight", "bn1.weight", "bn1.running_mean", "layer4.0.conv1.weight"):
        assert not torch.equal(state[f"backbone.{name}"], before[f"backbone.{name}"]), name
    assert state["backbone.bn1.num_batches_tracked"] == 2, "only the second epoch's steps"


def test_freezing_leaves_alone_what_never_trained(learn: Any) -> None:
    learner = learn("training.freeze_epochs=1")
    backbone = learner.extractor.backbone
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.bn1.training
    assert learner.extractor.projection.weight.requires_grad
    backbone.bn1.bias.requires_grad_(False)
    learner.__post_init__()
    learner._freezable = [backbone.bn1.weight]
    learner.start_epoch(1)
    assert backbone.bn1.training
    assert backbone.bn1.weight.requires_grad
    assert not backbone.bn1.bias.requires_grad


def test_freezing_everything_is_refused(learn: Any) -> None:
    with pytest.raises(SpecError, match=r"training\.freeze_epochs\s+freezing the backbone leaves nothing"):
        learn("training.freeze_epochs=1", "extractor.dim=null")
    learn("training.freeze_epochs=1", "extractor.dim=null", "extractor.bnneck=true")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_metrics_in_training_are_those_of_validate(fit: Fit, precision: str) -> None:
    report = fit(f"training.precision={precision}", "training.epochs=3", "extractor.pooling=gem")
    kind = torch.float64 if precision == "fp64" else torch.float32
    assert read_best(report.best_ckpt).dtype == kind
    assert {t.dtype for t in tensors(report.best_ckpt).values()} == {kind, torch.int64}
    again = validate(ckpt=report.best_ckpt)
    assert again.metrics == report.metrics
    assert (
        report.metrics["OVERALL"]["cmc@1"]
        == lines(report, category="OVERALL")[report.best_epoch - 1]["cmc@1"]
    )


def seen_types(learner: Learner) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """Of a convolution and of what the loss is given in a step, and of a convolution in evaluation."""
    seen: list[torch.dtype] = []
    convolution = next(m for m in learner.extractor.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    learner.loss.register_forward_pre_hook(lambda _m, given: seen.append(given[0].dtype))
    learner.step(batch(0, 0, 1, 1), 0)
    learner.extractor.eval()(batch(0).images.to(next(learner.extractor.parameters()).dtype))
    return seen[0], seen[1], seen[2]


def test_bf16_is_for_the_forward_pass_of_training_alone(learn: Any) -> None:
    unnormalized = "extractor.normalize=false"
    assert seen_types(learn("training.precision=bf16", unnormalized)) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert seen_types(learn("training.precision=fp64", unnormalized)) == (torch.float64,) * 3
    assert seen_types(learn("training.precision=fp32", unnormalized)) == (torch.float32,) * 3


def rates(report: TrainReport) -> list[float]:
    return [line["lr"] for line in lines(report, split="train")]


def test_a_schedule_of_steps(fit: Fit) -> None:
    report = fit("scheduler={name: cosine, warmup_epochs: 1, warmup_start: 0.1}", "training.epochs=4")
    half = [(1 + math.cos(math.pi * i / 5)) / 2 for i in range(6)]
    assert rates(report) == pytest.approx([1e-3 * f for f in [0.1, 0.55, *half]], abs=1e-12)
    assert rates(report)[-1] == 0


def test_a_schedule_of_epochs(fit: Fit) -> None:
    report = fit("scheduler={name: exponential, gamma: 0.5, interval: epoch}", "training.epochs=3")
    assert rates(report) == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4])


def test_a_schedule_of_every_second_epoch_or_step(fit: Fit) -> None:
    by_epoch = fit(
        "scheduler={name: exponential, gamma: 0.5, interval: epoch, frequency: 2}", "training.epochs=4"
    )
    assert rates(by_epoch) == pytest.approx([1e-3] * 4 + [2.5e-4] * 4)
    by_step = fit("scheduler={name: linear, frequency: 2}", "training.epochs=3")
    assert rates(by_step) == pytest.approx([1e-3, 1e-3, 6e-4, 6e-4, 2e-4, 2e-4])


def test_plain_shuffling(fit: Fit) -> None:
    listener = Listener()
    report = fit(
        "sampler=null",
        "training.batch_size=7",
        "loss={name: arcface}",
        "training.epochs=2",
        reporter=listener,
    )
    assert report.steps == 8, "24 images in batches of 7"
    assert [step["images"] for step in listener.steps] == [7] * 8
