"""Predicting on several processes: the same file as of one, each image read by one of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metricli.errors import DataError, MetricliError
from metricli.runs import predict as verb
from metricli.runs.blocks import MOST_ROWS, Blocks, RowsOf, shard_of
from metricli.runs.embed import Batches
from metricli.runs.saved_features import read_array
from tests.conftest import FIGURES
from tests.runs.predicting import run, table_of
from tests.worlds import Worlds

shared = pytest.mark.xdist_group("worlds")


@shared
@pytest.mark.parametrize("rows", [1, 3, 11, 150])
def test_four_processes_write_what_one_writes(
    trained: Any, worlds: Worlds, tmp_path: Path, rows: int
) -> None:
    table = table_of(tmp_path, rows)
    words = ("prediction.batch_size=7",)
    alone, _, _ = run(trained.best_ckpt, table, tmp_path / "one.npy", *words)
    told = worlds.run(4, run, trained.best_ckpt, table, tmp_path / "four.npy", *words)
    assert sorted(row for _, read, _ in told for row in read) == list(range(rows)), "each row by one"
    assert max(len(read) for _, read, _ in told) == -(-rows // 4)
    for report, _, _ in told:
        assert (report.rows, report.dim, report.skipped) == (alone.rows, alone.dim, [])
    np.testing.assert_allclose(np.load(tmp_path / "four.npy"), np.load(tmp_path / "one.npy"), atol=1e-6)
    assert (tmp_path / "four.index.csv").read_bytes() == (tmp_path / "one.index.csv").read_bytes()
    one, four = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "four"))
    assert one | {"out": "four.npy"} == four
    made = {f"{name}.{suffix}" for name in ("one", "four") for suffix in ("npy", "json", "index.csv")}
    assert {path.name for path in tmp_path.iterdir()} == {table.name, *made}


@shared
@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
def test_the_other_formats_too(trained: Any, worlds: Worlds, tmp_path: Path, suffix: str) -> None:
    table = table_of(tmp_path, 11)
    run(trained.best_ckpt, table, tmp_path / "one.npy")
    worlds.run(3, run, trained.best_ckpt, table, tmp_path / f"three{suffix}")
    found = read_array(tmp_path / f"three{suffix}")
    np.testing.assert_allclose(found, np.load(tmp_path / "one.npy"), atol=1e-6)


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of the drawn data set with three torn images, of rows that different processes have."""
    folder = tmp_path / "figures"
    shutil.copytree(FIGURES.parent, folder)
    paths = [line.split(",")[1] for line in (folder / "df.csv").read_text().splitlines()[1:]]
    torn = [paths[i] for i in (0, 50, 203)]
    for path in torn:
        (folder / path).write_bytes(b"torn")
    return folder / "df.csv", torn


@shared
def test_skipped_rows_of_all_processes_are_named_by_each(
    trained: Any, worlds: Worlds, tmp_path: Path, damaged: tuple[Path, list[str]]
) -> None:
    table, torn = damaged
    told = worlds.run(3, run, trained.best_ckpt, table, tmp_path / "f.npy", "data.on_bad_image=skip")
    assert [report.skipped for report, _, _ in told] == [torn] * 3
    named = ", ".join(map(repr, torn))
    said = [f"warning: 3 of 204 images could not be read and were skipped: {named}"]
    assert [lines for _, _, lines in told] == [said, [], []], "the main process alone speaks"
    found = np.load(tmp_path / "f.npy")
    assert np.flatnonzero(np.isnan(found).any(1)).tolist() == [0, 50, 203]
    lines = (tmp_path / "f.index.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in lines if line.endswith("skipped")] == [0, 50, 203]


def _refused(tables: list[Path], *args: Any) -> str:
    with pytest.raises(DataError) as caught:
        run(args[0], tables[int(os.environ["RANK"])], args[1])
    return str(caught.value)


@shared
def test_processes_that_see_different_tables_are_refused(
    trained: Any, worlds: Worlds, tmp_path: Path
) -> None:
    tables = [table_of(tmp_path, rows) for rows in (11, 12)]
    told = worlds.run(2, _refused, tables, trained.best_ckpt, tmp_path / "f.npy")
    said = "the processes do not see the same checkpoint, table or root"
    assert told == [f"{said}; give them a shared disk, or each host a --shard"] * 2
    assert not (tmp_path / "f.npy.part").exists()


def test_rows_are_dealt_in_blocks_that_the_number_of_rows_alone_decides() -> None:
    for rows in (1, 3, 11, 150, 1023, 1024, 5000, 10_000_000):
        blocks = Blocks(0, rows)
        assert len(blocks) >= min(rows, 1024)
        assert blocks.size <= MOST_ROWS
        assert blocks.span(0).start == 0
        assert blocks.span(len(blocks) - 1).stop == rows
        assert blocks.number(rows - 1) == len(blocks) - 1
    assert (Blocks(0, 10_000_000).size, len(Blocks(0, 10_000_000))) == (4096, 2442)


@pytest.mark.parametrize("rows", [0, 1, 11, 2050, 9001])
def test_the_rows_of_all_processes_are_all_rows(rows: int) -> None:
    blocks = Blocks(100, 100 + rows)
    for size in (1, 3, 4):
        dealt = [RowsOf(blocks, np.arange(len(blocks))[rank::size]) for rank in range(size)]
        lists = [[row for batch in Batches(part, 7) for row in batch] for part in dealt]
        assert all(part == sorted(part) for part in lists)
        assert sorted(row for part in lists for row in part) == list(range(100, 100 + rows))


def test_shards_are_contiguous_and_hold_every_row_once() -> None:
    for rows, n in ((10, 3), (8, 8), (3, 5), (1000, 7)):
        spans = [shard_of(rows, (i, n)) for i in range(1, n + 1)]
        assert [row for span in spans for row in range(span.start, span.stop)] == list(range(rows))
        assert max(span.rows for span in spans) - min(span.rows for span in spans) <= 1


@pytest.mark.parametrize("shares", [[[0, 1], [3]], [[0, 1], [1, 2, 3]], [[0, 1, 2, 3, 4]]])
def test_a_block_lost_or_doubled_is_a_fault_of_ours(shares: list[list[int]]) -> None:
    with pytest.raises(MetricliError, match="not done exactly once"):
        verb._assert_coverage(Blocks(0, 4), shares)
    verb._assert_coverage(Blocks(0, 4), [[2, 0], [3, 1]])


def _run_and_leave(folder: Path, *args: Any) -> None:
    """As a process of a launcher: its error is noted, and it ends."""
    try:
        run(*args)
    except Exception as error:
        (folder / f"said.{os.environ['RANK']}").write_text(f"{type(error).__name__}: {error}")
        os._exit(3)


@shared
def test_a_bad_image_of_one_process_stops_all(
    trained: Any, worlds: Worlds, tmp_path: Path, damaged: tuple[Path, list[str]]
) -> None:
    table, torn = damaged
    for path in (torn[0], torn[2]):  # left is the one of row 50, which is rank 2's
        shutil.copy(FIGURES.parent / path, table.parent / path)
    with pytest.raises(RuntimeError, match="of 3 died"):
        worlds.run(3, _run_and_leave, tmp_path, trained.best_ckpt, table, tmp_path / "f.npy")
    worlds.close()
    said = (tmp_path / "said.2").read_text()
    assert said.startswith(f"DataError: cannot read image '{table.parent / torn[1]}': ")
    assert not (tmp_path / "f.npy").exists()
