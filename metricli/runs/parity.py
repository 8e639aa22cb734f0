"""`metricli env --distributed`: does a spec train alike in several processes and in one; if not, why."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metricli.components.batch_norm import GlobalBatchNorm
from metricli.components.dataset import Batch
from metricli.components.loading import image_loader
from metricli.reporter import Reporter, SilentReporter
from metricli.reports import ParityReport
from metricli.runs.building import build_learner
from metricli.runs.context import Context, choose_device, open_context
from metricli.runs.embed import refuse_bad, refuse_missing
from metricli.runs.learner import Learner
from metricli.runs.probing import resolve_sampler
from metricli.runs.processes import World, joined
from metricli.runs.stepping import parts_of
from metricli.runs.train import open_training_table
from metricli.runs.trainset import TrainSet, build_train_set
from metricli.specs.load import Loaded
from metricli.specs.train import TrainSpec

TOLERANCE = 1e-9
"""Of float64, relative to the largest number of its kind or to 1; another order of sums differs by less."""
SHOWN = 3
_CHANCES = ("p", "drop_prob", "prob")
"""What modules that draw random numbers call how often they do: torch's dropout, timm's drop-path, ..."""


@dataclass(frozen=True)
class Trial:
    """What one step of a run's first batch gave, in the order of the global batch."""

    processes: int
    rows: list[int]
    images: list[str]
    """A digest of each image as the model got it."""
    embeddings: np.ndarray
    """(B, D)"""
    loss: float
    gradients: dict[str, np.ndarray]
    noise: list[str]
    """Modules that draw random numbers."""
    own_norms: list[str]
    """Batch norms whose statistics are not those of the whole batch."""


Trials = tuple[Trial, Trial]
"""As the spec says, and without the noise of dropout."""


def try_first_step(loaded: Loaded[TrainSpec], reporter: Reporter) -> Trials:
    """The first step of a run in float64, in the processes that a launcher has started; nothing is written.

    Raises:
        MetricliError: whatever the run would stop at so far.
    """
    compute = loaded.spec.compute
    with joined(choose_device(compute), compute.gpus) as world:
        silent = SilentReporter()
        table, warnings = open_training_table(loaded, silent)
        loaded = resolve_sampler(loaded, table, silent, warnings, world)
        changed = {"precision": "fp64", "compile": False, "num_workers": 0}
        spec = loaded.spec.model_copy(update={"training": loaded.spec.training.model_copy(update=changed)})
        context = open_context(spec.compute, silent, "fp64", world)
        data = build_train_set(spec, table, context)
        data.batches.set_epoch(0)
        places = next(iter(data.batches))
        batch: Batch = next(iter(image_loader(data.dataset, [places], num_workers=0)))
        told = world.gather((batch.bad, batch.missing))
        bad = [one for some, _ in told for one in some]
        refuse_bad(bad, spec.data)
        refuse_missing(sum(places for _, places in told), bad)
        found = tuple(
            _step(_learner(spec, context, data), batch, world, quiet=quiet) for quiet in (False, True)
        )
        if world.is_main:
            by = "one process" if world.size == 1 else f"{world.size} processes"
            reporter.say(f"a step of {len(found[0].rows)} images by {by}: loss {found[0].loss:.12g}")
        return found[0], found[1]


def _learner(spec: TrainSpec, context: Context, data: TrainSet) -> Learner:
    learner = build_learner(
        spec,
        context,
        num_labels=len(data.labels),
        label_to_category=data.label_to_category,
        steps_per_epoch=data.steps_per_epoch,
    )
    learner.start_epoch(spec.training.freeze_epochs + spec.training.thaw_epochs)  # everything in training
    return learner


def _step(learner: Learner, batch: Batch, world: World, *, quiet: bool) -> Trial:
    noise = _noisy(learner.extractor)
    if quiet:
        for module, chance in noise.values():
            setattr(module, chance, 0.0)
    values = learner.step(batch, 0)
    told = world.gather((batch.rows.tolist(), [_digest(image) for image in batch.images]))
    assert learner.embeddings is not None
    return Trial(
        processes=world.size,
        rows=[row for rows, _ in told for row in rows],
        images=[digest for _, digests in told for digest in digests],
        embeddings=learner.embeddings.cpu().numpy(),
        loss=values["loss"],
        gradients={
            f"{part}.{name}": parameter.grad.cpu().numpy()
            for part, module in (("extractor", learner.extractor), ("loss", learner.loss))
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        },
        noise=list(noise),
        own_norms=_own_norms(learner, [len(rows) for rows, _ in told]),
    )


def _noisy(extractor: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Modules that draw random numbers, by name, with the attribute that says how often."""
    return {
        name: (module, chance)
        for name, module in extractor.named_modules()
        for chance in _CHANCES
        if "drop" in type(module).__name__.lower() and getattr(module, chance, None)
    }


def _own_norms(learner: Learner, sizes: list[int]) -> list[str]:
    in_parts = parts_of(sizes, learner.spec.training.micro_batch) > 1
    return [
        name
        for name, module in learner.extractor.named_modules()
        if isinstance(module, _BatchNorm) and module.training
        if in_parts or (len(sizes) > 1 and not isinstance(module, GlobalBatchNorm))
    ]


def _digest(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def compared(one: Trials, many: Trials) -> ParityReport:
    """What differs between the step of one process and that of several, and the likely causes."""
    report = _differences(one[0], many[0])
    if report.same:
        return report
    quiet = _differences(one[1], many[1])
    noise = many[0].noise
    if quiet.same and noise:
        why = f"dropout: its noise depends on the process, as it depends on the seed: {_some(noise)}"
        return replace(report, same_without_noise=True, causes=[why])
    return replace(report, causes=_causes(one[1], many[1], quiet))


def _differences(one: Trial, many: Trial) -> ParityReport:
    off = {name: _off(gradient, many.gradients.get(name)) for name, gradient in one.gradients.items()}
    off |= {name: np.inf for name in many.gradients.keys() - one.gradients.keys()}
    differences = {
        "images": float(_other_images(one, many)),
        "embeddings": _off(one.embeddings, many.embeddings),
        "loss": _off(np.array(one.loss), np.array(many.loss)),
        "gradients": max(off.values(), default=0.0),
    }
    return ParityReport(
        processes=many.processes,
        images=len(one.rows),
        loss=one.loss,
        differences=differences,
        tolerance=TOLERANCE,
        worst={name: off[name] for name in sorted(off, key=lambda name: -off[name])[:SHOWN]},
        same=all(value <= TOLERANCE for value in differences.values()),
    )


def _causes(one: Trial, many: Trial, report: ParityReport) -> list[str]:
    """What stands first in the way from the images to the gradients is the cause of all behind it."""
    differs = {name for name, value in report.differences.items() if value > TOLERANCE}
    if "images" in differs:
        count = _other_images(one, many)
        return [
            f"{count} of {len(one.rows)} images differ: the train transform draws from something else than "
            "torch's, numpy's or Python's global generator, which are seeded for each image"
        ]
    if "embeddings" in differs:
        if many.own_norms:
            return [
                f"batch norm sees a part of the batch: {_some(many.own_norms)}; leave "
                "training.sync_batchnorm true, use no training.micro_batch, set training.freeze_batch_norm, "
                "or take another kind of norm"
            ]
        return [
            "the embedding of an image depends on which other images are in its process: see the extractor"
        ]
    if "loss" in differs:
        return ["the loss draws from something else than torch's generator, or remembers more than its state"]
    parts = {name.partition(".")[0] for name, value in report.worst.items() if value > TOLERANCE}
    return [
        f"the gradients of the {' and the '.join(sorted(parts))} differ though the loss does not: "
        "see its backward pass"
    ]


def _other_images(one: Trial, many: Trial) -> int:
    if one.rows != many.rows:
        return len(one.rows)
    return sum(mine != theirs for mine, theirs in zip(one.images, many.images, strict=True))


def _off(one: np.ndarray, many: np.ndarray | None) -> float:
    if many is None or one.shape != many.shape:
        return np.inf
    return float(np.abs(one - many).max(initial=0)) / max(1.0, float(np.abs(one).max(initial=0)))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
