"""`auto` in a sampler: what is chosen, what is said of it, and that a resumed run keeps it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metricli import TrainReport, dry_run
from metricli.errors import Interrupted, NonFiniteError, ResourceError, SpecError, UsageError
from metricli.plugins.samplers import Balanced, CategoryBalanced
from metricli.runs import probing
from metricli.runs.learner import Learner
from tests.runs.conftest import Listener, assert_same_weights, lines, meta

Fit = Callable[..., TrainReport]
AUTO = "sampler={name: balanced, n_labels: auto, n_instances: auto}"


class Memory:
    """A GPU, by word, on which steps of more than `most` images run out of memory; the steps it was asked."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        self.most, self.tried = most, list[int]()
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def step(self, learner: Learner, batch: Any) -> None:
        self.tried.append(len(batch.labels))
        if len(batch.labels) > self.most:
            raise self.error
        learner.step(batch, 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Memory]:
    """Puts a `Memory` in place of the steps of the probe, whose learner is a real one on the CPU."""

    def put(most: int, error: Exception | None = None) -> Memory:
        memory = Memory(most, error)
        monkeypatch.setattr(probing, "choose_device", lambda _compute: "cuda")
        monkeypatch.setattr(probing, "try_step", memory.step)
        return memory

    return put


def sampler_of(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((run_dir / "spec.resolved.yaml").read_text())["sampler"]
    return found


@given(st.integers(1, 9), st.integers(1, 200), st.integers(0, 2000))
def test_the_largest_is_found_in_few_trials(step: int, groups: int, memory: int) -> None:
    tried: list[int] = []

    def fits(images: int) -> bool:
        tried.append(images)
        return images <= memory

    most = step * groups
    assert probing.largest(fits, step=step, most=most) == min(most, memory // step * step)
    assert len(tried) == len(set(tried)) <= 2 * groups.bit_length() + 1
    assert all(images % step == 0 and 0 < images <= most for images in tried)


def test_on_a_cpu_all_labels_of_a_small_table(fit: Fit) -> None:
    listener = Listener()
    report = fit(AUTO, reporter=listener)
    said = (
        "sampler: n_labels 6, n_instances 4, batches of 24 images: as many as the sampler can use"  # 6 labels
    )
    assert said in listener.said
    assert [step["images"] for step in listener.steps] == [24, 24]
    found = sampler_of(report.run_dir)
    assert (found["n_labels"], found["n_instances"]) == (6, 4)
    assert meta(report.last_ckpt)["spec"]["sampler"] == found


def test_chosen_numbers_train_as_written_ones(fit: Fit, gpu: Callable[..., Memory]) -> None:
    memory = gpu(19)
    listener = Listener()
    auto = fit(AUTO, reporter=listener)
    said = (
        "sampler: n_labels 4, n_instances 4, batches of 16 images: the largest that fits the GPU with 10% of "
    )
    assert any(line.startswith(said) for line in listener.said)
    assert memory.tried == [4, 4, 8, 8, 16, 16, 24, 20]
    written = fit("sampler={name: balanced, n_labels: 4, n_instances: 4}")
    assert_same_weights(auto.last_ckpt, written.last_ckpt)
    assert lines(auto) == lines(written)


def test_a_resume_keeps_the_numbers_and_probes_nothing(fit: Fit, gpu: Callable[..., Memory]) -> None:
    gpu(19)
    whole = fit(AUTO, "training.epochs=3")
    with pytest.raises(Interrupted) as caught:
        fit(AUTO, "training.epochs=3", reporter=Listener(stop_after=3))
    run = Path(caught.value.hint.rpartition(" ")[2])
    memory, listener = gpu(9), Listener()
    resumed = fit(AUTO, "training.epochs=3", resume=run, reporter=listener)
    assert memory.tried == []
    assert not any(line.startswith("sampler:") for line in listener.said)
    assert sampler_of(resumed.run_dir)["n_labels"] == 4
    assert_same_weights(whole.last_ckpt, resumed.last_ckpt)
    assert lines(whole) == lines(resumed)
    again = fit(AUTO, "training.epochs=3", resume=run)
    assert (again.stopped, memory.tried) == ("epochs", [])


def test_a_resume_with_other_numbers_is_refused(fit: Fit, gpu: Callable[..., Memory]) -> None:
    gpu(19)
    with pytest.raises(Interrupted) as caught:
        fit(AUTO, reporter=Listener(stop_after=1))
    run = Path(caught.value.hint.rpartition(" ")[2])
    with pytest.raises(UsageError) as refused:
        fit("sampler={name: balanced, n_labels: auto, n_instances: 2}", resume=run)
    assert refused.value.message == (
        f"the spec differs from that of the run in {str(run)!r}: sampler.n_instances: was 4, is 2"
    )


def test_all_labels_fit(fit: Fit, gpu: Callable[..., Memory]) -> None:
    memory, listener = gpu(1000), Listener()
    fit("sampler={name: balanced, n_labels: auto, n_instances: 2}", reporter=listener)
    assert memory.tried == [2, 2, 4, 4, 8, 8, 12, 12]
    said = "sampler: n_labels 6, batches of 12 images: as many as the sampler can use, and it fits the GPU"
    assert said in listener.said


def test_nothing_fits(fit: Fit, gpu: Callable[..., Memory]) -> None:
    gpu(3)
    with pytest.raises(ResourceError) as caught:
        fit(AUTO)
    assert caught.value.message == (
        "a training step of 4 images, the smallest batch of this sampler, does not fit the GPU"
    )
    assert caught.value.hint == "set training.micro_batch, or lower the image size or the precision"


def test_one_label_fits_and_the_loss_needs_two(fit: Fit, gpu: Callable[..., Memory]) -> None:
    gpu(5)
    with pytest.raises(SpecError, match=r"sampler\.n_labels  a batch of 1 label holds no negatives"):
        fit(AUTO)


def test_errors_that_are_no_lack_of_memory_are_not_hidden(fit: Fit, gpu: Callable[..., Memory]) -> None:
    gpu(5, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(AUTO)
    assert gpu(19, RuntimeError("CUDNN_STATUS_ALLOC_FAILED"))
    listener = Listener()
    fit(AUTO, reporter=listener)
    assert any("batches of 16 images" in line for line in listener.said)
    gpu(5, NonFiniteError("the loss is NaN"))  # on random images it says nothing of the memory
    listener = Listener()
    fit(AUTO, reporter=listener)
    assert any("batches of 24 images" in line for line in listener.said)


def test_micro_batches_need_no_probe(fit: Fit, gpu: Callable[..., Memory]) -> None:
    memory, listener = gpu(1), Listener()
    fit(AUTO, "training.micro_batch=5", reporter=listener)
    assert memory.tried == []
    assert (
        "sampler: n_labels 6, n_instances 4, batches of 24 images: as many as the sampler can use; "
        "training.micro_batch bounds the memory"
    ) in listener.said


def test_a_dry_run_says_and_takes_the_batch(spec: dict[str, Any], gpu: Callable[..., Memory]) -> None:
    gpu(19)
    listener = Listener()
    report = dry_run(spec, [AUTO], reporter=listener)
    assert report.train_batch["images"] == 16
    assert any(line.startswith("sampler: n_labels 4, n_instances 4") for line in listener.said)


def test_the_numbers_are_checked_against_the_other_blocks(fit: Fit, gpu: Callable[..., Memory]) -> None:
    gpu(1000)
    with pytest.raises(SpecError, match="a bank of 16 cannot hold one batch of 24 images"):
        fit(AUTO, "loss.memory={size: 16}")


@pytest.mark.parametrize(
    ("step", "most", "found"), [(4, 400, 64), (24, 480, 48), (100, 500, 100), (4, 64, 64), (4, 12, 12)]
)
def test_without_a_gpu_batches_are_of_about_64(step: int, most: int, found: int) -> None:
    spec: Any = SimpleNamespace(
        training=SimpleNamespace(micro_batch=None), compute=SimpleNamespace(device="cpu")
    )
    nothing: Any = None
    probe = probing.Probe(spec, nothing)
    assert probe(n_instances=4, step=step, most=most) == found
    default = "the default on cpu, about 64 images"
    assert probe.reason == ("as many as the sampler can use" if found == most else default)


def asked(answer: int) -> tuple[Callable[..., int], list[dict[str, int]]]:
    calls: list[dict[str, int]] = []

    def largest_batch(**limits: int) -> int:
        calls.append(limits)
        return min(answer // limits["step"] * limits["step"], limits["most"])

    return largest_batch, calls


@pytest.mark.parametrize(("images", "chosen"), [(1, 2), (2, 2), (3, 3), (4, 4), (9, 4)])
def test_instances_are_those_of_the_median_label(images: int, chosen: int) -> None:
    labels = np.repeat(np.arange(5), [1, images, images, images, 40])
    largest_batch, calls = asked(100)
    found = Balanced(n_labels=3, n_instances="auto").resolved(
        labels=labels, categories=None, largest_batch=largest_batch
    )
    assert (found.n_labels, found.n_instances, calls) == (3, chosen, [])


def test_labels_are_bounded_by_512_images_and_by_those_of_a_category() -> None:
    labels = np.arange(4000) // 4
    largest_batch, calls = asked(10_000)
    found = Balanced(n_labels="auto", n_instances=3).resolved(
        labels=labels, categories=None, largest_batch=largest_batch
    )
    assert (found.images_per_batch, calls) == (510, [{"n_instances": 3, "step": 3, "most": 510}])
    largest_batch, calls = asked(200)
    grouped = CategoryBalanced(n_labels="auto", n_instances=2, n_categories=10).resolved(
        labels=labels, categories=labels // 15, largest_batch=largest_batch
    )
    assert calls == [{"n_instances": 2, "step": 20, "most": 300}]
    assert (grouped.n_labels, grouped.labels_per_batch(), grouped.open_settings) == (10, 100, [])


def test_auto_is_no_number_for_build() -> None:
    sampler = Balanced(n_labels="auto", n_instances="auto")
    assert (sampler.instances_per_label, sampler.images_per_batch) == (2, None)
    with pytest.raises(ValueError, match=r"^n_labels is auto; give a number, or call resolved\(\) before"):
        sampler.build(labels=np.arange(4), categories=None, seed=0)
    with pytest.raises(ValueError, match="must be a whole number of 1 or more, or auto, got 'many'"):
        Balanced.model_validate({"n_labels": "many", "n_instances": 2})
