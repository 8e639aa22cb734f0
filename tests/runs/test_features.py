"""Features on disk: whole or not at all, and never in the place of somebody else's files."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from metricli import predict
from metricli.data.table import Rows, folder_table
from metricli.errors import DataError, NonFiniteError, UsageError
from metricli.runs import features
from metricli.runs.features import FeatureFile, refuse_foreign
from metricli.runs.saved_features import read_array
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


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_come_back_as_written(
    rows: Rows, tmp_path: Path, suffix: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BLOCK", 4)
    values = np.arange(18, dtype="f4").reshape(6, 3)
    file = FeatureFile(tmp_path / f"f{suffix}", rows, dtype)
    file.begin(3)
    file.write(np.array([0, 1, 2]), values[:3])
    file.write(np.array([4, 5]), values[4:])
    file.finish([3], {})
    found = read_array(file.out)
    assert found.dtype == dtype
    values[3] = np.nan
    np.testing.assert_array_equal(found, values)
    assert json.loads(file.manifest.read_text())["out"] == f"f{suffix}"
    if suffix == ".safetensors":
        assert load_file(file.out)["features"].shape == (6, 3)
    if suffix == ".npy":
        assert isinstance(np.load(file.out, mmap_mode="r"), np.memmap)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_full_disk_is_an_error_and_no_signal(
    rows: Rows, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse, mapped file would die by SIGBUS: each block must be asked of the disk by a write."""
    monkeypatch.setattr(features, "BLOCK", 2)
    wide, values = 20_000, np.ones((6, 20_000), "f4")
    part = tmp_path / f"f{suffix}.part"
    file = FeatureFile(tmp_path / f"f{suffix}", rows, "float32")
    file.begin(wide)
    file.write(np.arange(3), values[:3])
    assert 2 * wide * 4 <= part.stat().st_size < 3 * wide * 4, "written as it goes"
    file.discard()
    part.symlink_to("/dev/full")
    file = FeatureFile(tmp_path / f"f{suffix}", rows, "float32")
    file.begin(wide)
    with pytest.raises(OSError, match="No space left") as caught:
        file.write(np.arange(6), values)
    assert caught.value.errno == errno.ENOSPC
    file.discard()
    assert not part.is_symlink()


def test_what_does_not_fit_float16_is_refused(rows: Rows, tmp_path: Path) -> None:
    values = np.ones((6, 3), "f4")
    values[4, 1] = 70_000
    file = FeatureFile(tmp_path / "f.npy", rows, "float16")
    file.begin(3)
    with pytest.raises(NonFiniteError) as caught:
        file.write(np.arange(6), values)
    assert str(caught.value) == (
        f"the embedding of {rows.paths[4]!r} does not fit float16; use --dtype float32"
    )
    file.discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


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
