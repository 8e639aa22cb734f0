"""Predicting with every image that is read counted, in this process or as one of several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from metricli import predict
from metricli.components.dataset import ImageDataset
from metricli.reporter import SilentReporter
from metricli.reports import PredictReport
from metricli.runs.block_writer import BlockWriter
from tests.conftest import FIGURES


class Listener(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.said.append(f"warning: {message}")


class Cut(RuntimeError):
    """The end of a process in the middle of its work."""


def table_of(folder: Path, rows: int) -> Path:
    """A table with `rows` paths of the drawn data set, repeated if need be."""
    paths = [line.split(",")[1] for line in FIGURES.read_text().splitlines()[1:]]
    table = folder / f"{rows}.csv"
    lines = [str(FIGURES.parent / paths[i % len(paths)]) for i in range(rows)]
    table.write_text("\n".join(["path", *lines]) + "\n")
    return table


@contextmanager
def reads_counted() -> Iterator[list[int]]:
    """The rows whose images are read inside, one by one."""
    found: list[int] = []
    take = ImageDataset.__getitem__

    def counted(self: ImageDataset, key: Any) -> Any:
        found.append(getattr(key, "key", key))
        return take(self, key)

    with mock.patch.object(ImageDataset, "__getitem__", counted):
        yield found


def run(
    ckpt: Path, data: Path, out: Path, *words: str, cut_after: int | None = None, **options: Any
) -> tuple[PredictReport | None, list[int], list[str]]:
    """Predict; the report, the rows whose images were read, and what was said.

    `cut_after` ends it (without a report) when that many batches are written.
    """
    listener = Listener()
    batches = 0
    write = BlockWriter.write

    def cutting(self: BlockWriter, *args: Any) -> None:
        nonlocal batches
        if batches == cut_after:
            raise Cut
        batches += 1
        write(self, *args)

    overrides = ["data.allow_outside_root=true", *words]
    with reads_counted() as rows, mock.patch.object(BlockWriter, "write", cutting):
        try:
            report = predict(None, overrides, ckpt=ckpt, data=data, out=out, reporter=listener, **options)
        except Cut:
            report = None
    return report, rows, listener.said
