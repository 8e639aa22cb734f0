"""One file of tensors and JSON, without pickle: safetensors with a digest over all it means.

The digest (sha256) covers the JSON and each tensor's name, type, shape and bytes, so one flipped bit is
noticed. A file is written under a temporary name, fsynced and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from metricli.components.tensorbytes import (
    Unreadable,
    open_regular,
    parse_json,
    read_safetensors,
    shown,
)
from metricli.data.disk import fsync, remedy
from metricli.errors import CheckpointError, ResourceError

FORMAT = "metricli"
FORMAT_VERSION = 1
_OS_ERROR = re.compile(r"\(os error (\d+)\)")

__all__ = [
    "FORMAT_VERSION",
    "file_sha256",
    "not_ours",
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
        with contextlib.suppress(OSError):  # what keeps it from being written may keep it from going, too
            part.unlink(missing_ok=True)
        number = _errno_of(error)
        reason = str(error) if number is None else os.strerror(number)
        raise ResourceError(f"cannot write {str(path)!r}: {reason}", hint=remedy(number)) from None
    return digest


def _errno_of(error: OSError | SafetensorError) -> int | None:
    """safetensors tells it in words alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    told = _OS_ERROR.search(str(error))
    return int(told[1]) if told else None


def read_tensor_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors (on the CPU), meta and digest of a file that passes its own check; anyone may have made it.

    Raises:
        CheckpointError: the file is missing, damaged, of another program or of another format.
    """
    try:
        file = open_regular(path)
    except Unreadable as error:
        raise CheckpointError(f"the checkpoint {str(path)!r} {error}") from None
    foreign = f"{str(path)!r} is not a metricli checkpoint, or its head is damaged"
    try:
        with file:
            size = os.fstat(file.fileno()).st_size
            header, tensors = read_safetensors(file)
    except (Unreadable, OSError) as error:
        raise CheckpointError(f"{foreign} ({error})") from None
    if header.get("format") != FORMAT:
        raise CheckpointError(foreign)
    _check_version(path, header.get("format_version", ""))
    text, digest = header.get("meta", ""), header.get("sha256", "")
    if _digest(tensors, text) != digest:
        raise CheckpointError(
            f"{str(path)!r} is damaged: its content does not match its sha256",
            hint="take another copy",
        )
    try:
        meta = parse_json(text, size)
    except Unreadable as error:
        raise not_ours(path, "meta", str(error)) from None
    if not isinstance(meta, dict):
        raise not_ours(path, "meta", f"expected an object, got {shown(meta)}")
    return tensors, meta, digest


def not_ours(path: Path, where: str, what: str) -> CheckpointError:
    """The error of a file whose digest is right and whose content is not."""
    return CheckpointError(
        f"{str(path)!r} is damaged or was not written by metricli: {where}: {what}",
        hint="take another copy, from whom you trust",
    )


def _check_version(path: Path, version: str) -> None:
    if version == str(FORMAT_VERSION):
        return
    has = f"{str(path)!r} has checkpoint format"
    if not re.fullmatch("[0-9]{1,6}", version):
        raise CheckpointError(f"{has} {shown(version)}, which is none: it is damaged, or not of metricli")
    if int(version) > FORMAT_VERSION:
        raise CheckpointError(
            f"{has} {int(version)}, newer than this metricli reads ({FORMAT_VERSION})",
            hint="upgrade metricli",
        )
    raise CheckpointError(
        f"{has} {int(version)}, older than this metricli reads ({FORMAT_VERSION})",
        hint="use the metricli version that wrote it",
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
    digest = hashlib.sha256(text.encode(errors="surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode(errors="surrogatepass"))
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
    """The tree that `pack` was given; tuples come back as lists.

    Raises:
        ValueError: `pack` gives no such form, or a tensor is missing.
    """
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if packed.keys() == {"tensor"}:
        name = packed["tensor"]
        if not isinstance(name, str) or name not in tensors:
            raise ValueError(f"there is no tensor {shown(name)}")
        return tensors[name]
    pairs = packed.get("items")
    if packed.keys() != {"items"} or not isinstance(pairs, list):
        raise ValueError(f"expected a tensor or items, got {shown(list(packed))}")
    found = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or isinstance(pair[0], (dict, list)):
            raise ValueError(f"expected a key and its value, got {shown(pair)}")
        found[pair[0]] = unpack(pair[1], tensors)
    return found
