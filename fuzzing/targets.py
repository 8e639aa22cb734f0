"""What is fuzzed: bytes in, a value or a MetricliError out; anything else that is raised is a find."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from metricli.errors import MetricliError

Target = Callable[[bytes], None]

NEEDS = ("train", "evaluate", "predict")


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    _folder.keep = folder  # type: ignore[attr-defined]  # removed when the process ends
    return Path(folder.name)


def a_spec(data: bytes) -> None:
    """A YAML file as the spec of `train`."""
    from metricli.specs.document import Document
    from metricli.specs.load import check_spec, document_of, validate_document
    from metricli.specs.train import TrainSpec

    try:
        document: Document = document_of(data, "fuzz.yaml")
        loaded = validate_document(document, Path("/nowhere"), TrainSpec)
        check_spec(loaded, None)
    except MetricliError as error:
        _is_said(error)


def a_table(data: bytes) -> None:
    """A table, read and checked; the first byte says what for, and whether it is named .parquet."""
    from metricli.data.checks import check_table, require_sound
    from metricli.data.table import read_table

    how = data[0] if data else 0
    need = NEEDS[how % 3]
    path = _folder() / ("table.parquet" if how & 64 else "table.csv")
    path.write_bytes(data[1:])
    try:
        table = read_table(path, need=need)  # type: ignore[arg-type]
        findings = check_table(table, need=need, split="validation")  # type: ignore[arg-type]
        for finding in findings:
            assert finding.message.isprintable(), finding
        require_sound(findings, path)
        table.facts()
    except MetricliError as error:
        _is_said(error)


def a_checkpoint(data: bytes) -> None:
    """A file in the place of best.ckpt, and of last.ckpt."""
    from metricli.runs.checkpoints import read_best, read_last

    path = _folder() / "fuzz.ckpt"
    path.write_bytes(data)
    for read in (read_best, read_last):
        try:
            read(path)
        except MetricliError as error:
            _is_said(error)


def _is_said(error: MetricliError) -> None:
    assert 0 < len(str(error)) < 100_000, f"a message of {len(str(error))} characters"


TARGETS: dict[str, Target] = {"spec": a_spec, "table": a_table, "checkpoint": a_checkpoint}


def signed(data: bytes) -> bytes:
    """A checkpoint with the digest that its content should have; other bytes as they are.

    Without this a mutation would never come past the digest.
    """
    import torch
    from safetensors.torch import load

    from metricli.components.tensorfile import _digest

    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        facts = header["__metadata__"]
        tensors: dict[str, torch.Tensor] = load(data)
        facts["sha256"] = _digest(tensors, facts["meta"])
        text = json.dumps(header).encode()
    except Exception:  # not a file that a digest is asked of
        return data
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def name_of(data: bytes) -> str:
    """A short name for an input."""
    return hashlib.sha256(data).hexdigest()[:12]
