"""Hostile specs and overrides."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import yaml

from tests.conftest import TINY
from tests.hostile.cases import ANY, HOSTILE, REFUSED_SPEC, Case, Make

TRAIN = ("train", "s.yaml", "--dry-run")
_BASE = """\
extractor: {name: timm, model: test_resnet, dim: 8}
sampler: {name: balanced, n_labels: 2, n_instances: 2}
"""
SOUND = f"{_BASE}loss: triplet\ndata: {{table: x.csv}}\n"

VALUES = (
    "text",
    "-1",
    "0",
    "true",
    "null",
    "[]",
    "{}",
    "[[[]]]",
    "{name: x}",
    ".inf",
    "-.inf",
    ".nan",
    "1e999",
    "9" * 30,
    "9" * 5000,
    "0x" + "f" * 5000,
    '"\\0"',
    '"\\x1b[2J"',
    '"\\ud800"',
    '"[red]"',
    "x" * 5000,
    "!!binary aGk=",
    "!!python/name:os.system x",
    "{1: 2}",
    "&a [*a]",
)
"""In the place of any value."""
KEYS = (
    *("name", "seed", "compute", "compute.gpus", "compute.device", "data", "data.table", "data.root"),
    *("data.max_pixels", "data.on_bad_image", "data.allow_outside_root", "extractor", "extractor.name"),
    *("extractor.model", "extractor.dim", "extractor.pretrained", "extractor.pooling", "extractor.weights"),
    *("transforms", "transforms.train", "transforms.train.size", "transforms.eval.size", "sampler"),
    *("sampler.n_labels", "sampler.n_instances", "sampler.batches", "loss", "loss.name", "loss.margin"),
    *("loss.miner", "loss.miner.name", "loss.memory", "loss.memory.size", "optimizer", "optimizer.lr"),
    *("optimizer.weight_decay", "scheduler", "scheduler.warmup_epochs", "training", "training.epochs"),
    *("training.batch_size", "training.precision", "training.grad_clip_norm", "training.num_workers"),
    *("training.save_every_steps", "training.micro_batch", "training.ema", "training.ema.decay"),
    *("training.freeze_epochs", "training.log_every_steps", "training.patience", "validation"),
    *("validation.metrics", "validation.metrics.cmc", "validation.batch_size", "validation.distance"),
    *("validation.postprocessors", "validation.monitor", "validation.search", "validation.search.index"),
    *("prediction", "prediction.dtype", "prediction.batch_size", "loggers", "nonsense", "a.b.c.d"),
)


def _aliases(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


def bad_texts() -> dict[str, bytes]:
    """Whole files that are no spec, by what is wrong."""
    texts = {
        "aliases that double": _aliases(60, 2),
        "aliases by nines": _aliases(12, 9),
        "a cycle": "&a [*a]",
        "a cycle of mappings": "loss: &a {name: triplet, miner: *a}",
        "depth of lists": "[" * 100_000,
        "depth of mappings": "{a: " * 50_000,
        "depth by lines": "\n".join(" " * i + "a:" for i in range(500)),
        "depth by dashes": "- " * 20_000,
        "a tag that runs": "!!python/object/apply:os.system ['touch owned']",
        "a tag in a value": _BASE + "loss: !!python/object:builtins.list []",
        "a tag of one's own": _BASE + "loss: !triplet {}",
        "a set": "!!set {a, b}",
        "bytes": "name: !!binary aGVsbG8=",
        "a key twice": "seed: 1\nseed: 2",
        "a hundred keys twice": "\n".join("seed: 1" for _ in range(100)),
        "a list as a key": "? [a]\n: b",
        "a mapping as a key": "{{a: b}: c}",
        "numbers as keys": "1: 2\n2.5: 3\nnull: 4\ntrue: 5",
        "a merge key": "<<: {a: b}\nloss: triplet",
        "two documents": "a: b\n---\nc: d",
        "a list": "- a\n- b",
        "a word": "train",
        "a number": "42",
        "nothing": "",
        "a comment": "# nothing\n",
        "a tab": "data:\n\ttable: x",
        "an open quote": 'name: "x',
        "an open bracket": "loss: [triplet",
        "an unknown alias": "loss: *none",
        "an anchor twice": "a: &x 1\nb: &x 2\nc: *x",
        "a directive": "%YAML 9.9\n---\na: b",
        "an unknown directive": "%FOO bar\n---\na: b",
        "escapes": 'name: "\\x1b[2J\\u202e"\nnonsense: 1',
        "a NUL by escape": 'name: "\\0"',
        "half a character by escape": '"\\ud800": "\\udfff"',
        "an emoji by halves": 'name: "\\ud83d\\ude00"',
        "a digit too many": "seed: " + "9" * 10_000,
        "a long hexadecimal": "seed: 0x" + "f" * 100_000,
        "a float that is none": "seed: !!float x",
        "a truth that is none": "seed: !!bool x",
        "a date": "seed: 2020-01-01",
        "sixty": "seed: 1:30",
        "a long text": "name: " + "x" * 500_000,
        "a long key": "x" * 500 + ": 1",
        "keys by the thousand": "\n".join(f"k{i}: {i}" for i in range(5_000)),
        "more than fits": "# " + "x" * 1_000_001,
        "values by the hundred thousand": "a: [" + "1," * 150_000 + "1]",
        "a name with a slash": SOUND + "name: ../../x",
        **{f"hostile key {i}": f"{_json(name)}: 1" for i, name in enumerate(HOSTILE)},
        **{f"hostile value {i}": SOUND + f"optimizer: {_json(name)}" for i, name in enumerate(HOSTILE)},
        **{
            f"hostile table {i}": f"{_BASE}loss: triplet\ndata: {{table: {_json(name)}}}"
            for i, name in enumerate(HOSTILE)
        },
    }
    raw = {
        "utf-16": SOUND.encode("utf-16"),
        "utf-16 without a mark": SOUND.encode("utf-16-le"),
        "utf-32": SOUND.encode("utf-32"),
        "latin-1": "name: é".encode("latin-1"),
        "control characters": b"name: \x1b[2J\x07",
        "a NUL": b"name: \0",
        "a deleted character": b"name: \x7f",
        "bytes of a program": b"\x7fELF\x02\x01\x01" + bytes(100),
        "gzip": b"\x1f\x8b\x08\x00" + bytes(20),
        "a checkpoint": (300).to_bytes(8, "little") + b'{"__metadata__":{}}',
        "spaces of other scripts": "name:\u00a0x\n\u3000loss: y".encode(),
    }
    return {name: text.encode() for name, text in texts.items()} | raw


def _json(text: str) -> str:
    import json

    return json.dumps(text)


def special() -> dict[str, Make]:
    """What stands in the place of a spec and is none."""
    return {
        "a pipe": lambda here: os.mkfifo(here / "s.yaml"),
        "a folder": lambda here: (here / "s.yaml").mkdir(),
        "a device without end": lambda here: (here / "s.yaml").symlink_to("/dev/zero"),
        "an empty device": lambda here: (here / "s.yaml").symlink_to("/dev/null"),
        "a loop": lambda here: (here / "s.yaml").symlink_to(here / "s.yaml"),
        "nothing": lambda here: None,
    }


WORDS = (
    "=",
    "=x",
    "a=",
    ".=1",
    "a..b=1",
    "loss.=1",
    "x" * 10_000 + "=1",
    "a." * 10_000 + "b=1",
    "loss.0=1",
    "loss." + "9" * 5000 + "=1",
    "loss=[{weight: 1, loss: triplet}]",
    "seed=[",
    "seed={a: 1, a: 2}",
    "seed=!!python/object:os.system x",
    "seed=&a [*a]",
    "seed=" + "[" * 10_000,
    "seed=\x1b[2J",
    "\x1b[2J=1",
    "\u202e=1",
    "se\ned=1",
    "name.x.y=1",
    "seed.x=1",
    "__class__=1",
    "model_config={}",
    "loss.name=../../x",
    "extractor.name=os:system",
    "extractor.model=../../../etc/passwd",
    "extractor.weights=/dev/zero",
    "extractor.weights=/etc/passwd",
    "validation.postprocessors=[{name: pairwise}]",
)


def spec_cases(mutations: int = 40, drawn: int = 60) -> Iterator[Case]:
    """All of them; `drawn` of the many pairs of a key and a wrong value."""
    for name, data in bad_texts().items():
        codes = frozenset({2, 3}) if name.startswith("hostile table") else REFUSED_SPEC
        yield Case(f"train {name}", TRAIN, {"s.yaml": data}, codes=codes)
    for verb in ("validate", "predict", "inspect"):
        more = {"validate": (), "predict": ("--out", "f.npy", "--ckpt", "{best}"), "inspect": ()}[verb]
        command = "inspect-dataset" if verb == "inspect" else verb
        for name in (
            "a cycle",
            "depth of lists",
            "a tag that runs",
            "utf-16",
            "aliases by nines",
            "more than fits",
        ):
            files = {"s.yaml": bad_texts()[name]}
            yield Case(f"{verb} {name}", (command, "s.yaml", *more), files, codes=REFUSED_SPEC)
        for name, make in special().items():
            yield Case(
                f"{verb} {name} as the spec", (command, "s.yaml", *more), make=make, codes=REFUSED_SPEC
            )
    for name, make in special().items():
        yield Case(f"train {name} as the spec", TRAIN, make=make, codes=REFUSED_SPEC)
    for word in WORDS:
        codes = frozenset({2, 3, 5})
        yield Case(f"override {word[:30]!r}", ("train", "{spec}", word, "--dry-run"), codes=codes | {0})
    draw = random.Random(0)
    for _ in range(drawn):
        key, value = draw.choice(KEYS), draw.choice(VALUES)
        words = ("train", "{spec}", f"{key}={value}", "data.table=none.csv", "--dry-run")
        yield Case(f"override {key}={value[:12]!r}", words, codes=frozenset({2, 3}))
    text = yaml.safe_dump(TINY)
    for seed in range(mutations):
        yield Case(
            f"mutation {seed}", (*TRAIN, "data.table=none.csv"), {"s.yaml": _mutated(text, seed)}, codes=ANY
        )


def _mutated(text: str, seed: int) -> bytes:
    draw = random.Random(seed)
    data = bytearray(text.encode())
    for _ in range(draw.choice((1, 2, 4))):
        at = draw.randrange(len(data))
        piece = draw.choice(
            (b"\n", b":", b"- ", b"[", b"{", b"&a ", b"*a", b"!!", b"'", b"\t", b"\xff", b"? ", b"|\n", b"%")
        )
        if draw.random() < 0.3:
            del data[at : at + draw.randrange(1, 30)]
        else:
            data[at:at] = piece
    return bytes(data)
