"""The whole text of each rule between blocks, and of the mistakes that end the reading of a file."""

from __future__ import annotations

import dataclasses

import pytest

from tests.specs.conftest import FACTS, yaml_of

ONE = "1 problem in train.yaml\n  "


def category_sampler(n_labels: int = 2, n_categories: int = 3) -> str:
    return f"{{name: category_balanced, n_labels: {n_labels}, n_categories: {n_categories}, n_instances: 3}}"


RULES = {
    "monitor not computed": (
        yaml_of(validation="{monitor: precision@50}"),
        "line 5  validation.monitor  'precision@50' is not computed, did you mean 'precision@5'? "
        "computed: cmc@1, cmc@5, cmc@10, precision@5, map@5, map@r, loss",
    ),
    "monitor like none": (
        yaml_of(validation="{monitor: zzz, metrics: {cmc: [1], precision: [], map: [], map_r: false}}"),
        "line 5  validation.monitor  'zzz' is not computed; computed: cmc@1, loss",
    ),
    "soft margin, normalised": (
        yaml_of(loss="{name: triplet, margin: null}"),
        "line 4  loss.margin  a soft margin wants distances without a bound, and these are at most 2, "
        "which starves its gradient; set a margin such as 0.2, or extractor.normalize: false",
    ),
    "soft margin, squared": (
        yaml_of(loss="{name: triplet, margin: null, squared: true}"),
        "line 4  loss.margin  a soft margin wants distances without a bound, and these are at most 4, "
        "which starves its gradient; set a margin such as 0.2, or extractor.normalize: false",
    ),
    "soft margin, cosine": (
        yaml_of(loss="{name: triplet, margin: null, distance: cosine}"),
        "line 4  loss.margin  a soft margin wants distances without a bound, and these are at most 2, "
        "which starves its gradient; set a margin such as 0.2, or extractor.normalize: false "
        "and distance: euclidean",
    ),
    "margin out of reach": (
        yaml_of(loss="{name: triplet, margin: 2}"),
        "line 4  loss.margin  distances are at most 2 here, so no triplet can keep a margin of 2; "
        "near 0.2 is usual",
    ),
    "squared cosine": (
        yaml_of(loss="{name: triplet, distance: cosine, squared: true}"),
        "line 4  loss.squared  squares euclidean distances, and the distance is cosine; remove it",
    ),
    "miner ranks apart": (
        yaml_of(
            extractor="{name: timm, model: resnet18, normalize: false}",
            loss="{name: triplet, distance: cosine}",
        ),
        "line 4  loss.miner.distance  mines by euclidean distance and the loss is cosine, which rank "
        "embeddings that are not normalised differently; set it to 'cosine'",
    ),
    "mining without a sampler": (
        yaml_of(sampler="null", training="{batch_size: 32}"),
        "line 4  loss  the loss 'triplet' compares images of one label, and plain shuffling rarely puts two "
        "in a batch; add sampler: {name: balanced, n_labels: 8, n_instances: 4}",
    ),
    "one instance": (
        yaml_of(sampler="{name: balanced, n_labels: 8, n_instances: 1}"),
        "line 4  loss  the loss 'triplet' compares images of one label, so sampler.n_instances "
        "must be at least 2",
    ),
    "one label": (
        yaml_of(sampler="{name: balanced, n_labels: 1, n_instances: 4}"),
        "line 3  sampler.n_labels  a batch of 1 label holds no negatives; 2 at least, 8 is usual",
    ),
    "arcface in degrees": (
        yaml_of(loss="{name: arcface, margin: 28.6}"),
        "line 4  loss.margin  "
        "28.6 is more than a quarter turn (1.57); the margin is in radians, 0.5 is usual, "
        "and 28.6° are 0.499",
    ),
    "smoothed away": (
        yaml_of(loss="{name: arcface, label_smoothing: 0.5, category_smoothing: 0.5}"),
        "line 4  loss.category_smoothing  the two smoothings must leave a share to the label: 0.5 + 0.5 >= 1",
    ),
    "warm-up outlasts the run": (
        yaml_of(scheduler="{name: cosine, warmup_epochs: 20}"),
        "line 5  scheduler.warmup_epochs  must be below training.epochs, 20, got 20",
    ),
    "warm-up before a cycle": (
        yaml_of(scheduler="{name: one_cycle, warmup_epochs: 1}"),
        "line 5  scheduler.warmup_epochs  one_cycle rises by itself for pct_start of the run; "
        "remove the warm-up, or set pct_start",
    ),
    "milestones fall": (
        yaml_of(scheduler="{name: multistep, milestones: [10, 5]}"),
        "line 5  scheduler.milestones  must rise, from 1 on, got [10, 5]",
    ),
    "milestone at the start": (
        yaml_of(scheduler="{name: multistep, milestones: [0, 5]}"),
        "line 5  scheduler.milestones  must rise, from 1 on, got [0, 5]",
    ),
    "rprop with decay": (
        yaml_of(optimizer="{name: rprop, weight_decay: 0.1}"),
        "line 5  optimizer.weight_decay  rprop has no weight decay; remove it or take another optimizer",
    ),
    "nesterov alone": (
        yaml_of(optimizer="{name: sgd, nesterov: true}"),
        "line 5  optimizer.nesterov  needs momentum above 0 and dampening 0",
    ),
    "two sources of weights": (
        yaml_of(extractor="{name: timm, model: resnet18, pretrained: true, weights: w.pth}"),
        "line 2  extractor.weights  pretrained and weights exclude each other; remove one",
    ),
    "crop limits fall": (
        yaml_of(transforms="{train: {name: augment, ratio: [2, 1]}}"),
        "line 5  transforms.train.ratio  must be [least, most] with 0 < least <= most, got [2.0, 1.0]",
    ),
    "crop beyond the image": (
        yaml_of(transforms="{train: {name: augment, scale: [0.5, 1.5]}}"),
        "line 5  transforms.train.scale  a crop cannot keep more than the whole image, got [0.5, 1.5]",
    ),
}


@pytest.mark.parametrize(("text", "expected"), RULES.values(), ids=RULES.keys())
def test_rule(refusal, text, expected):
    assert refusal(text) == ONE + expected


TABLE_RULES = {
    "labels": (
        yaml_of(sampler="{name: balanced, n_labels: 13, n_instances: 4}"),
        {},
        "line 3  sampler.n_labels  a batch of 13 labels, and the table has 12 train labels; lower it",
    ),
    "one label in the table": (
        yaml_of(sampler="{name: balanced, n_labels: 8, n_instances: 4}"),
        {"train_labels": 1},
        "line 3  sampler.n_labels  a batch of 8 labels, and the table has 1 train label; training needs two",
    ),
    "labels over categories": (
        yaml_of(sampler=category_sampler(5, 3)),
        {},
        "line 3  sampler.n_labels  a batch of 15 labels, and the table has 12 train labels; lower it",
    ),
    "categories": (
        yaml_of(sampler=category_sampler(2, 4)),
        {},
        "line 3  sampler.n_categories  a batch of 4 categories, and the table has 3; lower it",
    ),
    "no categories": (
        yaml_of(sampler=category_sampler()),
        {"train_categories": 0},
        "line 3  sampler  the sampler 'category_balanced' needs categories, and the table has none; "
        "add a 'category' column",
    ),
    "label in two categories": (
        yaml_of(sampler=category_sampler()),
        {"labels_in_two_categories": ["a", "b", "c", "d"]},
        "line 3  sampler  the sampler 'category_balanced' needs one category for each label, "
        "and some have two: 'a', 'b', 'c'",
    ),
    "label without a category": (
        yaml_of(loss="{name: arcface, category_smoothing: 0.1}"),
        {"uncategorised_labels": 2},
        "line 4  loss  the loss 'arcface' needs a category for each label, and 2 train labels lack one",
    ),
}


@pytest.mark.parametrize(("text", "facts", "expected"), TABLE_RULES.values(), ids=TABLE_RULES.keys())
def test_rule_that_needs_the_table(refusal, warnings_of, text, facts, expected):
    assert refusal(text, facts=dataclasses.replace(FACTS, **facts)) == ONE + expected
    assert warnings_of(text, facts=None) == []


def test_a_table_at_the_limits_is_good(warnings_of):
    assert warnings_of(yaml_of(sampler=category_sampler(4, 3)), facts=FACTS) == []
    without = dataclasses.replace(FACTS, train_categories=0)
    assert warnings_of(yaml_of(loss="{name: arcface, label_smoothing: 0.1}"), facts=without) == []


WARNINGS = {
    "wide margin": (
        yaml_of(loss="{name: triplet, margin: 1}"),
        (4, "loss.margin", "1 is wide for distances of at most 2; near 0.2 is usual"),
    ),
    "flat softmax": (
        yaml_of(loss="{name: arcface, scale: 1}"),
        (4, "loss.scale", "1 is so low that the softmax stays flat; 16 to 64 is usual"),
    ),
    "milestone never reached": (
        yaml_of(scheduler="{name: multistep, milestones: [10, 20]}"),
        (5, "scheduler.milestones", "epoch 20 never comes in a run of 20 epochs"),
    ),
    "judged by another distance": (
        yaml_of(extractor="{name: timm, model: resnet18, normalize: false}"),
        (
            4,
            "loss.distance",
            "the loss learns euclidean distances and validation.distance is cosine, which rank embeddings "
            "that are not normalised differently; set validation.distance: euclidean",
        ),
    ),
    "arcface judged by another distance": (
        yaml_of(
            extractor="{name: timm, model: resnet18, normalize: false}",
            loss="arcface",
            validation="{distance: euclidean}",
        ),
        (
            4,
            "loss",
            "the loss learns cosine distances and validation.distance is euclidean, which rank embeddings "
            "that are not normalised differently; set validation.distance: cosine",
        ),
    ),
    "warm-up within an interval": (
        yaml_of(scheduler="{name: cosine, warmup_epochs: 1, interval: epoch}"),
        (
            5,
            "scheduler.warmup_epochs",
            "1 is fewer than two intervals, so the rate stays at warmup_start for the whole first epoch; "
            "interval: step rises with every step",
        ),
    ),
    "warm-up within several epochs": (
        yaml_of(scheduler="{name: cosine, warmup_epochs: 5, interval: epoch, frequency: 3}"),
        (
            5,
            "scheduler.warmup_epochs",
            "5 is fewer than two intervals, so the rate stays at warmup_start for the whole first 3 epochs; "
            "interval: step rises with every step",
        ),
    ),
    "two sizes": (
        yaml_of(transforms="{train: {name: augment, size: 128}}"),
        (
            5,
            "transforms.train.size",
            "training sees 128x128 pixels and evaluation 224x224; was it meant?",
        ),
    ),
}


@pytest.mark.parametrize(("text", "expected"), WARNINGS.values(), ids=WARNINGS.keys())
def test_doubtful_choice_is_a_warning_and_no_error(warnings_of, text, expected):
    found = warnings_of(text, facts=FACTS)
    assert [(p.line, p.path, p.message) for p in found] == [expected]
    assert found[0].severity == "warning"


@pytest.mark.parametrize(
    "text",
    [
        yaml_of(
            extractor="{name: timm, model: resnet18, normalize: true}", validation="{distance: euclidean}"
        ),
        yaml_of(
            extractor="{name: timm, model: resnet18, normalize: false}", validation="{distance: euclidean}"
        ),
        yaml_of(extractor="{name: timm, model: resnet18, normalize: false}", loss="arcface"),
        yaml_of(scheduler="{name: cosine, warmup_epochs: 2, interval: epoch}"),
        yaml_of(scheduler="{name: cosine, warmup_epochs: 1}"),
    ],
)
def test_a_good_choice_is_no_warning(warnings_of, text):
    assert warnings_of(text, facts=FACTS) == []


UNJUDGED = "the table has no validation rows to take map@r from; add some, or set validation.monitor: loss"


@pytest.mark.parametrize(
    ("block", "path", "what"),
    [
        ({"training": "{patience: 3}"}, "training.patience", "training never stops early"),
        ({"scheduler": "plateau"}, "scheduler", "the rate never falls"),
    ],
)
def test_what_waits_for_a_metric_needs_validation_rows(warnings_of, block, path, what):
    facts = dataclasses.replace(FACTS, validation_rows=0)
    found = warnings_of(yaml_of(**block), facts=facts)
    assert [(p.path, p.message, p.severity) for p in found] == [(path, f"{what}: {UNJUDGED}", "warning")]
    assert warnings_of(yaml_of(**block), facts=FACTS) == []
    assert warnings_of(yaml_of(**block, validation="{monitor: loss}"), facts=facts) == []
    assert warnings_of(yaml_of(), facts=facts) == []


def test_errors_leave_no_room_for_warnings(refusal):
    text = yaml_of(loss="{name: arcface, scale: 1, margin: 2}", validation="{monitor: zzz}")
    assert refusal(text) == (
        "2 problems in train.yaml\n"
        "  line 4  loss.margin         2 is more than a quarter turn (1.57); the margin is in radians, "
        "0.5 is usual, and 2° are 0.0349\n"
        "  line 5  validation.monitor  'zzz' is not computed; computed: cmc@1, cmc@5, cmc@10, precision@5, "
        "map@5, map@r, loss"
    )


def test_a_rule_broken_from_the_command_line_says_so(refusal):
    assert refusal(yaml_of(), "validation.monitor=cmc@3", "sampler.n_labels=13", facts=FACTS) == (
        "2 problems in train.yaml\n"
        "  validation.monitor  'cmc@3' is not computed, did you mean 'cmc@5'? computed: cmc@1, cmc@5, "
        "cmc@10, precision@5, map@5, map@r, loss (from the command line)\n"
        "  sampler.n_labels    a batch of 13 labels, and the table has 12 train labels; lower it "
        "(from the command line)"
    )


def bomb() -> str:
    text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for last, name in zip("abcdef", "bcdefg", strict=True):
        text += f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]\n"
    return text


UNREADABLE = {
    "tab": ("training:\n\tepochs: 3\n", "line 2  not valid YAML: a tab character; indent with spaces"),
    "alias bomb": (
        bomb(),
        "line 1  aliases expand to more than 100,000 values or 32 levels, too much for a spec",
    ),
    "alias of itself": (
        "seed: 1\na: &a [*a]\n",
        "line 2  aliases expand to more than 100,000 values or 32 levels, too much for a spec",
    ),
    "too deep": (
        f"a: {'[' * 33}{']' * 33}\n",
        "line 1  nested deeper than 32 levels, too deep for a spec",
    ),
    "too deep in blocks": (
        "\n".join(" " * i + "a:" for i in range(40)),
        "line 32  nested deeper than 32 levels, too deep for a spec",
    ),
    "too large": ("# " + "x" * 1_000_000, "larger than 1,000,000 bytes, too large for a spec"),
    "open bracket": (
        "seed: 1\ntraining: {epochs: 3\n\n\n",
        "line 2  not valid YAML: while parsing a flow mapping, expected ',' or '}', but got '<stream end>'",
    ),
    "open quote": (
        'name: "x\nseed: 1\n',
        "line 1  not valid YAML: while scanning a quoted scalar, found unexpected end of stream",
    ),
    "two colons": ("name: a: b\n", "line 1  not valid YAML: mapping values are not allowed here"),
    "bad indent": (
        "data:\n  table: x\n root: y\n",
        "line 3  not valid YAML: while parsing a block mapping, expected <block end>, "
        "but found '<block mapping start>'",
    ),
    "two documents": (
        "a: 1\n---\nb: 2\n",
        "line 2  not valid YAML: expected a single document in the stream, but found another document",
    ),
    "alias of nothing": ("name: *x\n", "line 1  not valid YAML: found undefined alias 'x'"),
    "control character": (
        "name: \x00\n",
        "not valid YAML: unacceptable character #x0000: special characters are not allowed",
    ),
}


@pytest.mark.parametrize(("text", "expected"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_unreadable(refusal, text, expected):
    assert refusal(text) == ONE + expected
