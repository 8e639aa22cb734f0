"""best.ckpt, all that inference needs in one file, and last.ckpt, all that a resume needs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from metricli.components.tensorfile import pack, read_tensor_file, unpack, write_tensor_file
from metricli.errors import CheckpointError
from metricli.reports import Metrics
from metricli.specs.document import Document
from metricli.specs.load import Loaded, Source, read_document, validate_document
from metricli.specs.train import TrainSpec
from metricli.specs.validate import InferenceSpec

I = TypeVar("I", bound=InferenceSpec)  # noqa: E741

Saved = tuple[dict[str, Any], dict[str, Any]]
"""State and meta of a last.ckpt."""

_EXTRACTOR = "extractor."


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
    spec = loaded.spec
    resolved = getattr(extractor, "resolved", {})
    meta = {
        "kind": "best",
        "metricli": version("metricli"),
        "spec": loaded.written,
        "base": str(loaded.base),
        "extractor": spec.extractor.model_dump(mode="json") | resolved,
        "eval_transform": spec.transforms.eval.model_dump(mode="json")
        | getattr(eval_transform, "resolved", {}),
        "labels": list(labels),
        "metrics": metrics,
        "epoch": epoch,
    }
    weights = {_EXTRACTOR + name: tensor for name, tensor in extractor.state_dict().items()}
    write_tensor_file(path, weights, meta)


def read_best(path: Path) -> BestCheckpoint:
    """Read a best.ckpt and check its digest.

    Raises:
        CheckpointError: missing, damaged, of another program, or a last.ckpt.
    """
    tensors, meta, digest = read_tensor_file(path)
    if meta.get("kind") != "best":
        raise CheckpointError(
            f"{str(path)!r} is a {meta.get('kind', 'foreign')} checkpoint, which is for --resume",
            hint="give the best.ckpt beside it",
        )
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
        document.data["extractor"] = best.extractor
        document.data["transforms"] = {"eval": best.eval_transform}
        replace_data(document, data)
    return validate_document(document, base, model, overrides)


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
    return unpack(meta.pop("state"), tensors), meta
