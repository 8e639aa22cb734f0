"""best.ckpt, all that inference needs in one file, and last.ckpt, all that a resume needs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from metricli.components.tensorbytes import shown
from metricli.components.tensorfile import (
    file_sha256,
    not_ours,
    pack,
    read_tensor_file,
    write_tensor_file,
)
from metricli.errors import CheckpointError, SpecError
from metricli.reports import Metrics
from metricli.runs.checkpoint_meta import check_best_meta, check_last_meta, state_of
from metricli.specs.base import SpecModel
from metricli.specs.document import Document
from metricli.specs.load import Loaded, Source, read_document, validate_document
from metricli.specs.plugin import PluginSpec
from metricli.specs.train import TrainSpec
from metricli.specs.unregistered import is_registered
from metricli.specs.validate import InferenceSpec

I = TypeVar("I", bound=InferenceSpec)  # noqa: E741

Saved = tuple[dict[str, Any], dict[str, Any]]
"""State and meta of a last.ckpt."""

_EXTRACTOR = "extractor."
_TRIES = 5


@dataclass(frozen=True)
class BestCheckpoint:
    """What a best.ckpt holds."""

    path: Path
    sha256: str
    weights: dict[str, Tensor]
    spec: dict[str, Any]
    base: Path
    extractor: dict[str, Any]
    eval_transform: dict[str, Any]
    labels: list[str]
    metrics: Metrics
    epoch: int
    step: int | None = None
    """The step after which a last.ckpt was saved; None of a best.ckpt."""

    @property
    def notice(self) -> str:
        """What a user has to know of these weights; "" for nothing."""
        where = f"{self.path} holds the weights after step {self.step}"
        return "" if self.step is None else f"{where}, which need not be the best of its run"

    @property
    def dtype(self) -> torch.dtype:
        """float64 if it was trained so, else float32."""
        doubles = any(tensor.dtype == torch.float64 for tensor in self.weights.values())
        return torch.float64 if doubles else torch.float32

    def load_into(self, extractor: nn.Module) -> None:
        """Load the weights.

        Raises:
            CheckpointError: they do not fit, which only an override of the extractor can cause.
        """
        try:
            extractor.load_state_dict(self.weights)
        except RuntimeError as error:
            what = str(error).splitlines()[-1].strip()
            raise CheckpointError(
                f"the weights of {str(self.path)!r} do not fit the extractor: {what}"
            ) from None


def save_best(
    path: Path,
    *,
    extractor: nn.Module,
    eval_transform: Any,
    loaded: Loaded[TrainSpec],
    labels: Sequence[str],
    metrics: Metrics,
    epoch: int,
) -> None:
    """Write a self-contained checkpoint for inference.

    Raises:
        ResourceError: it cannot be written; an older one stays whole.
    """
    model = model_meta(extractor, eval_transform, loaded, labels)
    meta = {"kind": "best", "metricli": version("metricli"), **model, "metrics": metrics, "epoch": epoch}
    weights = {_EXTRACTOR + name: tensor for name, tensor in extractor.state_dict().items()}
    write_tensor_file(path, weights, meta)


def model_meta(
    extractor: nn.Module, eval_transform: Any, loaded: Loaded[TrainSpec], labels: Sequence[str]
) -> dict[str, Any]:
    """What inference has to know beside the weights; plain data."""
    spec = loaded.spec
    resolved = getattr(extractor, "resolved", {})
    return {
        "spec": loaded.written,
        "base": str(loaded.base),
        "extractor": spec.extractor.model_dump(mode="json") | resolved,
        "eval_transform": spec.transforms.eval.model_dump(mode="json")
        | getattr(eval_transform, "resolved", {}),
        "labels": list(labels),
    }


def read_best(path: Path) -> BestCheckpoint:
    """Read what a best.ckpt, or a last.ckpt, holds for inference, and check its digest.

    Of a last.ckpt these are the weights that would have been judged after its step; its metrics are none.

    Raises:
        CheckpointError: missing, damaged, or of another program.
    """
    tensors, meta, digest = read_tensor_file(path)
    if meta.get("kind") == "last":
        return _inference_of_last(path, tensors, meta, digest)
    if meta.get("kind") != "best":
        raise not_ours(path, "kind", f"expected best or last, got {shown(meta.get('kind'))}")
    check_best_meta(path, meta, tensors)
    return BestCheckpoint(
        path=path,
        sha256=digest,
        weights={name.removeprefix(_EXTRACTOR): tensor for name, tensor in tensors.items()},
        spec=meta["spec"],
        base=Path(meta["base"]),
        extractor=meta["extractor"],
        eval_transform=meta["eval_transform"],
        labels=meta["labels"],
        metrics=meta["metrics"],
        epoch=meta["epoch"],
    )


def _inference_of_last(
    path: Path, tensors: dict[str, Tensor], meta: dict[str, Any], digest: str
) -> BestCheckpoint:
    check_last_meta(path, meta)
    model, state = meta.get("model"), state_of(path, meta["state"], tensors)
    if model is None:
        raise CheckpointError(
            f"{str(path)!r} is of an older metricli, and for --resume only",
            hint="give the best.ckpt beside it",
        )
    return BestCheckpoint(
        path=path,
        sha256=digest,
        weights=state["ema"] or state["extractor"],
        spec=model["spec"],
        base=Path(model["base"]),
        extractor=model["extractor"],
        eval_transform=model["eval_transform"],
        labels=meta["labels"],
        metrics={},
        epoch=meta["progress"]["epoch"],
        step=meta["progress"]["step"],
    )


def read_best_and_sha256(path: Path) -> tuple[BestCheckpoint, str]:
    """`read_best`, and the sha256 of that very file, which a run may be about to replace.

    Raises:
        CheckpointError: missing, damaged, or of another program.
    """
    for _ in range(_TRIES):
        seen = identity(path)
        best = read_best(path)
        with suppress(OSError):
            sha256 = file_sha256(path)
            if identity(path) == seen:
                return best, sha256
    raise CheckpointError(f"{str(path)!r} changes while it is read", hint="give a file that stays as it is")


def identity(path: Path) -> tuple[int, int] | None:
    """By what a file is told from one that has taken its name; None where there is none."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_ino, seen.st_mtime_ns


def damage_of(path: Path) -> str:
    """What is wrong with a checkpoint file as such; nothing if it is whole."""
    if not path.is_file():
        return f"{path} is gone"
    try:
        read_tensor_file(path)
    except CheckpointError as error:
        return error.message
    return ""


def spec_of(
    best: BestCheckpoint,
    source: Source | None,
    model: type[I],
    data: Mapping[str, Any],
    overrides: Sequence[str],
) -> Loaded[I]:
    """The spec that a verb follows: the checkpoint's, or `source` with the checkpoint's model and transform.

    `data` replaces keys of the data block; overrides come last.

    Raises:
        SpecError: with every problem.
    """
    if source is None:
        document, base = Document(f"the spec in {best.path.name}", copy.deepcopy(best.spec)), best.base
    else:
        document, base = read_document(source)
    if isinstance(document.data, dict):
        if source is None:
            document.data.pop("compute", None)  # where it was trained says nothing of where it is used
        given = source if isinstance(source, SpecModel) else None
        extractor, transforms = getattr(given, "extractor", None), getattr(given, "transforms", None)
        document.data["extractor"] = _made_by(extractor, best.extractor)
        document.data["transforms"] = {
            "eval": _made_by(getattr(transforms, "eval", None), best.eval_transform)
        }
        replace_data(document, data)
    try:
        return validate_document(document, base, model, overrides)
    except SpecError as error:
        if source is None and any(problem.path in _OF_MODEL for problem in error.problems):
            error.hint = error.hint or _LONE
        raise


_OF_MODEL = ("extractor.name", "transforms.eval.name")
_LONE = (
    "install the package that it was trained with; if that was an object of a program, give validate or "
    "predict in Python a spec that holds it"
)


def _made_by(plugin: object, words: dict[str, Any]) -> Any:
    """The words of a checkpoint; of a plugin object by that name that is not installed, one of its class."""
    if not isinstance(plugin, PluginSpec) or is_registered(plugin):
        return words
    return type(plugin).model_validate(words) if getattr(plugin, "name", None) == words.get("name") else words


def replace_data(document: Document, data: Mapping[str, Any]) -> None:
    """Put `--data` and `--root` into the data block; a new table forgets the old root."""
    if not data or not isinstance(document.data, dict):
        return
    block = dict(document.data.get("data") or {})
    if "table" in data:
        block.pop("root", None)
    document.data["data"] = block | dict(data)


def save_last(path: Path, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write everything that a resume needs: nested `state` with tensors, and plain `meta`.

    Raises:
        ResourceError: it cannot be written; an older one stays whole.
    """
    tensors: dict[str, Tensor] = {}
    packed = pack(dict(state), tensors, "state")
    write_tensor_file(
        path, tensors, {"kind": "last", "metricli": version("metricli"), "state": packed, **meta}
    )


def read_last(path: Path) -> Saved:
    """The state and meta of a last.ckpt.

    Raises:
        CheckpointError: missing, damaged, of another program, or a best.ckpt.
    """
    tensors, meta, _ = read_tensor_file(path)
    if meta.get("kind") != "last":
        raise CheckpointError(f"{str(path)!r} is not a last.ckpt, which a resume needs")
    check_last_meta(path, meta)
    return state_of(path, meta.pop("state"), tensors), meta
