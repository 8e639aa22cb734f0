"""What a sampler leaves to `auto`: numbers from the train rows, and from the batch that fits into memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from metricli.components.dataset import Batch, seeded
from metricli.data.table import Table
from metricli.errors import NonFiniteError, Problem, ResourceError, SpecError
from metricli.reporter import Reporter, SilentReporter
from metricli.runs.building import build_learner
from metricli.runs.context import Context, choose_device, open_context
from metricli.runs.learner import Learner
from metricli.runs.processes import ALONE, World
from metricli.runs.trainset import LabelCodes, code_labels
from metricli.specs.kinds import SamplerSpec
from metricli.specs.load import Loaded, check_spec
from metricli.specs.train import TrainSpec

CPU_IMAGES = 64
"""Images of a batch without a GPU, where time is short before memory is."""
USED = 0.9
"""Share of the GPU's free memory that a step may take: allocators fragment, and batches differ a little."""


def resolve_sampler(
    loaded: Loaded[TrainSpec], table: Table, reporter: Reporter, warnings: list[str], world: World = ALONE
) -> Loaded[TrainSpec]:
    """Replace each "auto" of the sampler by a number and say it; any other spec comes back as it is.

    Of several processes the main one chooses, a batch that its GPU could take alone: the results do not
    depend on how many there are. The spec is checked again with the numbers; warnings that are new are said,
    and added to `warnings`.

    Raises:
        ResourceError: not even the smallest batch fits.
        SpecError: the sampler refuses the table, or the numbers contradict the other blocks.
    """
    sampler = loaded.spec.sampler
    if sampler is None or not sampler.open_settings:
        return loaded
    codes = code_labels(table)
    probe = Probe(loaded.spec, codes)

    def choose() -> SamplerSpec:
        try:
            return sampler.resolved(labels=codes.labels, categories=codes.categories, largest_batch=probe)
        except ValueError as error:
            raise SpecError("the spec", [Problem("sampler", str(error))]) from None

    chosen = world.once(choose)
    numbers = ", ".join(f"{key} {getattr(chosen, key)}" for key in sampler.open_settings)
    images = chosen.images_per_batch
    size = "" if images is None else f", batches of {images} images"
    reporter.say(f"sampler: {numbers}{size}" + (f": {probe.reason}" if probe.reason else ""))
    loaded = with_sampler(loaded, chosen)
    for problem in check_spec(loaded, table.facts("validation")):
        message = f"{problem.path}: {problem.message}"
        if message not in warnings:
            warnings.append(message)
            reporter.warn(message)
    return loaded


def with_sampler(loaded: Loaded[TrainSpec], sampler: SamplerSpec) -> Loaded[TrainSpec]:
    """The same spec with another sampler."""
    return replace(loaded, spec=loaded.spec.model_copy(update={"sampler": sampler}))


@dataclass
class Probe:
    """The `LargestBatch` of a run: real steps on a GPU; `reason` tells what set the latest answer."""

    spec: TrainSpec
    codes: LabelCodes
    reason: str = ""

    def __call__(self, *, n_instances: int, step: int, most: int) -> int:
        """The largest multiple of `step` images that fits, `most` at most.

        Raises:
            ResourceError: not even `step` images fit.
        """
        all_there = "as many as the sampler can use"
        if self.spec.training.micro_batch is not None:
            self.reason = f"{all_there}; training.micro_batch bounds the memory"
            return most
        device = choose_device(self.spec.compute)
        if device != "cuda":
            found = min(most, max(step, CPU_IMAGES // step * step))
            self.reason = (
                all_there if found == most else f"the default on {device}, about {CPU_IMAGES} images"
            )
            return found
        found = self._tried(n_instances, step, most)
        if found == 0:
            raise ResourceError(
                f"a training step of {step} images, the smallest batch of this sampler, does not fit the GPU",
                hint="set training.micro_batch, or lower the image size or the precision",
            )
        free = f"with {1 - USED:.0%} of its free memory to spare"
        fits = (
            f"{all_there}, and it fits the GPU" if found == most else f"the largest that fits the GPU {free}"
        )
        self.reason = fits
        return found

    def _tried(self, n_instances: int, step: int, most: int) -> int:
        """The answer of real steps on random images, on a model that is thrown away; 0 if none fits."""
        training = self.spec.training.model_copy(update={"compile": False})  # it would compile each size anew
        spec = self.spec.model_copy(update={"training": training})
        context = open_context(spec.compute, SilentReporter(), training.precision)
        gpus = [context.device] if context.device.type == "cuda" else []
        with torch.random.fork_rng(gpus), seeded(spec.seed), memory_limited(context.device):
            image = spec.transforms.train.build()(torch.randint(256, (3, 256, 256), dtype=torch.uint8))
            found = self._largest(_learner(spec, context, self.codes), image, n_instances, step, most)
            context.accelerator.free_memory()  # it holds the optimizer
        return found

    def _largest(self, learner: Learner, image: torch.Tensor, n_instances: int, step: int, most: int) -> int:
        def fits(images: int) -> bool:
            count = max(2, images)  # batch norm refuses a single image
            labels = torch.arange(count) // n_instances % len(self.codes.names)
            return _fits(learner, Batch(torch.randn(count, *image.shape), labels, torch.arange(count)))

        return largest(fits, step=step, most=most)


def largest(fits: Callable[[int], bool], *, step: int, most: int) -> int:
    """The largest multiple of `step`, `most` at most, that fits: doubled, then halved between; 0 if none."""
    top = most // step
    good, bad, trial = 0, top + 1, 1
    while good + 1 < bad:
        if fits(trial * step):
            good = trial
        else:
            bad = trial
        trial = min(2 * trial, top) if bad > top else (good + bad) // 2
    return good * step


@contextmanager
def memory_limited(device: torch.device) -> Iterator[None]:
    """Within this, `USED` of what is free on a GPU is all there is; afterwards it is given back."""
    if device.type != "cuda":
        yield
        return
    free, total = torch.cuda.mem_get_info(device)
    before = torch.cuda.get_per_process_memory_fraction(device)
    there = free + torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction(min(before, USED * there / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)
        _give_back(device)


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _learner(spec: TrainSpec, context: Context, codes: LabelCodes) -> Learner:
    """A learner with everything in training."""
    learner = build_learner(
        spec,
        context,
        num_labels=len(codes.names),
        label_to_category=codes.label_to_category,
        steps_per_epoch=1,
    )
    learner.start_epoch(spec.training.freeze_epochs + spec.training.thaw_epochs)
    return learner


def _fits(learner: Learner, batch: Batch) -> bool:
    fitted = True
    try:
        for _ in range(2):  # the first makes the optimizer's state, beside which the second has to fit
            try_step(learner, batch)
    except NonFiniteError:  # random images under a real rate: the memory was taken all the same
        pass
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        fitted = False
    _give_back(learner.context.device)  # outside of `except`, whose traceback holds the activations
    return fitted


def try_step(learner: Learner, batch: Batch) -> None:
    """One real training step."""
    learner.step(batch, 0)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)
