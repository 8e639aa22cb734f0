"""The whole text of what a user reads for each mistake in a spec; reviewed by eye."""

from __future__ import annotations

import pytest

from metricli.errors import UsageError
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec
from tests.plugins.builtin import installed
from tests.specs.conftest import yaml_of

LOSSES = installed("losses")

ONE = "1 problem in train.yaml\n  "

SINGLE = {
    "unknown block": (
        yaml_of(trainning="{epochs: 3}"),
        "line 5  trainning  unknown key, did you mean 'training'?",
    ),
    "unknown key, other case": (
        yaml_of(optimizer="{name: adamw, Head-LR: 0.1}"),
        "line 5  optimizer.Head-LR  unknown key, did you mean 'head_lr'?",
    ),
    "unknown key, nothing near": (
        yaml_of(compute="{zzz: 3}"),
        "line 5  compute.zzz  unknown key; known: gpus, device",
    ),
    "unknown plugin": (
        yaml_of(loss="tripplet"),
        f"line 4  loss.name  no loss named 'tripplet', did you mean 'triplet'? installed: {LOSSES}",
    ),
    "unknown plugin, nothing near": (
        yaml_of(loss="{name: zzz}"),
        f"line 4  loss.name  no loss named 'zzz'; installed: {LOSSES}",
    ),
    "unknown plugin in a list": (
        yaml_of(validation="{postprocessors: [k_reciprocel]}"),
        "line 5  validation.postprocessors.0.name  no postprocessor named 'k_reciprocel', did you mean "
        "'k_reciprocal'? installed: adaptive_threshold, constant_threshold, database_augmentation, "
        "k_reciprocal, pairwise, pca_whitening, query_expansion",
    ),
    "nested unknown plugin": (
        yaml_of(loss="{name: triplet, miner: hard_triplet}"),
        "line 4  loss.miner.name  no miner named 'hard_triplet', did you mean 'hard_triplets'? "
        "installed: all_triplets, distance_weighted, easy_positive, hard_cluster, hard_triplets, n_hard, "
        "pml, semi_hard",
    ),
    "key of a nested plugin": (
        yaml_of(loss="{name: triplet, miner: {name: hard_triplets, distnce: cosine}}"),
        "line 4  loss.miner.distnce  unknown key, did you mean 'distance'?",
    ),
    "missing name": (
        yaml_of(loss="{margin: 0.2}"),
        f"line 4  loss.name  required, but missing; installed: {LOSSES}",
    ),
    "name of a wrong type": (
        yaml_of(loss="{name: 3}"),
        f"line 4  loss.name  expected text, got 3; installed: {LOSSES}",
    ),
    "plugin of a wrong type": (
        yaml_of(loss="7"),
        "line 4  loss  expected the name of a loss or a mapping with 'name', got 7",
    ),
    "plugin null": (
        yaml_of(loss="null"),
        "line 4  loss  expected the name of a loss or a mapping with 'name', got nothing (null)",
    ),
    "missing block": (
        "data: {table: t.csv}\nloss: arcface\ntraining: {batch_size: 4}\n",
        "extractor  required, but missing",
    ),
    "missing key": (yaml_of(extractor="{name: timm}"), "line 2  extractor.model  required, but missing"),
    "empty path": (yaml_of(data='{table: ""}'), "line 1  data.table  must not be empty"),
    "duplicate block": (
        yaml_of(seed="1") + "seed: 2\n",
        "line 6  seed  duplicate key, first given in line 5; remove one",
    ),
    "unknown tag": (
        yaml_of(name="!secret x"),
        "line 5  name  the tag '!secret' is not allowed in a spec; remove it",
    ),
    "object tag": (
        yaml_of(training="{epochs: !!python/object/apply:os.system [echo]}"),
        "line 5  training.epochs  "
        "the tag '!!python/object/apply:os.system' is not allowed in a spec; remove it",
    ),
    "thousands of digits": (
        yaml_of(seed="9" * 5000),
        f"line 5  seed  not a number that can be read: {'9' * 60!r}",
    ),
    "template never filled in": (
        yaml_of(name="{{ env }}"),
        "line 5  name  a key must be a word; quote a text that begins with a brace",
    ),
    "no sampler and no batch size": (
        yaml_of(sampler="null", loss="arcface"),
        "neither sampler nor training.batch_size is given, and one of them forms the batches; "
        "add sampler: {name: balanced, n_labels: 8, n_instances: 4}",
    ),
    "sampler and batch size": (
        yaml_of(training="{batch_size: 32}"),
        "line 5  training.batch_size  is for sampler: null, and the sampler sets the batch; remove one",
    ),
    "no metric": (
        yaml_of(validation="{metrics: {cmc: [], precision: [], map: [], map_r: false}}"),
        "line 5  validation.metrics  no metric is asked for; give at least one, such as cmc: [1]",
    ),
    "k below 1": (
        yaml_of(validation="{metrics: {cmc: [0]}}"),
        "line 5  validation.metrics.cmc  every k must be at least 1, got 0",
    ),
    "k twice": (
        yaml_of(validation="{metrics: {cmc: [1, 1]}}"),
        "line 5  validation.metrics.cmc  a k is given twice: [1, 1]",
    ),
    "size of an image": (
        yaml_of(transforms="{train: {name: augment, size: [0, 3]}}"),
        "line 5  transforms.train.size  expected a side in pixels or [height, width], got [0, 3]",
    ),
    "too few items": (
        yaml_of(optimizer="{name: adamw, betas: [0.9]}"),
        "line 5  optimizer.betas  expected a list of at least 2 items, got [0.9]",
    ),
    "too many items": (
        yaml_of(optimizer="{name: adamw, betas: [0.9, 0.9, 0.9]}"),
        "line 5  optimizer.betas  expected a list of at most 2 items, got [0.9, 0.9, 0.9]",
    ),
    "name of a run": (
        yaml_of(name="my run"),
        "line 5  name  must match ^[A-Za-z0-9][A-Za-z0-9._-]*$, got 'my run'",
    ),
}


@pytest.mark.parametrize(("text", "expected"), SINGLE.values(), ids=SINGLE.keys())
def test_single_mistake(refusal, text, expected):
    assert refusal(text) == ONE + expected


def test_every_problem_at_once_in_file_order_with_columns_aligned(refusal):
    text = yaml_of(
        loss="{name: triplet, margn: 0.3}",
        training="{epochs: on, freeze_epochs: true, grad_clip_norm: much, num_workers: 2.5, precision: fp8}",
        optimizer='{name: adamw, lr: "1e-4", amsgrad: 1, eps: -1}',
        loggers="tensorboard",
        name="3",
        compute="4",
        validation="{metrics: {cmc: 1, map: [5, five]}, distance: cosin, batch_size: 0}",
        scheduler="{name: step, gamma: 2, step_epochs: 3}",
        seed="4294967296",
        prediction="",
    )
    assert refusal(text, "optimizer.lr=0", "data.max_pixel=3") == (
        """\
20 problems in train.yaml
  line 4   loss.margn                unknown key, did you mean 'margin'?
  line 5   training.epochs           expected a whole number, got 'on'
  line 5   training.precision        must be 'fp32', 'fp16', 'bf16' or 'fp64', got 'fp8'
  line 5   training.grad_clip_norm   expected a number, got 'much'
  line 5   training.freeze_epochs    expected a whole number, got True
  line 5   training.num_workers      expected a whole number, got 2.5
  line 6   optimizer.eps             must be at least 0, got -1
  line 6   optimizer.amsgrad         expected true or false, got 1
  line 7   loggers                   expected a list, got 'tensorboard'
  line 8   name                      expected text, got 3
  line 9   compute                   expected a mapping such as {gpus: ...}, got 4
  line 10  validation.batch_size     must be at least 1, got 0
  line 10  validation.metrics.cmc    expected a list, got 1
  line 10  validation.metrics.map.1  expected a whole number, got 'five'
  line 10  validation.distance       must be 'cosine' or 'euclidean', got 'cosin', did you mean 'cosine'?
  line 11  scheduler.gamma           must be at most 1, got 2
  line 12  seed                      must be less than 4294967296, got 4294967296
  line 13  prediction                expected a mapping such as {batch_size: ...}, got nothing (null)
           data.max_pixel            unknown key, did you mean 'max_pixels'? (from the command line)
           optimizer.lr              must be greater than 0, got 0 (from the command line)"""
    )


def test_problem_below_a_block_has_its_own_line(refusal):
    text = yaml_of() + "training:\n  epochs: 2\n  precision: fp8\n  epochs: 3\nseed: .inf\n"
    assert refusal(text) == (
        "3 problems in train.yaml\n"
        "  line 7  training.precision  must be 'fp32', 'fp16', 'bf16' or 'fp64', got 'fp8'\n"
        "  line 8  training.epochs     duplicate key, first given in line 6; remove one\n"
        "  line 9  seed                expected a whole number, got inf"
    )


def test_limits(refusal):
    text = yaml_of(
        optimizer="{name: sgd, lr: 0}",
        scheduler="{name: one_cycle, pct_start: 1}",
        training="{grad_clip_norm: .inf, min_delta: .nan}",
        seed="4294967296",
    )
    assert refusal(text) == (
        "5 problems in train.yaml\n"
        "  line 5  optimizer.lr             must be greater than 0, got 0\n"
        "  line 6  scheduler.pct_start      must be less than 1, got 1\n"
        "  line 7  training.grad_clip_norm  must be a finite number, got inf\n"
        "  line 7  training.min_delta       must be a finite number, got nan\n"
        "  line 8  seed                     must be less than 4294967296, got 4294967296"
    )


def test_long_value_is_cut(refusal):
    text = yaml_of(seed="x" * 500)
    assert refusal(text) == ONE + f"line 5  seed  expected a whole number, got '{'x' * 56}..."


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "~"])
def test_empty(refusal, text):
    assert refusal(text) == ONE + "the spec is empty; `metricli init TABLE` writes one"


def test_list_at_the_top(refusal):
    assert refusal("- data\n- loss\n") == (
        ONE + "expected a mapping of blocks such as data, extractor and loss, got ['data', 'loss']"
    )


def test_not_utf8(refusal):
    assert refusal(b"name: caf\xe9\n") == (
        "the spec 'train.yaml' is not UTF-8 text: invalid continuation byte at byte 9; save it as UTF-8"
    )


def test_byte_order_mark_is_no_key(load):
    assert load("\ufeffname: marked\n" + yaml_of()).spec.name == "marked"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("trian.yaml", "no spec file 'trian.yaml', did you mean 'train.yaml'?"),
        ("zz/zz.yaml", "no spec file 'zz/zz.yaml'; `metricli init TABLE` writes one"),
        (".", "the spec '.' is a folder, expected a YAML file"),
    ],
)
def test_spec_file_that_cannot_be_read(write, path, expected):
    write(yaml_of())
    with pytest.raises(UsageError) as caught:
        load_spec(path, TrainSpec)
    assert str(caught.value) == expected
    assert caught.value.exit_code == 2
