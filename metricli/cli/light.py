"""The verbs that need no torch: plugins, schema, env; init and convert stand in starter.py."""

from __future__ import annotations

import inspect
from typing import Any

from metricli.cli.launch import print_json
from metricli.cli.lines import out, table
from metricli.errors import UsageError
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
