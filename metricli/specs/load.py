"""From a file, a mapping or a spec object to a validated spec, with every problem at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from metricli.data.kind import named, not_a_file
from metricli.errors import Problem, SpecError, UsageError
from metricli.specs.base import SpecModel, show
from metricli.specs.document import MAX_BYTES, Document, apply_override, dotted, parse, too_large
from metricli.specs.plugin import PluginSpec
from metricli.specs.suggest import did_you_mean
from metricli.specs.train import TrainSpec
from metricli.specs.unregistered import unregistered_problems
from metricli.specs.validate import ValidationSpec

if TYPE_CHECKING:
    from metricli.data.facts import TableFacts

_LONGEST = 2000
"""Characters of a problem; a user's word in it may be longer."""
S = TypeVar("S", bound=SpecModel)
Source = str | Path | Mapping[str, Any] | SpecModel


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """A validated spec, the data it was written as, and the folder its paths start from."""

    spec: S
    document: Document
    base: Path

    @property
    def written(self) -> dict[str, Any]:
        """The spec as written, overrides applied."""
        data: dict[str, Any] = self.document.data
        return data


def read_document(source: Source) -> tuple[Document, Path]:
    """The data of a spec and the folder its paths are relative to.

    Raises:
        SpecError: a file that is no YAML.
        UsageError: a file that cannot be read.
    """
    if isinstance(source, SpecModel):
        return Document("the spec", source.model_dump(mode="json")), Path.cwd()
    if isinstance(source, Mapping):
        return Document("the spec", _plain_copy(source)), Path.cwd()
    path = Path(source)
    return document_of(_bytes_of(path), named(path)), path.absolute().parent


def _bytes_of(path: Path) -> bytes:
    """A spec file, at most a byte more of it than a spec may have."""
    what = not_a_file(path)
    if what is not None:
        raise UsageError(f"the spec {str(path)!r} is {what}, expected a YAML file")
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        folder = path.parent
        siblings = (
            [p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")] if folder.is_dir() else []
        )
        near = did_you_mean(path.name, siblings)
        hint = "" if near else "`metricli init TABLE` writes one"
        raise UsageError(f"no spec file {str(path)!r}{near}", hint=hint) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the spec {str(path)!r}: {reason}") from None


def document_of(data: bytes, source: str) -> Document:
    """The bytes of a spec file as data.

    Raises:
        SpecError: it is no YAML, or too large.
        UsageError: it is no UTF-8.
    """
    if len(data) > MAX_BYTES:
        raise too_large(source)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the spec {source!r} is not UTF-8 text: {error.reason} at byte {error.start}",
            hint="save it as UTF-8",
        ) from None
    return parse(text, source)


def _plain_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_copy(item) for key, item in value.items()}
    if isinstance(value, SpecModel):
        return value.model_dump(mode="json")
    return [_plain_copy(item) for item in value] if isinstance(value, list) else value


def load_spec(source: Source, model: type[S], overrides: Sequence[str] = ()) -> Loaded[S]:
    """Read, override and validate a spec.

    Raises:
        SpecError: with every problem of the file, its plugins and the overrides.
        UsageError: the file cannot be read.
    """
    if isinstance(source, model) and not overrides:
        return Loaded(source, Document("the spec", source.model_dump(mode="json")), Path.cwd())
    document, base = read_document(source)
    return validate_document(document, base, model, overrides)


def validate_document(
    document: Document, base: Path, model: type[S], overrides: Sequence[str] = ()
) -> Loaded[S]:
    """Apply the overrides and validate.

    Raises:
        SpecError: with every problem.
    """
    for word in overrides:
        apply_override(document, word)
    problems = list(document.problems)
    if document.data is None:
        raise SpecError(
            document.source, [*problems, Problem("", "the spec is empty; `metricli init TABLE` writes one")]
        )
    if not isinstance(document.data, dict):
        what = f"expected a mapping of blocks such as data, extractor and loss, got {show(document.data)}"
        raise SpecError(document.source, [*problems, Problem("", what)])
    try:
        spec = model.model_validate(document.data, context={"base": str(base)})
    except ValidationError as error:
        for item in error.errors(include_url=False):
            if tuple(item["loc"]) in document.unread:
                continue
            problems.append(_placed(document, tuple(item["loc"]), Problem("", item["msg"])))
        raise SpecError(document.source, problems) from None
    if problems:
        raise SpecError(document.source, problems)
    return Loaded(spec, document, base)


def _placed(document: Document, loc: tuple[str | int, ...], problem: Problem) -> Problem:
    message = problem.message
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]}…{message[-_LONGEST // 2 :]}"
    if document.is_overridden(loc):
        return replace(problem, path=dotted(loc), message=f"{message} (from the command line)")
    return replace(problem, path=dotted(loc), message=message, line=document.line(loc))


def check_spec(loaded: Loaded[S], table: TableFacts | None) -> list[Problem]:
    """Ask every plugin, and the spec itself, for problems between the blocks; the warnings come back.

    Of a spec that is not of training, only the plugins in its `validation` block are asked: of the rest, much
    is raw data that a check could not read.

    Raises:
        SpecError: at least one problem is an error (all of them are listed).
    """
    found = [
        _placed(loaded.document, tuple(_steps(problem.path)), problem)
        for problem in _problems(loaded.spec, table)
    ]
    errors = [problem for problem in found if problem.severity == "error"]
    if errors:
        raise SpecError(loaded.document.source, errors)
    return found


def _steps(path: str) -> list[str | int]:
    return [int(step) if step.isdecimal() else step for step in path.split(".") if step]


def _problems(spec: SpecModel, table: TableFacts | None) -> Iterator[Problem]:
    validation = getattr(spec, "validation", None)
    if not isinstance(validation, ValidationSpec):
        return
    if validation.search.index is not None and find_spec("faiss") is None:
        yield Problem(
            "validation.search.index", "needs faiss: pip install 'metricli[faiss]', or set it to null"
        )
    if not isinstance(spec, TrainSpec):
        yield from _problems_of_plugins(spec, validation, "validation", table)
        return
    if validation.monitor_problem:
        yield Problem("validation.monitor", validation.monitor_problem)
    if spec.training.patience is not None and spec.validation.unjudged(table):
        what = (
            f"training never stops early: the table has no validation rows to take {spec.validation.monitor} "
            "from; add some, or set validation.monitor: loss"
        )
        yield Problem("training.patience", what, severity="warning")
    training = spec.training
    if training.thaw_epochs and training.freeze_epochs + training.thaw_epochs > training.epochs:
        what = (
            f"the first stages of the backbone never train: freeze_epochs {training.freeze_epochs} + "
            f"thaw_epochs {training.thaw_epochs} is more than the {training.epochs} epochs"
        )
        yield Problem("training.thaw_epochs", what, severity="warning")
    yield from _problems_of_average(spec, table)
    yield from unregistered_problems(plugins_of(spec))
    yield from _problems_of_plugins(spec, spec, "", table)


def _problems_of_average(spec: TrainSpec, table: TableFacts | None) -> Iterator[Problem]:
    """An average of the weights that a run is too short to leave its first ones behind in."""
    ema, steps = spec.training.ema, None if table is None else spec.steps(table)
    if ema is None or ema.warmup or steps is None:
        return
    share = ema.decay ** (steps - 1)  # it starts as the weights after the first step
    if share > 0.1:
        what = (
            f"after the {steps} steps of this run {share:.0%} of the average are still the weights of the "
            "first step; set training.ema.warmup: true, or lower it"
        )
        yield Problem("training.ema.decay", what, severity="warning")


def _problems_of_plugins(
    spec: SpecModel, block: BaseModel, place: str, table: TableFacts | None
) -> Iterator[Problem]:
    for path, plugin in plugins_of(block, place):
        try:
            found = [
                replace(problem, path=".".join(filter(None, (path, problem.path))))
                for problem in plugin.check(spec, table)
            ]
        except Exception as error:  # a plugin is someone else's code
            home = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
            what = f"the check of this {plugin.singular} ({home}) failed: {type(error).__name__}: {error}"
            found = [Problem(path, what)]
        yield from found


def plugins_of(model: BaseModel, path: str = "") -> Iterator[tuple[str, PluginSpec]]:
    """Every plugin in a spec with its dotted path, outer ones first."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        place = f"{path}.{name}" if path else name
        items = enumerate(value) if isinstance(value, list) else [(None, value)]
        for i, item in items:
            here = place if i is None else f"{place}.{i}"
            if isinstance(item, PluginSpec):
                yield here, item
            if isinstance(item, BaseModel):
                yield from plugins_of(item, here)
