"""One file of tensors and JSON, without pickle: safetensors with a digest over all it means.

The digest (sha256) covers the JSON and each tensor's name, type, shape and bytes, so one flipped bit is
noticed. A file is written under a temporary name, fsynced and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metricli.data.disk import fsync
from metricli.errors import CheckpointError, ResourceError

FORMAT = "metricli"
FORMAT_VERSION = 1

__all__ = [
    "FORMAT_VERSION",
    "file_sha256",
    "pack",
    "read_tensor_file",
    "unpack",
    "write_tensor_file",
]


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Write tensors and JSON-able `meta` atomically; returns the digest.

    Raises:
        ResourceError: the file cannot be written (a full disk, a read-only folder); what stood there stays.
    """
    owned = _owned(tensors)
    text = json.dumps(meta, allow_nan=True)
    digest = _digest(owned, text)
    header = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "meta": text, "sha256": digest}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # by the umask; safetensors puts a file of mode 0600 in its place
        save_file(owned, part, metadata=header)
        part.chmod(stat.S_IMODE(mode))
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
        fsync(path.parent)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error)
        hint = "free some space" if full else "check the folder and its permissions"
        raise ResourceError(f"cannot write {str(path)!r}: {error}", hint=hint) from None
    return digest


def read_tensor_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors (on the CPU), meta and digest of a file that passes its own check.

    Raises:
        CheckpointError: the file is missing, damaged, of another program or of a newer format.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"the checkpoint {str(path)!r} {what}")
    foreign = f"{str(path)!r} is not a metricli checkpoint, or its head is damaged"
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CheckpointError(foreign)
            _check_version(path, header.get("format_version", ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{foreign} ({error})") from None
    text, digest = header.get("meta", ""), header.get("sha256", "")
    if _digest(tensors, text) != digest:
        raise CheckpointError(
            f"{str(path)!r} is damaged: its content does not match its sha256",
            hint="take another copy, or resume the run to write a new one",
        )
    return tensors, json.loads(text), digest


def _check_version(path: Path, version: str) -> None:
    if version != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{str(path)!r} has checkpoint format {version!r}, and this metricli reads {FORMAT_VERSION}",
            hint="use the metricli version that wrote it, or a newer one",
        )


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors with storage of their own, which safetensors asks for."""
    seen: set[int] = set()
    owned = {}
    for name, tensor in tensors.items():
        cpu = tensor.detach().cpu().contiguous()
        if cpu.untyped_storage().data_ptr() in seen:
            cpu = cpu.clone()
        seen.add(cpu.untyped_storage().data_ptr())
        owned[name] = cpu
    return owned


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            data: Any = tensor.reshape(-1).view(torch.uint8).numpy()
            digest.update(data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack(tree: Any, tensors: dict[str, Tensor], prefix: str) -> Any:
    """JSON-able form of nested dicts, lists, scalars and tensors; the tensors go into `tensors` by name.

    Raises:
        TypeError: the tree holds anything else.
    """
    if isinstance(tree, Tensor):
        name = f"{prefix}.{len(tensors)}"
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"items": [[pack(k, tensors, prefix), pack(v, tensors, prefix)] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return [pack(item, tensors, prefix) for item in tree]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a state holds a {type(tree).__name__}, which a checkpoint cannot store: {tree!r}")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `pack` was given; tuples come back as lists."""
    if isinstance(packed, dict):
        if "tensor" in packed:
            return tensors[packed["tensor"]]
        return {unpack(k, tensors): unpack(v, tensors) for k, v in packed["items"]}
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    return packed
