"""`metricli train --dry-run`: one batch of each kind through everything, with nothing written."""

from __future__ import annotations

import resource
import time
from collections import Counter
from typing import Any

import torch

from metricli.components.dataset import Batch
from metricli.components.loading import image_loader
from metricli.reporter import Reporter, SilentReporter
from metricli.reports import DryRunReport
from metricli.runs.building import build_learner
from metricli.runs.context import Context, choose_device, open_context
from metricli.runs.embed import refuse_bad, refuse_empty, refuse_missing
from metricli.runs.images import check_images
from metricli.runs.judging import built_postprocessors, require_fit, try_postprocessors
from metricli.runs.learner import Learner
from metricli.runs.parts import image_dataset
from metricli.runs.probing import resolve_sampler
from metricli.runs.processes import World, joined
from metricli.runs.train import open_training_table
from metricli.runs.trainset import TrainSet, build_train_set
from metricli.runs.validate import gallery_of
from metricli.specs.load import Loaded
from metricli.specs.train import TrainSpec


def dry_run(loaded: Loaded[TrainSpec], reporter: Reporter) -> DryRunReport:
    """Take one training step, embed one evaluation batch, and try what judging takes besides.

    Raises:
        MetricliError: whatever the real run would stop at so far.
    """
    compute = loaded.spec.compute
    with joined(choose_device(compute), compute.gpus) as world:
        return _dry_run(loaded, reporter if world.is_main else SilentReporter(), world)


def _dry_run(loaded: Loaded[TrainSpec], reporter: Reporter, world: World) -> DryRunReport:
    table, warnings = open_training_table(loaded, reporter)
    used = table.split("train"), table.split("validation")
    check_images(table, used, loaded.spec.data, reporter, warnings, world)
    loaded = resolve_sampler(loaded, table, reporter, warnings, world)
    spec = loaded.spec
    postprocessors = built_postprocessors(spec.validation)
    context = open_context(spec.compute, reporter, spec.training.precision, world)
    data = build_train_set(spec, table, context)
    learner = build_learner(
        spec,
        context,
        num_labels=len(data.labels),
        label_to_category=data.label_to_category,
        steps_per_epoch=data.steps_per_epoch,
        paths=data.rows.paths,
    )
    rows, dim = table.split("validation"), int(learner.extractor.dim)  # type: ignore[arg-type]
    require_fit(spec.validation, dim, gallery_of(spec.validation, table, rows, "validation", reporter, world))
    train_batch = _try_step(spec, data, learner)
    eval_batch: dict[str, Any] = {"images": 0}
    if len(rows):
        dataset = image_dataset(rows, spec.transforms.eval.build(), spec.data)
        take = list(range(min(len(rows), spec.validation.batch_size)))
        batch: Batch = next(iter(image_loader(dataset, [take], num_workers=0)))
        refuse_bad(batch.bad, spec.data)
        refuse_empty(batch)
        learner.extractor.eval()
        with torch.inference_mode():
            images = batch.images.to(context.device, context.dtype)
            found = learner.extractor(images)
        try_postprocessors(postprocessors, spec.validation, dim, images)
        eval_batch = {"images": len(batch.rows)}
        eval_batch |= {"shape": list(batch.images.shape), "embeddings": list(found.shape)}
    counts = [p for module in (learner.extractor, learner.loss) for p in module.parameters()]
    return DryRunReport(
        train_batch=train_batch,
        eval_batch=eval_batch,
        parameters=sum(p.numel() for p in counts),
        trainable=sum(p.numel() for p in learner.parameters),
        memory_mb=_memory_mb(context),
        steps_per_epoch=data.steps_per_epoch,
        warnings=warnings,
    )


def _try_step(spec: TrainSpec, data: TrainSet, learner: Learner) -> dict[str, Any]:
    data.batches.set_epoch(0)
    learner.start_epoch(0)
    first = next(iter(data.batches))
    batch: Batch = next(iter(image_loader(data.dataset, [first], num_workers=0)))
    told = learner.context.world.gather((batch.rows.tolist(), batch.bad, batch.missing))
    rows = [row for part, _, _ in told for row in part]
    bad = [one for _, some, _ in told for one in some]
    refuse_bad(bad, spec.data)
    refuse_missing(sum(places for _, _, places in told), bad)
    started = time.monotonic()
    values = learner.step(batch, 0)
    seconds = time.monotonic() - started
    assert learner.labels is not None
    labels = Counter(learner.labels.tolist())
    categories = {str(data.rows.categories[row]) for row in rows} - {""}
    return {
        "images": len(rows),
        "shape": [len(rows), *batch.images.shape[1:]],
        "labels": len(labels),
        "instances": [min(labels.values()), max(labels.values())],
        "categories": len(categories),
        "different_images": len(set(rows)),
        "seconds": seconds,
        **values,
    }


def _memory_mb(context: Context) -> float:
    if context.device.type == "cuda":
        return torch.cuda.max_memory_allocated(context.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
