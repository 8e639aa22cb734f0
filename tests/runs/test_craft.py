"""Averaged weights, rates by layer, freezing and thawing, memory order, compiling: each by its effect."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metricli import TrainReport, validate
from metricli.components.dataset import Batch
from metricli.errors import NonFiniteError, SpecError, UsageError
from metricli.runs.checkpoints import read_best, read_last
from metricli.runs.learner import Learner
from metricli.specs.load import check_spec, load_spec
from metricli.specs.train import TrainSpec
from tests.runs.conftest import Listener, lines
from tests.runs.test_caching import LABELS, batch, learn  # noqa: F401
from tests.runs.test_resuming import assert_same_run, interrupted

Fit = Callable[..., TrainReport]
Learn = Callable[..., Learner]
SGD = "optimizer={name: sgd, lr: 0.1}"
VIT = "extractor={name: timm, model: test_vit, model_args: {img_size: 32}, dim: 8}"
TORCHVISION = "extractor={name: torchvision, model: mobilenet_v3_small, dim: 8}"


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


# --- averaged weights ---


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_that_of_the_definition(learn: Learn, warmup: bool) -> None:  # noqa: F811
    learner = learn(SGD, f"training.ema={{decay: 0.8, warmup: {str(warmup).lower()}}}")
    expected, decays = weights(learner.extractor), []
    for step in range(6):
        decays.append(learner.step(batch(step), step)["ema_decay"])
        for name, now in weights(learner.extractor).items():
            mean = decays[-1] * expected[name] + (1 - decays[-1]) * now
            expected[name] = mean if now.is_floating_point() else now
    rising = [min(0.8, 1 - (1 + i) ** (-2 / 3)) for i in range(6)]
    assert decays == pytest.approx(rising if warmup else [0.0] + [0.8] * 5)
    found = weights(learner.judged)
    for name, mean in expected.items():
        torch.testing.assert_close(found[name], mean, rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.allclose(found["projection.weight"], learner.extractor.projection.weight, rtol=1e-3)  # type: ignore[union-attr,arg-type]
    assert not any(p.requires_grad for p in learner.judged.parameters())


def test_the_average_is_judged_and_shipped(fit: Fit) -> None:
    listener = Listener()
    words = ("training.ema={decay: 0.5}", SGD, "training.epochs=3")
    report = fit(*words, reporter=listener)
    state = read_last(report.last_ckpt)[0]
    assert "judged and kept in best.ckpt: the average of the weights (EMA, decay 0.5)" in listener.said
    again = fit(*words, "validation.every_n_epochs=3")
    shipped = read_best(again.best_ckpt)
    for name, tensor in shipped.weights.items():
        assert torch.equal(tensor, state["ema"][name]), name
    assert not torch.equal(shipped.weights["projection.weight"], state["extractor"]["projection.weight"])
    assert validate(ckpt=again.best_ckpt).metrics == again.metrics
    assert all(line["ema_decay"] in (0.0, 0.5) for line in lines(report, split="train"))


def test_a_resumed_average_is_an_uninterrupted_one(fit: Fit) -> None:
    words = ("training.ema={decay: 0.9, warmup: true}", "training.epochs=3")
    run = interrupted(fit, *words, after=3)
    one, two = fit(*words), fit(*words, resume=run)
    assert_same_run(one, two)
    assert read_last(two.last_ckpt)[0]["ema"].keys() == read_best(two.best_ckpt).weights.keys()


# --- rates ---


def test_rates_by_layer_reach_the_optimizer_and_the_first_is_logged(fit: Fit) -> None:
    report = fit(
        "optimizer={name: sgd, lr: 0.01, head_lr: 0.1, loss_lr: 0.5, layer_decay: 0.5}",
        "loss={name: arcface}",
        "scheduler={name: constant}",
        "training.epochs=1",
    )
    groups = read_last(report.last_ckpt)[0]["optimizer"]["param_groups"]
    rates = {group["name"]: group["lr"] for group in groups}
    layers = [name for name in rates if name.startswith("backbone layer ") and not name.endswith("decay")]
    assert [rates[name] for name in layers] == [0.01 * 0.5**i for i in range(len(layers))]
    assert (rates["head"], rates["loss"]) == (0.1, 0.5)
    assert lines(report, split="train")[0]["lr"] == 0.01


def test_rates_by_layer_move_the_last_layers_more(learn: Learn) -> None:  # noqa: F811
    def moved(*words: str) -> tuple[float, float]:
        learner = learn(VIT, *words, "training.precision=fp64")
        before = weights(learner.extractor)
        learner.step(batch(), 0)
        after = weights(learner.extractor)
        first, last = "backbone.patch_embed.proj.weight", "backbone.norm.weight"
        return float((after[first] - before[first]).norm()), float((after[last] - before[last]).norm())

    plain = moved("optimizer={name: sgd, lr: 0.1}", "scheduler=constant")
    decayed = moved("optimizer={name: sgd, lr: 0.1, layer_decay: 0.1}", "scheduler=constant")
    assert decayed[1] == pytest.approx(plain[1])
    assert 0 < decayed[0] < 1e-3 * plain[0]


def test_rates_by_layer_need_layers(learn: Learn) -> None:  # noqa: F811
    with pytest.raises(SpecError) as caught:
        learn(TORCHVISION, "optimizer.layer_decay=0.5")
    (problem,) = caught.value.problems
    assert problem.path == "optimizer.layer_decay"
    assert problem.message == (
        "the backbone MobileNetV3 does not name its layers, as timm's do; set it to null"
    )


# --- freezing and thawing ---


def trains(learner: Learner) -> set[str]:
    """The children of the backbone that train."""
    named = learner.backbone.named_parameters()
    return {name.partition(".")[0] for name, p in named if p.requires_grad}


def test_stages_thaw_from_the_last_to_the_first(fit: Fit) -> None:
    listener = Listener()
    words = ("training.epochs=5", "training.freeze_epochs=1", "training.thaw_epochs=3")
    report = fit(*words, "optimizer.lr=0.01", "scheduler=constant", reporter=listener)
    said = [message for message in listener.said if " thaws " in message]
    assert said == [
        "epoch 2 thaws layer4, layer3 of the backbone; 3 of its 5 stages are still frozen",
        "epoch 3 thaws layer2, layer1 of the backbone; 1 of its 5 stages are still frozen",
        "epoch 4 thaws conv1 and bn1 of the backbone",
    ]
    state = read_last(report.last_ckpt)[0]["extractor"]
    steps = {name: int(t) for name, t in state.items() if name.endswith("num_batches_tracked")}
    assert steps["backbone.bn1.num_batches_tracked"] == 4, "two epochs of two steps"
    assert steps["backbone.layer2.0.bn1.num_batches_tracked"] == 6
    assert steps["backbone.layer4.0.bn1.num_batches_tracked"] == 8


def test_a_backbone_that_thaws_at_once_is_said(fit: Fit) -> None:
    listener = Listener()
    fit("training.freeze_epochs=1", reporter=listener)
    assert "epoch 2 thaws the backbone" in listener.said


@pytest.mark.parametrize(("epochs", "warned"), [(5, True), (6, False)])
def test_stages_that_never_thaw_are_said(spec: dict[str, Any], epochs: int, warned: bool) -> None:
    spec["training"] = {"freeze_epochs": 2, "thaw_epochs": 4, "epochs": epochs}
    found = [(p.path, p.message, p.severity) for p in check_spec(load_spec(spec, TrainSpec), None)]
    what = (
        "the first stages of the backbone never train: "
        "freeze_epochs 2 + thaw_epochs 4 is more than the 5 epochs"
    )
    assert found == ([("training.thaw_epochs", what, "warning")] if warned else [])


def test_a_stage_that_is_frozen_does_not_move(learn: Learn) -> None:  # noqa: F811
    learner = learn("training.thaw_epochs=5", "optimizer={name: adamw, lr: 0.1, weight_decay: 0.5}")
    assert trains(learner) == {"layer4"}, "one of five in each epoch"
    assert not learner.start_epoch(2)
    assert trains(learner) == {"layer2", "layer3", "layer4"}
    modes = {
        name: m.training for name, m in learner.backbone.named_modules() if isinstance(m, nn.BatchNorm2d)
    }
    assert {name.partition(".")[0] for name, on in modes.items() if on} == {"layer2", "layer3", "layer4"}
    before = weights(learner.extractor)
    learner.step(batch(), 0)
    moved = {name for name, now in weights(learner.extractor).items() if not torch.equal(now, before[name])}
    assert {name.split(".")[1] for name in moved if name.startswith("backbone")} == {
        "layer2",
        "layer3",
        "layer4",
    }
    learner.start_epoch(4)
    assert trains(learner) == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}


def test_stages_of_a_torchvision_model_thaw(learn: Learn) -> None:  # noqa: F811
    learner = learn("extractor={name: torchvision, model: resnet18, dim: 8}", "training.thaw_epochs=6")
    assert trains(learner) == {"layer4"}


def test_a_resume_while_stages_thaw_is_an_uninterrupted_run(fit: Fit) -> None:
    words = ("training.epochs=3", "training.freeze_epochs=1", "training.thaw_epochs=2")
    run = interrupted(fit, *words, after=3)
    assert_same_run(fit(*words), fit(*words, resume=run))


def test_statistics_of_batch_norm_can_be_kept_while_its_weights_train(fit: Fit) -> None:
    report = fit("training.freeze_batch_norm=true", "extractor.bnneck=true", "optimizer.lr=0.01")
    state = read_last(report.last_ckpt)[0]["extractor"]
    assert state["backbone.bn1.num_batches_tracked"] == 0
    assert torch.equal(
        state["backbone.bn1.running_mean"], torch.zeros(len(state["backbone.bn1.running_mean"]))
    )
    assert not torch.equal(state["backbone.bn1.weight"], torch.ones(len(state["backbone.bn1.weight"])))
    assert state["bnneck.num_batches_tracked"] == 4, "the head's own norm learns"


def test_a_backbone_without_batch_norm_is_said(fit: Fit) -> None:
    listener = Listener()
    fit(VIT, "training.freeze_batch_norm=true", "training.epochs=1", reporter=listener)
    assert "training.freeze_batch_norm: the backbone has no batch normalisation" in listener.warned


def test_a_rate_for_parameters_that_the_loss_has_not_is_said(fit: Fit) -> None:
    listener, quiet = Listener(), Listener()
    fit("optimizer.loss_lr=0.1", "training.epochs=1", reporter=listener)
    said = "optimizer.loss_lr: the loss has no parameters of its own; set it to null"
    assert said in listener.warned
    fit("optimizer.loss_lr=0.1", "loss={name: arcface, scale: 30}", "training.epochs=1", reporter=quiet)
    assert said not in quiet.warned


# --- memory and speed ---


def test_gradient_checkpointing_changes_no_number(learn: Learn) -> None:  # noqa: F811
    """Nor the statistics of batch norm, which the second forward pass would count again."""
    words = (SGD, "training.precision=fp64", "extractor.model_args={drop_path_rate: 0.3}")
    one, two = learn(*words), learn(*words, "training.gradient_checkpointing=true")
    calls = {"one": 0, "two": 0}
    for name, learner in (("one", one), ("two", two)):
        block = learner.backbone.layer4[-1].conv1  # type: ignore[index,union-attr]

        def count(*_args: Any, name: str = name) -> None:
            calls[name] += 1

        block.register_forward_hook(count)  # type: ignore[union-attr]
    for step in range(2):
        expected = one.step(batch(step), step)
        assert two.step(batch(step), step) == pytest.approx(expected, rel=1e-9)
    assert calls["two"] == 2 * calls["one"] == 4, "it computes everything again"
    found = weights(two.extractor)
    for name, tensor in weights(one.extractor).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def test_gradient_checkpointing_in_a_run(fit: Fit) -> None:
    words = ("training.gradient_checkpointing=true", "training.ema={decay: 0.5}", "training.micro_batch=3")
    assert validate(ckpt=fit(*words).best_ckpt).metrics["OVERALL"]["cmc@1"] >= 0


def test_gradient_checkpointing_of_a_model_without(learn: Learn) -> None:  # noqa: F811
    with pytest.raises(SpecError) as caught:
        learn(TORCHVISION, "training.gradient_checkpointing=true")
    (problem,) = caught.value.problems
    assert problem.path == "training.gradient_checkpointing"
    assert problem.message == "the backbone MobileNetV3 has no gradient checkpointing; set it to false"


def test_channels_last_reaches_the_convolutions(learn: Learn) -> None:  # noqa: F811
    words = (SGD, "training.precision=fp64")
    one, two = learn(*words), learn(*words, "training.channels_last=true")
    seen: list[tuple[bool, bool]] = []
    convolution = next(m for m in two.extractor.modules() if isinstance(m, nn.Conv2d))

    def look(module: nn.Module, given: Any) -> None:
        kinds = [t.is_contiguous(memory_format=torch.channels_last) for t in (given[0], module.weight)]
        seen.append((kinds[0], kinds[1]))

    convolution.register_forward_pre_hook(look)
    assert two.step(batch(), 0) == pytest.approx(one.step(batch(), 0), rel=1e-9)
    assert seen == [(True, True)]


def test_a_run_in_channels_last_goes_on_to_the_bit(fit: Fit) -> None:
    words = ("training.channels_last=true", "training.epochs=3")
    run = interrupted(fit, *words, after=3)
    one, two = fit(*words), fit(*words, resume=run)
    assert_same_run(one, two)
    assert validate(ckpt=one.best_ckpt).metrics == one.metrics


def test_stochastic_depth_is_for_training_alone(learn: Learn) -> None:  # noqa: F811
    learner = learn(VIT, "extractor.model_args.drop_path_rate=0.5")
    images = batch().images

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return learner.extractor(images)  # type: ignore[no-any-return]

    assert not torch.equal(drawn(0), drawn(1))
    learner.extractor.eval()
    assert torch.equal(drawn(0), drawn(1))


def test_a_compiled_extractor_trains_under_plain_names(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    plain, report = fit(), fit("training.compile=true", "training.ema={decay: 0.5}")
    torch._dynamo.reset()
    assert compiled
    assert list(read_best(report.best_ckpt).weights) == list(read_best(plain.best_ckpt).weights)
    losses = [[line["loss"] for line in lines(one, split="train")] for one in (plain, report)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_what_cannot_be_compiled_is_said(learn: Learn, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def backend(_graph: Any, _inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    learner = learn("training.compile=true")
    with pytest.raises(UsageError) as caught:
        learner.step(batch(), 0)
    torch._dynamo.reset()
    assert caught.value.message.startswith("training.compile: torch cannot compile the extractor: ")
    assert "no compiler here" in caught.value.message
    assert caught.value.hint == "set training.compile=false"


@pytest.mark.long
def test_the_real_compiler(fit: Fit) -> None:
    plain, report = fit(), fit("training.compile=true")
    losses = [[line["loss"] for line in lines(one, split="train")] for one in (plain, report)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


# --- not finite ---


def filled(**pixels: float) -> Batch:
    one = batch()
    for row, value in pixels.items():
        one.images[int(row[1:])] = value
    return one


def test_images_that_are_not_finite_are_named(learn: Learn) -> None:  # noqa: F811
    learner = learn()
    learner.paths = [f"img/{i}.png" for i in range(7)]
    before = weights(learner.extractor)
    with pytest.raises(NonFiniteError) as caught:
        learner.step(filled(r1=math.nan, r4=math.inf), 6)
    assert caught.value.message == (
        "the loss is NaN or infinite at step 7; this step was not taken; "
        "the pixels of 2 of its 7 images are not finite: 'img/1.png', 'img/4.png'"
    )
    assert caught.value.exit_code == 4
    after = weights(learner.extractor)
    assert all(torch.equal(after[name], before[name]) for name in before if name.endswith("weight"))


def test_images_whose_embeddings_are_not_finite_are_named(learn: Learn) -> None:  # noqa: F811
    learner = learn("extractor.normalize=false", "training.freeze_batch_norm=true", "loss.margin=0.2")
    with pytest.raises(NonFiniteError) as caught:
        learner.step(filled(r3=3e38), 0)
    assert caught.value.message == (
        "the loss is NaN or infinite at step 1; this step was not taken; "
        "the embeddings of 1 of its 7 images are not finite: row 3"
    )


class Blind(nn.Module):
    """A loss that passes over what is not finite, as a miner may that leaves such rows out."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        del labels
        return embeddings[embeddings.detach().isfinite().all(1)].sum()


def test_an_embedding_that_the_loss_passes_over_is_not_hidden(learn: Learn) -> None:  # noqa: F811
    learner = learn("extractor.normalize=false", "training.freeze_batch_norm=true", "loss.margin=0.2")
    learner.loss = Blind()
    with pytest.raises(NonFiniteError) as caught:
        learner.step(filled(r3=3e38), 0)
    assert caught.value.message == (
        "the embedding of an image is NaN or infinite at step 1; this step was not taken; "
        "the embeddings of 1 of its 7 images are not finite: row 3"
    )


class Cliff(nn.Module):
    """A loss of 0 with a gradient of NaN."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        del labels
        return (embeddings - embeddings.detach()).abs().sum().sqrt()


@pytest.mark.parametrize("micro_batch", ["null", "3"])
def test_a_gradient_that_is_not_finite_names_up_to_ten_of_the_batch(learn: Learn, micro_batch: str) -> None:  # noqa: F811
    learner = learn(f"training.micro_batch={micro_batch}")
    learner.loss = Cliff()
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NonFiniteError) as caught:
        learner.step(Batch(images, torch.zeros(12, dtype=torch.int64), torch.arange(12)), 0)
    assert caught.value.message == (
        "the gradient is NaN or infinite at step 1; this step was not taken; its 12 images: "
        "row 0, row 1, row 2, row 3, row 4, row 5, row 6, row 7, row 8, row 9, ..."
    )


def test_nothing_is_saved_after_a_step_that_is_not_finite(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """last.ckpt stays that of the epoch before, though batch norm and the memory bank have seen the batch."""
    memory = "loss={name: triplet, margin: 0.2, miner: all_triplets, memory: {size: 16}}"
    step, place = Learner.step, tmp_path / "run"
    kept: list[bytes] = []

    def poisoned(self: Learner, one: Batch, number: int) -> dict[str, float]:
        if number == 3:
            kept.append((place / "checkpoints" / "last.ckpt").read_bytes())
            one.images[:] = math.nan
        return step(self, one, number)

    monkeypatch.setattr(Learner, "step", poisoned)
    with pytest.raises(NonFiniteError, match=r"at step 4; .* pixels of 6 of its 6 images .* 'images/"):
        fit(memory, "training.epochs=3", run_dir=place)
    assert kept == [(place / "checkpoints" / "last.ckpt").read_bytes()]
    monkeypatch.undo()
    assert_same_run(fit(memory, "training.epochs=3"), fit(memory, "training.epochs=3", resume=place))


def test_the_labels_of_these_tests_hold_every_label_twice() -> None:
    assert all(LABELS.count(label) > 1 for label in LABELS)
