"""The verbs that need no torch: plugins, schema, init, env."""

from __future__ import annotations

import contextlib
import inspect
import os
import shlex
from pathlib import Path
from typing import Any

from metricli.cli.launch import print_json
from metricli.cli.render import out, table
from metricli.errors import ResourceError, UsageError
from metricli.reports import SCHEMA_VERSION


def plugins(kind: str | None, name: str | None, *, as_json: bool) -> None:
    """List plugins; with a kind and a name, the fields of one.

    Raises:
        UsageError: no such kind or plugin.
    """
    import metricli.specs.kinds  # noqa: F401  (fills KINDS)
    from metricli.specs.plugin import KINDS
    from metricli.specs.registry import describe
    from metricli.specs.suggest import did_you_mean

    if kind is not None and kind not in KINDS:
        near = did_you_mean(kind, KINDS)
        raise UsageError(f"no kind of plugin named {kind!r}{near or ';'} kinds: {', '.join(KINDS)}")
    found = [
        info
        for each, base in KINDS.items()
        if kind in (None, each)
        for info in describe(each, base.singular, base)
        if name in (None, info.name)
    ]
    if name is not None and not found:
        known = [info.name for info in describe(kind or "", KINDS[kind or ""].singular, KINDS[kind or ""])]
        near = did_you_mean(name, known)
        raise UsageError(
            f"no plugin named {name!r} among the {kind}{near or ';'} installed: {', '.join(known)}"
        )
    if as_json:
        print_json([_info(info) for info in found])
    elif kind is None:
        rows = [[i.kind, i.name, i.package, i.version, i.status] for i in found]
        table(["kind", "name", "package", "version", "status"], rows, numbers_from=9)
    elif name is None:
        rows = [
            [i.name, f"{i.package} {i.version}", i.status if i.model is None else _about(i)[0]] for i in found
        ]
        table(["name", "package", "what it is"], rows, numbers_from=9)
    else:
        for info in found:
            _fields(info)


def _info(info: Any) -> dict[str, Any]:
    return {
        "kind": info.kind,
        "name": info.name,
        "package": info.package,
        "version": info.version,
        "status": info.status,
        "fields": _schema_fields(info.model) if info.model else {},
    }


def _schema_fields(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = model.model_json_schema().get("properties", {})
    return {key: value for key, value in found.items() if key != "name"}


def _fields(info: Any) -> None:
    out(f"{info.kind} {info.name} ({info.package} {info.version}): {info.status}")
    if info.model is None:
        return
    for paragraph in _about(info):
        out(paragraph)
    rows = []
    for key, field in info.model.model_fields.items():
        if key != "name":
            default = "required" if field.is_required() else _default(field)
            rows.append([key, default, field.description or ""])
    table(["field", "default", "meaning"], rows, numbers_from=9)


def _about(info: Any) -> list[str]:
    """The paragraphs of a plugin's docstring, each in one line."""
    paragraphs = inspect.cleandoc(info.model.__doc__ or "").split("\n\n")
    return [" ".join(paragraph.split()) for paragraph in paragraphs]


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return str(value).lower()
    return value.name if hasattr(value, "name") else "null" if value is None else str(value)


def schema(verb: str) -> None:
    """Print the JSON schema of one verb's spec.

    Raises:
        UsageError: no such verb.
    """
    from pydantic import BaseModel

    from metricli.specs.predict import PredictSpec
    from metricli.specs.train import TrainSpec
    from metricli.specs.validate import ValidateSpec

    models: dict[str, type[BaseModel]] = {
        "train": TrainSpec,
        "validate": ValidateSpec,
        "predict": PredictSpec,
    }
    if verb not in models:
        raise UsageError(f"no spec for the verb {verb!r}; verbs: {', '.join(models)}")
    print_json(models[verb].model_json_schema())


_STARTER = """\
# A starter spec for {table}. Try it with:  metricli train {name} --dry-run
name: {stem}
seed: 0
data:
  table: {path}          # {rows} train rows, {labels} train labels, {validation} validation rows
extractor:
  name: timm
  model: resnet18        # any timm model; vit_small_patch16_224 is a strong start on a GPU
  pretrained: true       # downloads weights; false trains from scratch
  dim: 128               # length of the embedding
transforms:
  train: {{name: augment, size: {size}}}
  eval: {{name: resize_normalize, size: {size}}}
sampler:
{why}  name: balanced
  n_labels: {n_labels}
  n_instances: {n_instances}
loss:
  name: triplet
  margin: 0.2            # distances of normalised embeddings lie in [0, 2]
  miner: hard_triplets
optimizer: {{name: adamw, lr: 0.0003, weight_decay: 0.01}}
scheduler: {{name: cosine, warmup_epochs: 1}}
training:
  epochs: 20
validation:
  metrics: {{cmc: [1, 5, 10], precision: [5], map: [5], map_r: true}}
  monitor: map@r         # chooses best.ckpt
"""


def init(source: Path, target: Path | None) -> None:
    """Write a starter spec for a table.

    Raises:
        DataError: the table cannot be read.
        UsageError: the target exists, or the table has fewer than two train labels.
        ResourceError: the target cannot be written.
    """
    from metricli.data.inspection import inspect_table
    from metricli.data.table import read_table

    if target is not None and target.exists():
        raise UsageError(f"{str(target)!r} exists already", hint="give another --out")
    if target is not None and not target.parent.is_dir():
        raise UsageError(f"--out {str(target)!r}: the folder {str(target.parent)!r} does not exist")
    facts = read_table(source).facts()
    found = inspect_table(source)
    sides = [found.images[side][1] for side in ("width", "height") if found.images.get(side)]
    if not found.suggested:
        what = "train rows" if facts.train_rows == 0 else "second train label"
        raise UsageError(f"{str(source)!r} has no {what} to write a training spec for")
    text = _STARTER.format(
        table=source.name,
        name=shlex.quote(target.name) if target else "spec.yaml",
        stem=_quoted(_ascii(source.absolute().parent.name) or "run"),
        path=_quoted(os.path.relpath(source, target.parent if target else Path.cwd())),
        rows=facts.train_rows,
        labels=facts.train_labels,
        validation=facts.validation_rows,
        size=min(224, max(32, round(max(sides) / 32) * 32)) if sides else 224,
        why="".join(f"  # {reason}\n" for reason in found.suggested["why"]),
        n_labels=found.suggested["n_labels"],
        n_instances=found.suggested["n_instances"],
    )
    if target is None:
        out(text.rstrip())
    else:
        try:
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
            raise ResourceError(f"cannot write {str(target)!r}: {error.strerror}") from None
        out(f"wrote {target}; next: metricli train {shlex.quote(str(target))} --dry-run")


def _ascii(name: str) -> str:
    """A folder's name as `name` of a spec takes it."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name).lstrip("._-")


def _quoted(text: str) -> str:
    """Text as YAML; `2024` and `true` need quotes to be text."""
    import json

    from metricli.specs.document import parse

    plain = all(c.isalnum() or c in "._-/" for c in text) and parse(text, "").data == text
    return text if plain else json.dumps(text, ensure_ascii=False)


def env(*, as_json: bool) -> None:
    """Print versions and a few harmless variables."""
    from metricli.runs.directory import environment

    found = environment()
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, **found})
        return
    rows = [[key, str(found[key])] for key in ("python", "platform", "cores")]
    rows += [[package, version] for package, version in found["packages"].items()]
    rows += [[name, value] for name, value in found["variables"].items()]
    table(["", ""], rows, numbers_from=9)
