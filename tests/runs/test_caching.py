"""Gradient caching: the gradients of a batch in micro-batches are those of the batch at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metricli import TrainReport
from metricli.components.dataset import Batch
from metricli.reporter import SilentReporter
from metricli.runs.building import build_learner
from metricli.runs.context import open_context
from metricli.runs.learner import Learner
from metricli.runs.stepping import Model, parts_of, taken, whole_batch
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec
from tests.runs.conftest import assert_same_weights, lines, tensors
from tests.runs.test_resuming import assert_same_run, interrupted

Fit = Callable[..., TrainReport]
DOUBLE = "training.precision=fp64"
SGD = "optimizer={name: sgd, lr: 0.1}"
PLAIN_VIT = ("extractor={name: timm, model: test_vit, model_args: {img_size: 32}, dim: 8}", DOUBLE)
"""No batch norm and no dropout: the embeddings of an image do not depend on its batch."""
LABELS = (0, 0, 1, 1, 2, 2, 0)


@pytest.fixture
def learn(spec: dict[str, Any]) -> Callable[..., Learner]:
    """A learner in its first epoch, over three labels."""

    def build(*overrides: str) -> Learner:
        loaded = load_spec(spec, TrainSpec, overrides).spec
        context = open_context(loaded.compute, SilentReporter(), loaded.training.precision)
        learner = build_learner(loaded, context, num_labels=3, label_to_category=None, steps_per_epoch=2)
        learner.start_epoch(0)
        return learner

    return build


def in_micro_batches(
    model: Model, images: Tensor, labels: Tensor, micro_batch: int | None
) -> tuple[Tensor, Tensor]:
    return taken(model, images, labels, parts_of([len(images)], micro_batch))


def batch(seed: int = 3) -> Batch:
    images = torch.rand(len(LABELS), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.tensor(LABELS), torch.arange(len(LABELS)))


def inputs(learner: Learner) -> tuple[Tensor, Tensor]:
    one = batch()
    return one.images.to(learner.context.dtype), one.labels


def gradients(learner: Learner) -> dict[str, Tensor]:
    """Copies, by name; the parameters are left without."""
    found = {}
    for part, module in (("extractor", learner.extractor), ("loss", learner.loss)):
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                found[f"{part}.{name}"] = parameter.grad.clone()
        module.zero_grad()
    return found


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == two.keys()
    assert max(float(g.abs().max()) for g in one.values()) > 1e-4, "there is something to compare"
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("micro_batch", [1, 3, 6])
@pytest.mark.parametrize(
    "loss", ["{name: triplet, margin: 0.2, miner: all_triplets}", "{name: arcface, margin: 0.3}"]
)
def test_the_gradient_is_that_of_the_whole_batch(learn: Any, micro_batch: int, loss: str) -> None:
    learner = learn(*PLAIN_VIT, f"loss={loss}")
    at_once, value = whole_batch(learner._model(), *inputs(learner))
    expected = gradients(learner)
    in_parts, again = in_micro_batches(learner._model(), *inputs(learner), micro_batch)
    torch.testing.assert_close(again, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(in_parts, at_once, rtol=1e-10, atol=1e-10)
    assert_close(gradients(learner), expected, 1e-9)


class Scaling:
    """As Accelerate in fp16: the loss is scaled, once, before its backward pass."""

    autocast = staticmethod(nullcontext)

    def __init__(self) -> None:
        self.calls = 0

    def backward(self, loss: Tensor) -> None:
        self.calls += 1
        (loss * 1024).backward()


def test_a_scaled_loss_scales_the_gradient_once(learn: Any) -> None:
    learner = learn(*PLAIN_VIT, "loss={name: arcface}")
    whole_batch(learner._model(), *inputs(learner))
    expected = {name: 1024 * gradient for name, gradient in gradients(learner).items()}
    scaling = Scaling()
    in_micro_batches(replace(learner._model(), accelerator=scaling), *inputs(learner), 3)
    assert scaling.calls == 1
    assert_close(gradients(learner), expected, 1e-9)


def test_batch_norm_that_is_frozen_makes_no_difference(learn: Any) -> None:
    learner = learn(DOUBLE, "training.freeze_batch_norm=true")
    whole_batch(learner._model(), *inputs(learner))
    expected = gradients(learner)
    assert "extractor.backbone.bn1.weight" in expected
    in_micro_batches(learner._model(), *inputs(learner), 2)
    assert_close(gradients(learner), expected, 1e-9)


def test_batch_norm_counts_each_micro_batch_once(learn: Any) -> None:
    """Its running statistics are those of one training pass over the micro-batches."""
    learner, other = learn(DOUBLE), learn(DOUBLE)
    images, labels = inputs(learner)
    in_micro_batches(learner._model(), images, labels, 3)
    for part in images.tensor_split(3):
        other.extractor(part)
    counted = dict(learner.extractor.named_buffers())
    assert counted["backbone.bn1.num_batches_tracked"] == 3
    assert not torch.equal(
        counted["backbone.bn1.running_mean"], torch.zeros_like(other.extractor.backbone.bn1.running_mean)
    )
    for name, buffer in other.extractor.named_buffers():
        torch.testing.assert_close(counted[name], buffer, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_dropout_is_replayed(learn: Any, precision: str, checkpointing: str, model: str) -> None:
    """One graph over the same micro-batches from the same noise has the same gradient."""
    more = f"training.gradient_checkpointing={checkpointing}"
    args = "{drop_rate: 0.3, drop_path_rate: 0.3}"
    if model == "test_vit":
        args = "{img_size: 32, proj_drop_rate: 0.2, drop_path_rate: 0.3, attn_drop_rate: 0.2}"
    noisy = f"{{name: timm, model: {model}, dim: 8, model_args: {args}}}"
    learner = learn(f"training.precision={precision}", f"extractor={noisy}", more)
    for norm in learner.extractor.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)  # a timm ResNet begins with blocks that do nothing, dropped or not
    images, labels = inputs(learner)
    passes = learner._model()
    torch.manual_seed(5)
    embeddings = torch.cat([passes.embed(part) for part in images.tensor_split(3)])
    learner.loss(embeddings, labels).backward()
    expected = gradients(learner)
    torch.manual_seed(5)
    found, _ = in_micro_batches(passes, images, labels, 3)
    tolerance = 1e-10 if precision == "fp64" else 1e-2
    torch.testing.assert_close(found, embeddings.detach(), rtol=0, atol=0)
    assert_close(gradients(learner), expected, tolerance)
    torch.manual_seed(6)
    in_micro_batches(passes, images, labels, 3)
    others = gradients(learner)
    assert any(not torch.allclose(others[name], g, rtol=0.1) for name, g in expected.items()), "noise it is"


class Counted(nn.Module):
    """A loss that draws random numbers and notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, ...]] = []

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        torch.rand(7)
        self.calls.append((len(embeddings), len(labels)))
        return embeddings.square().sum() * 0 + embeddings[:, 0].sum()


def test_the_loss_sees_the_whole_batch_once(learn: Any) -> None:
    learner = learn("training.micro_batch=3")
    learner.loss = Counted()
    sizes: list[int] = []
    learner.extractor.register_forward_pre_hook(lambda _m, given: sizes.append(len(given[0])))
    learner.step(batch(), 0)
    assert learner.loss.calls == [(7, 7)]
    assert sizes == [3, 2, 2] * 2, "two passes"


@pytest.mark.parametrize("micro_batch", [7, 8, None])
def test_a_micro_batch_as_large_as_the_batch_is_the_plain_step(learn: Any, micro_batch: int | None) -> None:
    learner = learn(DOUBLE)
    sizes: list[int] = []
    learner.extractor.register_forward_pre_hook(lambda _m, given: sizes.append(len(given[0])))
    in_micro_batches(learner._model(), *inputs(learner), micro_batch)
    assert sizes == [7]


def test_no_batch_is_left_with_one_image(learn: Any) -> None:
    learner = learn("training.micro_batch=3")
    sizes: list[int] = []
    learner.extractor.register_forward_pre_hook(lambda _m, given: sizes.append(len(given[0])))
    learner.step(batch(), 0)
    assert sizes[:3] == [3, 2, 2], "and not 3, 3, 1, which batch norm refuses"


def test_a_batch_without_triplets_is_a_step_of_nothing(learn: Any) -> None:
    learner = learn(SGD, "training.micro_batch=4")
    one = batch()
    values = learner.step(Batch(one.images, torch.zeros(7, dtype=torch.int64), one.rows), 0)
    assert (values["loss"], values["grad_norm"]) == (0.0, 0.0)


def test_a_frozen_backbone_leaves_the_loss_to_learn(learn: Any) -> None:
    learner = learn(
        "training.micro_batch=2",
        "training.freeze_epochs=1",
        "loss={name: arcface}",
        "extractor.dim=null",
        "sampler=null",
        "training.batch_size=7",
    )
    before = learner.loss.weight.detach().clone()
    learner.step(batch(), 0)
    assert not torch.equal(before, learner.loss.weight)


def test_a_memory_bank_takes_the_batch_once(learn: Any) -> None:
    memory = "loss={name: triplet, margin: 0.2, miner: all_triplets, memory: {size: 32}}"
    one, two = learn(*PLAIN_VIT, memory, SGD), learn(*PLAIN_VIT, memory, SGD, "training.micro_batch=3")
    for step in range(3):
        expected = one.step(batch(step), step)
        found = two.step(batch(step), step)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    for (name, left), right in zip(
        one.loss.state_dict().items(), two.loss.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9, msg=name)
    assert sum(int((b == 0).all(1).sum()) for b in two.loss.buffers() if b.ndim == 2) == 32 - 3 * 7


def test_a_run_in_micro_batches_is_the_run_at_once(fit: Fit) -> None:
    vit = (*PLAIN_VIT, "training.epochs=3")
    one, two = fit(*vit), fit(*vit, "training.micro_batch=4")
    left, right = tensors(one.best_ckpt), tensors(two.best_ckpt)
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-6, atol=1e-8, msg=name)
    pairs = zip(lines(one, split="train"), lines(two, split="train"), strict=True)
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-9) for a, b in pairs)


def test_a_run_in_micro_batches_goes_on_to_the_bit(fit: Fit) -> None:
    words = (
        "training.epochs=3",
        "training.micro_batch=4",
        "extractor.model_args={drop_rate: 0.3, drop_path_rate: 0.2}",
    )
    run = interrupted(fit, *words, after=3)
    one, two = fit(*words), fit(*words, resume=run)
    assert_same_run(one, two)
    assert_same_weights(one.last_ckpt, two.last_ckpt)
