"""Features on disk: whole or not at all, and never in the place of somebody else's files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file

from metricli import predict
from metricli.data.table import Rows, folder_table
from metricli.errors import DataError, NonFiniteError, ResourceError, UsageError
from metricli.runs import blocks, features
from metricli.runs.block_writer import BlockWriter
from metricli.runs.blocks import Blocks
from metricli.runs.features import Layout, refuse_foreign
from metricli.runs.saved_features import read_array
from metricli.runs.unfinished import Unfinished
from tests.conftest import FIGURES


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of six images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in sorted((FIGURES.parent / "images").iterdir())[:6]:
        shutil.copy(name, folder)
    return folder


@pytest.fixture
def rows(images: Path) -> Rows:
    return folder_table(images)[0].split("all")


def written(rows: Rows, out: Path, dtype: str, dim: int = 3) -> tuple[Unfinished, BlockWriter]:
    """A file begun for all rows, in blocks of one row, and who writes them."""
    work = Unfinished(out, Layout(out.suffix, len(rows), dim, dtype), Blocks(0, len(rows)))
    work.folder.mkdir()
    work.begin()
    journal = work.folder / "done-test.jsonl"
    return work, BlockWriter(work, journal, np.arange(len(work.blocks)), rows.paths)


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("least", [1, 1024])
def test_rows_come_back_as_written(
    rows: Rows, tmp_path: Path, suffix: str, dtype: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "CHUNK", 4)
    monkeypatch.setattr(blocks, "LEAST_BLOCKS", least)  # one block of six rows, or six of one
    values = np.arange(18, dtype="f4").reshape(6, 3)
    work, writer = written(rows, tmp_path / f"f{suffix}", dtype)
    with writer:
        writer.write(np.array([0, 1, 2]), values[:3])
        writer.write(np.array([4]), values[4:5])
        writer.finish()
    assert (writer.done, writer.skipped) == (list(range(6 if least > 1 else 1)), [3, 5])
    skipped = frozenset(writer.skipped)
    work.put_in_place(lambda: features.index_lines(rows, work.blocks, skipped), 2, {"ckpt": "x"})
    found = read_array(work.out)
    assert found.dtype == dtype
    values[[3, 5]] = np.nan
    np.testing.assert_array_equal(found, values)
    known = {"out": f"f{suffix}", "rows": 6, "dim": 3, "dtype": dtype, "skipped": 2, "ckpt": "x"}
    assert json.loads((tmp_path / "f.json").read_text()) == known
    lines = (tmp_path / "f.index.csv").read_text().splitlines()
    assert lines[0] == "row,path,label,status"
    assert lines[4:6] == [f"3,{rows.paths[3]},,skipped", f"4,{rows.paths[4]},,ok"]
    if suffix == ".safetensors":
        assert load_file(work.out)["features"].shape == (6, 3)
    if suffix == ".npy":
        assert isinstance(np.load(work.out, mmap_mode="r"), np.memmap)
    if suffix == ".parquet":
        table = pq.read_table(work.out)
        assert table.column_names == ["row", "path", "label", "features"]
        assert table.column("row").to_pylist() == list(range(6))
        assert table.column("path").to_pylist() == rows.paths.tolist()
    assert not work.folder.exists()


def test_blocks_are_noted_when_they_are_whole(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "LEAST_BLOCKS", 2)  # of three rows each
    work, writer = written(rows, tmp_path / "f.npy", "float32")
    values = np.arange(18, dtype="f4").reshape(6, 3)
    journal = work.folder / "done-test.jsonl"
    with writer:
        writer.write(np.array([0, 1]), values[:2])
        assert journal.read_text() == ""
        writer.write(np.array([2, 3]), values[2:4])
        digest = hashlib.sha256(values[:3].tobytes()).hexdigest()
        assert json.loads(journal.read_text()) == {"block": 0, "sha256": digest, "skipped": []}


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors"])
def test_a_disk_without_room_for_the_file_is_refused_at_the_start(
    trained: Any, images: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file would run full in the middle, and a mapped one die by SIGBUS."""
    monkeypatch.setattr(BlockWriter, "write", None)  # no row is computed
    allocate = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    out = images.parent / f"f{suffix}"
    with pytest.raises(ResourceError) as caught:
        predict(ckpt=trained.best_ckpt, data=images, out=out)
    size = allocate.call_args.args[2]
    assert 6 * 16 * 4 <= size <= 6 * 16 * 4 + 256
    assert str(caught.value) == (
        f"cannot write {str(out)!r}: No space left on device; free some space, it takes {size} bytes"
    )
    assert [path.name for path in images.parent.iterdir()] == ["images"]


def test_room_is_taken_from_the_start(rows: Rows, tmp_path: Path) -> None:
    work, writer = written(rows, tmp_path / "f.npy", "float32", dim=100_000)
    with writer:
        assert work.data.stat().st_blocks * 512 >= 6 * 100_000 * 4


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_takes_no_room_ahead(
    rows: Rows, tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", mock.Mock(side_effect=OSError(error, "no")))
    work, writer = written(rows, tmp_path / "f.npy", "float32")
    with writer:
        writer.write(np.arange(6), np.ones((6, 3), "f4"))
    assert np.load(work.data).sum() == 18


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_a_disk_that_runs_full_is_an_error_and_no_signal(rows: Rows, tmp_path: Path) -> None:
    work, writer = written(rows, tmp_path / "f.npy", "float32")
    work.data.unlink()
    work.data.symlink_to("/dev/full")
    with BlockWriter(work, work.folder / "done-1.jsonl", np.arange(6), rows.paths) as full:
        with pytest.raises(OSError, match="No space left") as caught:
            full.write(np.arange(6), np.ones((6, 3), "f4"))
        assert caught.value.errno == errno.ENOSPC
    writer.__exit__(None, None, None)


def test_what_does_not_fit_float16_is_refused(rows: Rows, tmp_path: Path) -> None:
    values = np.ones((6, 3), "f4")
    values[4, 1] = 70_000
    _, writer = written(rows, tmp_path / "f.npy", "float16")
    with writer, pytest.raises(NonFiniteError) as caught:
        writer.write(np.arange(6), values)
    assert str(caught.value) == (
        f"the embedding of {rows.paths[4]!r} does not fit float16; use --dtype float32"
    )


def test_an_extractor_that_says_another_dim_is_refused(rows: Rows, tmp_path: Path) -> None:
    _, writer = written(rows, tmp_path / "f.npy", "float32")
    with writer, pytest.raises(UsageError) as caught:
        writer.write(np.arange(6), np.ones((6, 4), "f4"))
    assert str(caught.value) == (
        "the extractor gives 4 dimensions, and its 'dim' is 3; tell the plugin's author"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.index.csv", "mine"),
        ("notes.json", "mine"),
        ("notes.json", '{"out": "notes.npy"}'),
        ("notes.json", '{"out": "notes.parquet", "ckpt_sha256": "0"}'),
        ("notes.json", "[1]"),
    ],
)
def test_files_of_others_are_not_replaced(trained: Any, images: Path, name: str, text: str) -> None:
    out, place = images.parent / "notes.npy", images.parent / name
    place.write_text(text)
    with pytest.raises(UsageError) as caught:
        predict(ckpt=trained.best_ckpt, data=images, out=out)
    assert str(caught.value) == (
        f"--out {str(out)!r} would replace {str(place)!r}, which was not written for it; "
        "give another name, or remove that file"
    )
    assert place.read_text() == text
    assert len(list(images.parent.iterdir())) == 2


def test_our_own_features_are_replaced_and_keep_their_manifest(trained: Any, images: Path) -> None:
    out = images.parent / "f.npy"
    for _ in range(2):
        predict(ckpt=trained.best_ckpt, data=images, out=out)
    refuse_foreign(out)
    with pytest.raises(UsageError, match=r"f\.parquet' would replace"):
        predict(ckpt=trained.best_ckpt, data=images, out=out.with_suffix(".parquet"))


def test_a_folder_may_link_outside_where_that_is_allowed(trained: Any, images: Path) -> None:
    outside = images.parent / "outside.png"
    Image.new("RGB", (32, 32)).save(outside)
    (images / "link.png").symlink_to(outside)
    out = images.parent / "f.npy"
    with pytest.raises(DataError, match="link") as caught:
        predict(ckpt=trained.best_ckpt, data=images, out=out)
    assert caught.value.hint == "repair or remove these files, or give a table of the images to take"
    report = predict(None, ["data.allow_outside_root=true"], ckpt=trained.best_ckpt, data=images, out=out)
    assert report.rows == 7


def test_a_folder_takes_no_root(trained: Any, images: Path) -> None:
    with pytest.raises(UsageError) as caught:
        predict(ckpt=trained.best_ckpt, data=images, root=images.parent, out=images.parent / "f.npy")
    assert str(caught.value) == (
        f"--root {str(images.parent)!r} with the folder {str(images)!r}, "
        "whose images' paths start from itself; leave --root out"
    )
