"""Local weights for an extractor: a .safetensors, a .pth without code, or a checkpoint of a run.

Anyone may have made such a file: it is read without running anything of it.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from metricli.components.tensorbytes import Unreadable, open_regular, read_safetensors, shown
from metricli.components.tensorfile import FORMAT, not_ours, read_tensor_file, unpack
from metricli.data.disk import checkpoint_in
from metricli.errors import CheckpointError

__all__ = ["load_weights", "read_weights", "tensors_only"]

_NESTED = ("state_dict", "model", "model_state_dict")
_FORCE = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


def load_weights(extractor: nn.Module, backbone: nn.Module, path: str) -> None:
    """Load local weights into an extractor: all of it from a checkpoint of a run, else the backbone.

    Classifier layers that the backbone does not have are left aside; every weight that it has must be there.

    Raises:
        CheckpointError: the file cannot be read, or it lacks a weight of the model or has another shape.
    """
    state, whole = read_weights(Path(path))
    target: nn.Module = extractor if whole else backbone
    own = target.state_dict()
    state = _without_prefix(state, own)
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    shapes = [name for name in own if name in state and not _fits(state[name], own[name])]
    if missing or shapes:
        names = ", ".join((missing + shapes)[:3]) + (", ..." if len(missing + shapes) > 3 else "")
        what = f"lacks {len(missing)} and misshapes {len(shapes)} of the model's {len(own)} weights"
        raise CheckpointError(f"{path!r} {what}: {names}", hint="is it of the same model?")
    target.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def read_weights(path: Path) -> tuple[dict[str, Tensor], bool]:
    """A state dict (on the CPU) from a file or a run directory, and whether it is a whole extractor's.

    Raises:
        CheckpointError: there is none that could be read without running code of its own.
    """
    if path.is_dir():
        found = checkpoint_in(path)
        if found is None:
            raise CheckpointError(
                f"the folder {str(path)!r} holds no checkpoint",
                hint="give a file of weights, a run directory or one of its checkpoints/step-...",
            )
        return _of_run(found), True
    if path.suffix == ".ckpt":
        return _of_run(path), True
    cannot = f"cannot read the weights {str(path)!r}"
    try:
        file = open_regular(path)
    except Unreadable as error:
        raise CheckpointError(f"the file of weights {str(path)!r} {error}") from None
    with file:
        if path.suffix != ".safetensors":
            return _by_name(_unpickled(path, file), path), False
        try:
            metadata, tensors = read_safetensors(file)
        except (Unreadable, OSError) as error:
            raise CheckpointError(f"{cannot}: {error}") from None
    if metadata.get("format") == FORMAT:  # a checkpoint by another name
        return _of_run(path), True
    return _by_name(tensors, path), False


@contextmanager
def tensors_only() -> Iterator[None]:
    """Whichever library loads weights within: of a pickle it takes tensors, and refuses all else."""
    before = {name: os.environ.pop(name, None) for name in _FORCE}
    os.environ[_FORCE[0]] = "1"
    try:
        yield
    finally:
        del os.environ[_FORCE[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _of_run(path: Path) -> dict[str, Tensor]:
    """The extractor of a best.ckpt, or the one that a last.ckpt would have judged."""
    try:
        tensors, meta, _ = read_tensor_file(path)
    except CheckpointError as error:
        if "is not a metricli checkpoint" in error.message and not error.hint:
            error.hint = "of another program (such as Lightning), name it .pth: its state_dict is then read"
        raise
    if meta.get("kind") != "last":
        return {n.removeprefix("extractor."): t for n, t in tensors.items() if n.startswith("extractor.")}
    try:
        state = unpack(meta.get("state"), tensors)
    except ValueError as error:
        raise not_ours(path, "state", str(error)) from None
    judged = (state.get("ema") or state.get("extractor")) if isinstance(state, dict) else None
    if not isinstance(judged, dict) or not all(_is_named(*item) for item in judged.items()):
        raise not_ours(path, "state.extractor", "expected weights by name")
    return judged


def _unpickled(path: Path, file: BinaryIO) -> Any:
    """What torch's unpickler of tensors and plain containers makes of a file."""
    cannot = f"cannot read the weights {str(path)!r}"
    try:
        if zipfile.is_zipfile(file):
            _refuse_inflating(file)
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except (Unreadable, OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{cannot}: {_first_line(error)}") from None
    except MemoryError:
        raise CheckpointError(f"{cannot}: it does not fit into the memory") from None
    except (
        Exception
    ) as error:  # pickle's own errors, one of which is a refused class, and what a bad one raises
        asked = re.search(r"GLOBAL ([\w.]{1,100})", str(error))
        what = f"it asks for {asked[1]}" if asked else "its pickle is none of torch.save"
        raise CheckpointError(
            f"the weights {str(path)!r} are more than tensors, refused: {what}",
            hint="save the state_dict alone, at best as .safetensors",
        ) from None


def _refuse_inflating(file: BinaryIO) -> None:
    """torch.save does not compress; what unpacks to more than it is was made to fill the memory."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if (
        any(m.compress_type != zipfile.ZIP_STORED for m in members)
        or sum(m.file_size for m in members) > size
    ):
        raise Unreadable("its archive is compressed, which torch.save does not do")


def _by_name(state: Any, path: Path) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    found = {k: v for k, v in state.items() if _is_named(k, v)} if isinstance(state, dict) else {}
    if not found:
        raise CheckpointError(f"the weights {str(path)!r} hold no tensors by name")
    return found


def _is_named(name: Any, value: Any) -> bool:
    """Whether this is a name and an ordinary tensor with its content."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    return value.device.type == "cpu" and value.layout == torch.strided and not value.is_quantized


def _fits(given: Tensor, own: Tensor) -> bool:
    return given.shape == own.shape and given.is_complex() == own.is_complex()


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0].split("\x1b")[0].strip()
    return line if line.isprintable() and line else shown(line) if line else type(error).__name__


def _without_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def hits(prefix: str) -> int:
        return sum(prefix + name in state for name in own)

    best = max(("", "module.", "backbone.", "model.", "encoder."), key=hits)
    return {name.removeprefix(best): tensor for name, tensor in state.items()}
