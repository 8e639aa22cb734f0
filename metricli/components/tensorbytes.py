"""Reading a safetensors file that anyone may have made: its own words are believed only where they fit.

The file is read once, from start to end, each tensor into memory of its own: what is checked afterwards is
what is used, whatever becomes of the file. (A mapped one could change or end the process.)
Nothing is allocated before all sizes add up to the size of the file.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeGuard

import torch
from torch import Tensor

__all__ = ["Unreadable", "open_regular", "parse_json", "read_safetensors", "shown"]

MAX_HEADER = 100_000_000
"""Bytes of JSON; the limit that safetensors itself has, in writing too."""
MAX_TENSORS = 200_000
MAX_DIMS = 32
MAX_DEPTH = 200
FEW_NODES = 2_000_000
"""So much JSON is parsed in any file; more of it only in a file that is as large as what it becomes."""
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_OTHERS = {b"PK\x03\x04": "a zip archive, such as torch.save writes", b"\x80": "a pickle"}


class Unreadable(ValueError):
    """Why a file cannot be read, to stand behind its name."""


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies, and as what."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file; anything else (a pipe, a device, a folder) is neither read nor waited for.

    Raises:
        Unreadable: it is missing, is no regular file, or may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        raise Unreadable("does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise Unreadable(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise Unreadable("is a folder" if stat.S_ISDIR(mode) else "is no regular file")


def read_safetensors(file: BinaryIO) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors (on the CPU) of an open file.

    Raises:
        Unreadable: a byte of it is not as the format has it, or it does not fit into the memory.
        OSError: the disk does not give it.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        header, start = _header(file, size)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            _fail("its metadata is no mapping of texts")
        entries = list(_entries(header, size - start))
        if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):  # some systems promise any amount
            raise MemoryError
        return metadata, {entry.name: _read(file, entry) for entry in entries}
    except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a want of memory
        if isinstance(error, MemoryError) or "memory" in str(error):
            _fail(f"its {size} bytes do not fit into the memory")
        raise Unreadable(str(error).splitlines()[0]) from None


def parse_json(text: str | bytes, size: int) -> Any:
    """JSON from a file of `size` bytes, no key twice in it, not nested deep, of no more parts than allowed.

    Raises:
        Unreadable: it is none, or has them.
    """
    if isinstance(text, bytes):
        nodes = sum(text.count(sign) for sign in (b"[", b"{", b","))
    else:
        nodes = sum(text.count(sign) for sign in ("[", "{", ","))
    if nodes > FEW_NODES and nodes * 64 > size * 8:
        _fail(f"its JSON has {nodes} parts")
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except Unreadable:
        raise
    except RecursionError:
        _fail("its JSON is nested too deep")
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        _fail(f"its JSON is broken: {str(error).splitlines()[0][:100]}")
    level, depth = [found], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            _fail("its JSON is nested too deep")
        level = [child for node in level for child in _children(node) if isinstance(child, (dict, list))]
    return found


def shown(value: object) -> str:
    """A foreign value in a message: short, on one line."""
    if isinstance(value, int) and abs(value) >= 2**64:  # Python writes no number of thousands of digits
        return "a number beyond 64 bits"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _children(node: Any) -> Any:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        _fail(f"its JSON has the key {shown(twice)} twice")
    return found


def _fail(reason: str) -> NoReturn:
    raise Unreadable(reason)


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    head = file.read(8)
    if len(head) < 8:
        _fail(f"it has {len(head)} bytes")
    length = int.from_bytes(head, "little")
    if length > min(MAX_HEADER, size - 8):
        kinds = [kind for magic, kind in _OTHERS.items() if head.startswith(magic)]
        _fail(f"it is {kinds[0]}" if kinds else "its first bytes are not those of a safetensors file")
    text = file.read(length)
    if len(text) < length:
        _fail("it was cut off while it was read")
    found = parse_json(text, size)
    if not isinstance(found, dict):
        _fail("its header is no JSON object")
    return found, 8 + length


def _entries(header: Mapping[str, Any], total: int) -> Iterator[_Entry]:
    """What the header tells of each tensor, in the order of the bytes, which they must cover exactly."""
    if len(header) > MAX_TENSORS:
        _fail(f"it has {len(header)} tensors")
    entries = [_entry(name, told) for name, told in header.items()]
    at = 0
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.begin != at:
            _fail(f"the bytes of its tensor {shown(entry.name)} leave a gap or overlap")
        at = entry.end
        yield entry
    if at != total:
        _fail(f"its tensors have {at} bytes, and it holds {total}")


def _entry(name: str, told: Any) -> _Entry:
    what = f"its tensor {shown(name)}"
    if not isinstance(told, dict):
        _fail(f"{what} is not described by an object")
    kind, shape, place = told.get("dtype"), told.get("shape"), told.get("data_offsets")
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        _fail(f"{what} is of type {shown(kind)}, which cannot be read")
    if not _are_sizes(shape) or len(shape) > MAX_DIMS or math.prod(max(n, 1) for n in shape) >= 2**63:
        _fail(f"{what} has the shape {shown(shape)}")
    if not _are_sizes(place) or len(place) != 2 or place[1] - place[0] != math.prod(shape) * dtype.itemsize:
        _fail(f"{what} of shape {shown(shape)} lies at {shown(place)}")
    return _Entry(name, dtype, tuple(shape), place[0], place[1])


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _read(file: BinaryIO, entry: _Entry) -> Tensor:
    if entry.begin == entry.end:
        return torch.empty(entry.shape, dtype=entry.dtype)
    content = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
    data: Any = content.numpy()
    view = memoryview(data)
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            _fail("it was cut off while it was read")
        done += count
    if entry.dtype == torch.bool and bool((content > 1).any()):
        _fail(f"its tensor {shown(entry.name)} has truth values other than 0 and 1")
    return content.view(entry.dtype).reshape(entry.shape)
