"""The base of every plugin model, and the rule that turns a name into one.

A kind (see kinds.py) is a direct subclass of `PluginSpec` made with `kind=`. A field typed with the kind
accepts `{name: triplet, margin: 0.2}`, the shorthand `triplet`, or an instance, and becomes the one model
that the entry point of that name leads to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from metricli.errors import Problem
from metricli.specs import registry
from metricli.specs.base import SpecModel, error_at, json_schema_of, show, spec_error

if TYPE_CHECKING:
    from metricli.data.facts import TableFacts

P = TypeVar("P", bound="PluginSpec")

KINDS: dict[str, type[PluginSpec]] = {}
"""Kind name (`losses`) -> its base class, filled by kinds.py."""


class PluginSpec(SpecModel):
    """The settings of one plugin; `build` (typed by its kind) makes the component from them."""

    kind: ClassVar[str] = ""
    singular: ClassVar[str] = ""

    def __init_subclass__(cls, kind: str = "", singular: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind:
            cls.kind, cls.singular = kind, singular
            KINDS[kind] = cls

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Problems of this plugin with the rest of the spec and, if known, the table.

        Paths are relative to the plugin's own place in the spec ("" is the plugin itself).
        """
        del spec, table
        return []

    @classmethod
    def is_kind(cls) -> bool:
        """Whether this class is a kind itself rather than one plugin of it."""
        return KINDS.get(cls.kind) is cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not cls.is_kind():
            return handler(source)
        return core_schema.with_info_plain_validator_function(
            lambda value, info: cls._resolve(value, info.context),
            serialization=core_schema.plain_serializer_function_ser_schema(_dump),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        if not cls.is_kind():
            return super().__get_pydantic_json_schema__(schema, handler)
        models = {
            info.name: info.model
            for info in registry.describe(cls.kind, cls.singular, cls)
            if info.model and info.status == "ok"
        }
        if not models:
            return {"not": {}, "description": f"no {cls.singular} is installed"}
        mappings = [json_schema_of(model, handler) for model in models.values()]
        options: list[JsonSchemaValue] = [{"required": ["name"], "anyOf": mappings}]
        bare = [
            name
            for name, model in models.items()
            if not any(field.is_required() for key, field in model.model_fields.items() if key != "name")
        ]
        if bare:
            options.insert(0, {"enum": bare, "description": f"the {cls.singular} with its defaults"})
        return {"anyOf": options}

    @classmethod
    def _resolve(cls, value: Any, context: Any = None) -> Self:
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping):
            raise spec_error(
                f"expected the name of a {cls.singular} or a mapping with 'name', got {show(value)}"
            )
        name = value.get("name")
        if not isinstance(name, str):
            installed = ", ".join(registry.names(cls.kind)) or "none"
            problem = "required, but missing" if name is None else f"expected text, got {show(name)}"
            raise error_at(("name",), f"{problem}; installed: {installed}", value)
        try:
            model = registry.load_plugin(cls.kind, cls.singular, name, cls)
        except registry.PluginError as error:
            raise error_at(("name",), str(error), name) from error
        try:
            found: Self = model.model_validate(dict(value), context=context)  # type: ignore[assignment]
        except ValidationError:
            raise
        except Exception as error:  # a validator of someone else's code
            home = f"{model.__module__}:{model.__qualname__}"
            what = f"validating this {cls.singular} ({home}) failed: {type(error).__name__}: {error}"
            raise spec_error(what) from error
        return found


def _dump(value: PluginSpec) -> Any:
    return value.model_dump(mode="json") if isinstance(value, PluginSpec) else value


@dataclass(frozen=True)
class _Named(Generic[P]):
    kind: type[P]
    default_name: str

    def __call__(self) -> P:
        return self.kind._resolve({"name": self.default_name})


def named(kind: type[P], name: str) -> Callable[[], P]:
    """A default factory: the plugin of that name, resolved when first needed.

    In a field with this default a mapping without a name is one of the default plugin.
    """
    return _Named(kind, name)
