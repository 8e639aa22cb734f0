"""What has to be alike in a run that was cut and went on and in one that was not, and cases to try it on."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metricli import TrainReport
from tests.runs.conftest import assert_same_weights, lines, meta

Case = dict[str, str]
"""A level for each factor."""

FACTORS: dict[str, dict[str, tuple[str, ...]]] = {
    "loss": {
        "hard": ("loss={name: triplet, margin: 0.2, miner: hard_triplets}",),
        "bank filling": ("loss={name: triplet, margin: 0.2, memory: {size: 40}}",),
        "bank wrapped": ("loss={name: contrastive, memory: {size: 10, start_after: 1}}",),
        "random miner": ("loss={name: triplet, margin: 0.2, miner: {name: distance_weighted}}",),
        "arcface": ("loss={name: arcface, margin: 0.3}",),
        "sub-centres": ("loss={name: sub_center_arcface}",),
        "several": (
            "loss=[{weight: 0.5, loss: {name: supcon, memory: {size: 16}}}, {loss: {name: soft_triple}}]",
        ),
    },
    "sampler": {
        "balanced": ("sampler={name: balanced, n_labels: 3, n_instances: 2}",),
        "category": ("sampler={name: category_balanced, n_categories: 2, n_labels: 2, n_instances: 2}",),
        "distinct": (
            "sampler={name: distinct_category_balanced, n_categories: 2, n_labels: 2, n_instances: 2}",
        ),
        "null": ("sampler=null", "training.batch_size=7"),
    },
    "ema": {
        "none": (),
        "constant": ("training.ema={decay: 0.7}",),
        "warmup": ("training.ema={decay: 0.9, warmup: true}",),
    },
    "precision": {
        "fp32": (),
        "bf16": ("training.precision=bf16",),
        "fp64": ("training.precision=fp64",),
    },
    "micro": {"whole": (), "cached": ("training.micro_batch=4",)},
    "thaw": {
        "none": (),
        "freeze": ("training.freeze_epochs=1",),
        "thaw": ("training.freeze_epochs=1", "training.thaw_epochs=2"),
    },
    "end": {
        "epochs": (),
        "patience": ("training.patience=2", "training.min_delta=0.01"),
        "every second": ("validation.every_n_epochs=2", "validation.monitor=loss"),
    },
    "noise": {
        "none": (),
        "dropout": (
            "extractor.model_args={drop_rate: 0.3, drop_path_rate: 0.2}",
            "extractor.bnneck=true",
        ),
    },
    "images": {"sound": (), "broken": ("data.on_bad_image=skip",)},
}
OPTIMIZERS = [
    "{name: adamw, weight_decay: 0.05}",
    "{name: sgd, lr: 0.05, momentum: 0.9, nesterov: true}",
    "{name: adagrad, lr: 0.01}",
    "{name: adam, amsgrad: true}",
    "{name: rmsprop, momentum: 0.5, centered: true}",
    "{name: adafactor}",
    "{name: adadelta}",
    "{name: adamax}",
    "{name: asgd}",
    "{name: nadam}",
    "{name: radam}",
    "{name: rprop}",
]
SCHEDULERS = [
    "{name: plateau, patience: 0, factor: 0.5}",
    "{name: cosine, warmup_epochs: 1}",
    "{name: exponential, gamma: 0.5, interval: epoch, frequency: 2}",
    "{name: one_cycle}",
    "{name: multistep, milestones: [1, 3], warmup_epochs: 0.5}",
    "{name: step, step_epochs: 1, interval: epoch}",
    "{name: linear}",
]
FEW = 12
"""The first cases, which have every level and every optimizer once at least; tried by every CI run."""


def possible(case: Case) -> bool:
    """Whether the spec allows it: what compares images wants a sampler that gives it some of a label."""
    return case["sampler"] != "null" or case["loss"] in ("arcface", "sub-centres")


def cases() -> list[Case]:
    """Cases in which every two levels of two factors that go together meet (pairwise testing, greedily)."""
    every = [dict(zip(FACTORS, levels, strict=True)) for levels in itertools.product(*FACTORS.values())]
    every = [case for case in every if possible(case)]
    pairs = [set(itertools.combinations(case.items(), 2)) for case in every[::17]]
    left = set().union(*pairs)
    found = []
    while left:
        most = max(range(len(pairs)), key=lambda at: len(pairs[at] & left))
        found.append(every[17 * most])
        left -= pairs[most]
    return found


def overrides_of(number: int, case: Case) -> list[str]:
    """The spec's overrides of the case with this number; optimizers and schedules go round."""
    chosen = [word for factor, level in case.items() for word in FACTORS[factor][level]]
    chosen += [f"optimizer={OPTIMIZERS[number % len(OPTIMIZERS)]}"]
    chosen += [f"scheduler={SCHEDULERS[number % len(SCHEDULERS)]}"]
    return [*chosen, "training.epochs=4", "validation.bootstrap={samples: 40}"]


def assert_same_run(one: TrainReport, two: TrainReport) -> None:
    """To the bit: both checkpoints with all that stands in them, every line, and the report."""
    for checkpoint in ("best_ckpt", "last_ckpt"):
        left, right = getattr(one, checkpoint), getattr(two, checkpoint)
        assert_same_weights(left, right)
        ours, theirs = _words(left), _words(right)
        assert ours == theirs
    assert lines(one) == lines(two)
    assert_no_line_is_lost_or_double(two.run_dir)
    reports = [asdict(report) for report in (one, two)]
    for report in reports:
        for key in ("run_dir", "best_ckpt", "last_ckpt", "seconds"):
            del report[key]
    assert json.dumps(reports[0]) == json.dumps(reports[1])  # NaN is NaN there, and a tuple a list


def _words(path: Path) -> dict[str, Any]:
    found = meta(path)
    found.get("progress", {}).pop("seconds", None)
    for spec in (found.get("spec", {}), found.get("model", {}).get("spec", {})):
        spec.get("training", {}).pop("num_workers", None)
        spec.pop("compute", None)
    return found


def assert_no_line_is_lost_or_double(run: Path) -> None:
    """Every step that is logged stands there once, in order, and every epoch's end once."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = [(row["step"], row["split"], row.get("category")) for row in rows]
    assert len(set(keys)) == len(keys)
    steps = [row["step"] for row in rows if row["split"] == "train"]
    assert steps == [steps[0] * count for count in range(1, len(steps) + 1)]
    ends = [row["epoch"] for row in rows if row["split"] == "train_epoch"]
    assert ends == list(range(1, len(ends) + 1))
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
