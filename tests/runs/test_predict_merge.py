"""Shards of a predict, and the merge that proves they are all there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from metricli import api
from metricli.errors import DataError, UsageError
from metricli.runs import merge as verb
from metricli.runs.saved_features import read_array
from tests.conftest import FIGURES
from tests.runs.predicting import run, table_of

ROWS = 20
SUFFIXES = (".npy", ".parquet", ".safetensors")


@pytest.fixture
def made(trained: Any, tmp_path: Path) -> Callable[..., list[Path]]:
    """Shards 1 to n of a table, as files of some format."""

    def shards(n: int, suffix: str = ".npy", *words: str, rows: int = ROWS) -> list[Path]:
        table = table_of(tmp_path, rows)
        paths = [tmp_path / f"part{i}{suffix}" for i in range(1, n + 1)]
        for i, path in enumerate(paths, 1):
            run(trained.best_ckpt, table, path, *words, shard=f"{i}/{n}")
        return paths

    return shards


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_whole_is_what_one_command_writes(
    trained: Any, made: Any, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "CHUNK", 4)
    parts = made(3, suffix)
    other = SUFFIXES[SUFFIXES.index(suffix) - 1]
    for out in (tmp_path / f"merged{suffix}", tmp_path / f"turned{other}"):
        report = api.merge(parts[::-1], out=out)
        one = tmp_path / f"{out.stem}_at_once{out.suffix}"
        run(trained.best_ckpt, tmp_path / f"{ROWS}.csv", one, "prediction.batch_size=6")
        found, expected = read_array(out), read_array(one)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert found.dtype == expected.dtype
        assert (report.rows, report.dim, report.shard, report.skipped) == (ROWS, 16, None, [])
        for name in ("index.csv", "json"):
            text = (tmp_path / f"{one.stem}.{name}").read_text().replace(one.name, out.name)
            assert (tmp_path / f"{out.stem}.{name}").read_text() == text
        if out.suffix == ".parquet":
            columns = [pq.read_table(path, columns=["row", "path", "label"]) for path in (out, one)]
            assert columns[0] == columns[1]
    assert not list(tmp_path.glob("*.part"))


def test_a_shard_is_a_features_file_with_the_row_numbers_of_the_whole(made: Any, tmp_path: Path) -> None:
    parts = made(3)
    lines = [(tmp_path / f"{part.stem}.index.csv").read_text().splitlines()[1:] for part in parts]
    assert [len(np.load(part)) for part in parts] == [len(rows) for rows in lines] == [6, 7, 7]
    assert [int(line.split(",")[0]) for rows in lines for line in rows] == list(range(ROWS))
    manifest = json.loads((tmp_path / "part2.json").read_text())
    assert (manifest["shard"], manifest["rows"], manifest["rows_of_all_shards"]) == ("2/3", 7, 20)


def test_more_shards_than_rows_leave_empty_ones(trained: Any, made: Any, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        parts = made(5, suffix, rows=3)
        indexes = [part.with_name(f"{part.stem}.index.csv").read_text().splitlines() for part in parts]
        assert sorted(len(lines) - 1 for lines in indexes) == [0, 0, 1, 1, 1]
        out = tmp_path / f"merged{suffix}"
        api.merge(parts, out=out)
        assert read_array(out).shape == (3, 16)
        for path in [*parts, out, *tmp_path.glob("*.json"), *tmp_path.glob("*.index.csv")]:
            path.unlink(missing_ok=True)


def test_skipped_rows_stay_skipped(trained: Any, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for image in sorted((FIGURES.parent / "images").iterdir())[:6]:
        shutil.copy(image, folder)
    torn = sorted(folder.iterdir())[4]
    torn.write_bytes(b"torn")
    parts = [tmp_path / f"{i}.npy" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        report, _, said = run(trained.best_ckpt, folder, part, "data.on_bad_image=skip", shard=f"{i}/2")
    assert said == [f"warning: 1 of 3 images could not be read and were skipped: {torn.name!r}"]
    report = api.merge(parts, out=tmp_path / "f.npy")
    assert report.skipped == [torn.name]
    assert np.flatnonzero(np.isnan(np.load(tmp_path / "f.npy")).any(1)).tolist() == [4]
    assert json.loads((tmp_path / "f.json").read_text())["skipped"] == 1


def changed(path: Path, **facts: Any) -> None:
    manifest = path.with_suffix(".json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | facts))


def edited(path: Path, old: str, new: str) -> None:
    index = path.with_name(f"{path.stem}.index.csv")
    text = index.read_text()
    assert text.count(old) == 1
    index.write_text(text.replace(old, new))


def twice(parts: list[Path]) -> None:
    for suffix in ("npy", "json", "index.csv"):
        shutil.copy(parts[0].with_name(f"part1.{suffix}"), parts[2].with_name(f"part3.{suffix}"))
    changed(parts[2], out="part3.npy")


def nan(path: Path) -> None:
    values = np.load(path)
    values[2, 3] = np.nan
    np.save(path, values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.pop(1), "1 of 3 shards are missing: 2/3; predict them"),
        (twice, "are both shard 1/3"),
        (lambda p: p.append(p[0]), "are both shard 1/3"),
        (lambda p: changed(p[1], ckpt_sha256="0"), "part2.npy' were made of other checkpoints"),
        (lambda p: changed(p[1], settings_sha256="0"), "were made of other settings of the model"),
        (lambda p: changed(p[1], rows_sha256="0"), "were made of other rows"),
        (lambda p: changed(p[1], split="train"), "were made of other splits"),
        (lambda p: changed(p[1], dtype="float16"), "were made of other types"),
        (lambda p: changed(p[1], shard="2/4"), "are shards 1/3 and 2/4, of different numbers"),
        (lambda p: changed(p[1], shard="4/3"), "--shard '4/3': expected I/N with 1 <= I <= N"),
        (lambda p: changed(p[1], rows=6), "part2.npy' has 6 rows, and shard 2/3 has 7"),
        (lambda p: p[1].write_bytes(p[1].read_bytes()[:-4]), "is not the file of 7 rows of 16 float32"),
        (lambda p: p[1].with_suffix(".json").unlink(), "part2.npy' is no shard"),
        (lambda p: p[1].unlink(), "part2.npy' does not exist"),
        (lambda p: p[1].with_name("part2.index.csv").unlink(), "cannot read"),
        (lambda p: edited(p[1], "\n8,", "\n9,"), "expected row 8, found '9,"),
        (lambda p: edited(p[1], "row,path", "path,row"), "is no index of features"),
        (lambda p: edited(p[2], "\n19,", "\n"), "expected row 19"),
        (lambda p: nan(p[1]), "row 8 of "),
    ],
)
def test_what_does_not_belong_together_is_refused_in_one_line(
    made: Any, tmp_path: Path, damage: Callable[[list[Path]], Any], message: str
) -> None:
    parts = made(3)
    damage(parts)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataError) as caught:
        api.merge(parts, out=tmp_path / "f.npy")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_out_that_cannot_be_is_a_wrong_usage(made: Any, tmp_path: Path) -> None:
    parts = made(2)
    with pytest.raises(UsageError, match=r"would replace .*part1\.npy' of the shard"):
        api.merge(parts, out=parts[0])
    with pytest.raises(UsageError, match="no shards are given"):
        api.merge([], out=tmp_path / "f.npy")
    with pytest.raises(UsageError, match="expected one of"):
        api.merge(parts, out=tmp_path / "f.txt")
    (tmp_path / "f.npy.part").mkdir()
    (tmp_path / "f.npy.part/request.json").write_text("{}")
    with pytest.raises(UsageError, match="holds an unfinished predict"):
        api.merge(parts, out=tmp_path / "f.npy")


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_a_shard_that_is_none(tmp_path: Path, shard: str) -> None:
    with pytest.raises(UsageError, match=f"--shard '{shard}': expected I/N with 1 <= I <= N, such as 2/8"):
        api.predict(out=tmp_path / "f.npy", shard=shard)
