"""The base of every spec model: strict, closed, frozen, and with errors written for people."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError

from metricli.specs.suggest import did_you_mean

EXPLAINED = "explained"
HUB_PREFIXES = ("hf_hub:", "hf-hub:")


def spec_error(message: str) -> PydanticCustomError:
    """An error whose text reaches the user as it is; raise it in a validator of a spec or plugin."""
    return PydanticCustomError(EXPLAINED, "{message}", {"message": message})


def error_at(loc: tuple[str | int, ...], message: str, given: Any = None) -> ValidationError:
    """The same at a place below the model whose validator raises it."""
    details = InitErrorDetails(type=spec_error(message), loc=loc, input=given)
    return ValidationError.from_exception_data("spec", [details])


class SpecModel(BaseModel):
    """A block of a spec: unknown keys refused, no type coercion, immutable.

    Validation errors are explained at the level where they arise, so nested plugins name their own keys.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _explain_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(_with_default_names(cls, data))
        except ValidationError as error:
            details = [_explain(cls, item) for item in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, details) from None

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        fields = handler.resolve_ref_schema(found).get("properties", {})
        for key in _default_names(cls):
            factory: Any = cls.model_fields[key].default_factory
            fields[key]["anyOf"].append(json_schema_of(type(factory()), handler))
        return found


def json_schema_of(model: type[SpecModel], handler: GetJsonSchemaHandler) -> JsonSchemaValue:
    """The JSON schema of a model within another's; `handler` alone would skip the model's own additions."""
    return model.__get_pydantic_json_schema__(model.__pydantic_core_schema__, handler)


def _default_names(model: type[BaseModel]) -> dict[str, str]:
    """The fields whose default is a plugin (see `named` in plugin.py), and its name."""
    names = {
        key: getattr(field.default_factory, "default_name", None) for key, field in model.model_fields.items()
    }
    return {key: name for key, name in names.items() if name is not None}


def _with_default_names(model: type[BaseModel], data: Any) -> Any:
    """`optimizer: {lr: 1e-4}` is one of the default optimizer."""
    if not isinstance(data, Mapping):
        return data
    unnamed = {
        key: {"name": name, **data[key]}
        for key, name in _default_names(model).items()
        if isinstance(data.get(key), Mapping) and "name" not in data[key]
    }
    return {**data, **unnamed} if unnamed else data


def _resolve_path(path: str, info: ValidationInfo) -> str:
    base = (info.context or {}).get("base")
    if path.startswith(HUB_PREFIXES):
        return path
    if not path:
        raise spec_error("must not be empty")
    expanded = Path(os.path.expanduser(path))  # unlike Path.expanduser, leaves an unknown ~user as it is
    return os.path.normpath(Path(base) / expanded) if base else str(expanded)


SpecPath = Annotated[str, AfterValidator(_resolve_path)]
"""A path relative to the spec file (to the working directory in Python); `hf_hub:` names pass as they are."""

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
}
_LIMITS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _explain(model: type[BaseModel], error: ErrorDetails) -> InitErrorDetails:
    kind, loc, given = error["type"], error["loc"], error["input"]
    if kind == EXPLAINED:
        message = error["msg"]
    elif kind in ("model_type", "model_attributes_type") and not loc:
        message = f"expected a mapping such as {{{_first_key(model)}: ...}}, got {show(given)}"
    elif kind == "extra_forbidden":
        message = "unknown key" + did_you_mean(str(loc[-1]), model.model_fields)
        if not message.endswith("?"):
            message += f"; known: {', '.join(model.model_fields)}"
    else:
        message = _sentence(kind, error.get("ctx", {}), given, error["msg"])
    return InitErrorDetails(type=spec_error(message), loc=loc, input=given)


def _first_key(model: type[BaseModel]) -> str:
    """The first key that a mapping of this model must have, or may."""
    fields = model.model_fields
    return next((key for key, field in fields.items() if field.is_required()), next(iter(fields), "name"))


def _sentence(kind: str, ctx: Mapping[str, Any], given: Any, fallback: str) -> str:
    if kind == "missing":
        return "required, but missing"
    if kind in _LIMITS:
        key, words = _LIMITS[kind]
        limit = int(ctx[key]) if float(ctx[key]).is_integer() else ctx[key]
        return f"must be {words} {limit}, got {show(given)}"
    if kind == "literal_error":
        names = [word.strip("' ") for word in str(ctx["expected"]).replace(" or ", ", ").split(",")]
        near = did_you_mean(given, names) if isinstance(given, str) else ""
        return f"must be {ctx['expected']}, got {show(given)}{near}"
    if kind == "finite_number":
        return f"must be a finite number, got {show(given)}"
    if kind in ("too_short", "too_long"):
        limit = f"at least {ctx['min_length']}" if kind == "too_short" else f"at most {ctx['max_length']}"
        return f"expected a list of {limit} items, got {show(given)}"
    if kind == "string_pattern_mismatch":
        return f"must match {ctx['pattern']}, got {show(given)}"
    if kind in ("value_error", "assertion_error"):  # raised by a plugin's own validator
        return str(ctx["error"])
    expected = _TYPES.get(kind.removesuffix("_type"))
    if expected:
        return f"expected {expected}, got {show(given)}"
    return fallback[:1].lower() + fallback[1:]


def show(value: Any) -> str:
    """A short repr of a user's value for a message."""
    if value is None:
        return "nothing (null)"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
