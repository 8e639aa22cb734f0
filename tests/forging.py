"""Checkpoints that somebody else made: of any content, and with a digest that is right."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metricli.components.tensorfile import read_tensor_file, write_tensor_file


def forged(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Path:
    """A checkpoint like `source` after `change(meta, tensors)`, whose digest is right."""
    tensors, meta, _ = read_tensor_file(source)
    meta = copy.deepcopy(meta)
    change(meta, tensors)
    write_tensor_file(target, tensors, meta)
    return target


def raw_file(
    path: Path,
    *,
    header: Mapping[str, Any] | bytes | None = None,
    meta: str = "{}",
    data: bytes = b"",
    **fields: str,
) -> Path:
    """A file of these bytes; the digest is that of a checkpoint without tensors, whatever the header says."""
    if not isinstance(header, bytes):
        digest = hashlib.sha256(meta.encode(errors="surrogatepass")).hexdigest()
        told = {"format": "metricli", "format_version": "1", "meta": meta, "sha256": digest} | fields
        header = json.dumps({"__metadata__": told, **(header or {})}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path
