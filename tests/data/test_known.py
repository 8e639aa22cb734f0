"""What deep looks have found and keep: only what is new is decoded again, and a bad cache harms nobody."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from metricli.data import known, looking
from metricli.data.bad_rows import known_to_be_bad, undecodable
from metricli.data.inspection import inspect_table
from metricli.data.known import cache_folder, read_known
from metricli.data.table import read_table

NAMES = [f"{i}.png" for i in range(5)]
OLD = 1_600_000_000


def write(path: Path, seed: int, *, time: float = OLD) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    os.utime(path, (time, time))
    return path


def tear(path: Path, *, time: float = OLD) -> Path:
    path.write_bytes(path.read_bytes()[:60])
    os.utime(path, (time, time))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METRICLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def data(tmp_path: Path, cache: Path) -> Path:
    """A table of five images, of which two are broken."""
    (tmp_path / "data").mkdir()
    for i, name in enumerate(NAMES):
        write(tmp_path / "data" / name, i)
    for name in NAMES[3:]:
        tear(tmp_path / "data" / name)
    lines = [f"{label},{name},train" for label, name in zip("aaabb", NAMES, strict=True)]
    (tmp_path / "data" / "t.csv").write_text("\n".join(["label,path,split", *lines, "a,1.png,train"]) + "\n")
    return tmp_path / "data" / "t.csv"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded."""
    names: list[str] = []
    really = looking.open_image

    def noted(path: Path, **options: int) -> Image.Image:
        names.append(path.name)
        return really(path, **options)

    monkeypatch.setattr(looking, "open_image", noted)
    return names


def seen_again(decoded: list[str]) -> list[str]:
    names = sorted(decoded)
    decoded.clear()
    return names


def shown(report) -> list:
    return [(f.code, f.count, f.rows, f.message) for f in report.findings]


def test_only_what_is_new_or_changed_is_decoded_again(data, decoded):
    before = sorted(path.name for path in data.parent.iterdir())
    first = inspect_table(data, deep=True)
    assert seen_again(decoded) == NAMES
    assert [(f.code, f.rows) for f in first.findings if f.severity == "error"] == [
        ("unreadable-file", [4, 5])
    ]
    again = inspect_table(data, deep=True)
    assert (seen_again(decoded), shown(again), again.images) == ([], shown(first), first.images)
    assert sorted(path.name for path in data.parent.iterdir()) == before, "the data set is left alone"

    write(data.parent / "3.png", 3)  # mended: another size
    write(data.parent / "1.png", 7, time=OLD + 1)  # another image
    size = (data.parent / "0.png").stat().st_size
    (data.parent / "0.png").write_bytes(bytes(size))  # as large
    os.utime(data.parent / "0.png", ns=(OLD * 10**9, OLD * 10**9 + 1))
    changed = inspect_table(data, deep=True)
    assert seen_again(decoded) == ["0.png", "1.png", "3.png"][1:], "zeros have no header to decode after"
    assert [(f.code, f.rows) for f in changed.findings if f.severity == "error"] == [
        ("unreadable-file", [1, 5])
    ]
    with data.open("a") as file:
        file.write("a,new.png,train\n")
    write(data.parent / "new.png", 9)
    inspect_table(data, deep=True)
    assert seen_again(decoded) == ["new.png"]


def test_a_look_at_headers_neither_reads_nor_writes_it(data, cache):
    inspect_table(data)
    assert not cache.parent.exists()


def test_a_file_that_was_changed_just_now_is_not_kept(data, decoded):
    os.utime(data.parent / "2.png")
    inspect_table(data, deep=True)
    seen_again(decoded)
    inspect_table(data, deep=True)
    assert seen_again(decoded) == ["2.png"]


def test_what_another_limit_or_right_may_mend_is_not_kept(data, decoded, monkeypatch):
    assert len(undecodable(read_table(data), np.arange(6), 10)) == 6
    assert seen_again(decoded) == []
    assert list(undecodable(read_table(data), np.arange(6), 1000).reasons) == [3, 4]
    seen_again(decoded)
    reasons = undecodable(read_table(data), np.arange(6), 10).reasons
    assert "9 x 8 is more than the 10 pixels allowed" in reasons[0]
    assert seen_again(decoded) == []

    write(data.parent / "2.png", 2, time=OLD + 5)

    def fail(*_words: object, **_options: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", fail)
        assert list(undecodable(read_table(data), np.arange(6), 1000).reasons) == [2, 3, 4]
    assert list(undecodable(read_table(data), np.arange(6), 1000).reasons) == [3, 4]


def test_roots_are_told_apart_and_links_to_one_are_not(data, decoded, tmp_path, cache):
    inspect_table(data, deep=True)
    (tmp_path / "link").symlink_to(data.parent)
    seen_again(decoded)
    through = inspect_table(tmp_path / "link" / "t.csv", deep=True)
    assert seen_again(decoded) == []
    assert f"'{tmp_path}/link/3.png'" in through.findings[0].message, "the path of today is named"
    assert len(list(cache.iterdir())) == 1
    (tmp_path / "other").mkdir()
    for path in data.parent.iterdir():
        os.link(path, tmp_path / "other" / path.name)
    inspect_table(tmp_path / "other" / "t.csv", deep=True)
    assert seen_again(decoded) == NAMES
    assert len(list(cache.iterdir())) == 2


def foreign(file: Path) -> None:
    pq.write_table(pa.table({"path": ["0.png"], "problem": ["broken"]}), file)


def of_odd_words(file: Path) -> None:
    table = pq.read_table(file)
    odd = pa.array(["\x1b[31m"] * len(table), pa.string())
    pq.write_table(table.set_column(table.column_names.index("problem"), "problem", odd), file)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(np.random.default_rng(0).bytes(3000)),
        lambda file: file.write_bytes(b"PAR1" + bytes(500) + b"PAR1"),
        lambda file: file.write_bytes(file.read_bytes()[:200] + bytes(200) + file.read_bytes()[400:]),
        foreign,
        of_odd_words,
    ],
)
def test_a_damaged_file_is_said_and_not_used(data, decoded, cache, damage):
    sound = inspect_table(data, deep=True)
    (file,) = cache.iterdir()
    damage(file)
    seen_again(decoded)
    (finding, *others) = sorted(inspect_table(data, deep=True).findings, key=lambda f: f.code)
    assert (finding.code, finding.severity, finding.rows) == ("cache-not-used", "warning", [])
    assert finding.message.startswith(f"{str(file)!r} is damaged and is not used: ")
    assert finding.message.isprintable()
    assert [f.message for f in others] == [f.message for f in sorted(sound.findings, key=lambda f: f.code)]
    assert seen_again(decoded) == NAMES
    assert shown(inspect_table(data, deep=True)) == shown(sound), "a sound file has taken its place"
    assert seen_again(decoded) == []


def test_a_folder_that_cannot_be_written_is_said_once(data, cache, decoded):
    cache.parent.write_text("no folder")
    findings = inspect_table(data, deep=True).findings
    (said,) = [f.message for f in findings if f.code == "cache-not-used"]
    assert said.startswith(f"what was found is not kept: cannot write '{cache}/")
    assert said.endswith(": not a directory")
    assert [f.code for f in findings].count("unreadable-file") == 1


def test_what_another_pillow_has_found_is_found_anew(data, decoded, monkeypatch):
    inspect_table(data, deep=True)
    seen_again(decoded)
    monkeypatch.setattr(known.PIL, "__version__", "99.0")
    codes = [finding.code for finding in inspect_table(data, deep=True).findings]
    assert "cache-not-used" not in codes
    assert seen_again(decoded) == NAMES


def test_its_size_is_bounded(data, cache, monkeypatch):
    inspect_table(data, deep=True)
    monkeypatch.setattr(known, "MOST_IMAGES", 6)
    with data.open("a") as file:
        file.write("".join(f"a,n{i}.png,train\n" for i in range(3)))
    for i in range(3):
        write(data.parent / f"n{i}.png", 10 + i)
    inspect_table(data, deep=True)
    paths = read_known(data.parent).table["path"].to_pylist()
    assert len(paths) == 6
    assert {"n0.png", "n1.png", "n2.png"} < set(paths)
    monkeypatch.setattr(known, "_MOST_ROOTS", 2)
    for i in range(3):
        os.utime(cache / os.listdir(cache)[0], (OLD + i, OLD + i))
        (cache / f"{i}.parquet").write_bytes(b"")
        os.utime(cache / f"{i}.parquet", (OLD + i, OLD + i))
    os.utime(data.parent / "n0.png", (OLD + 3, OLD + 3))
    inspect_table(data, deep=True)
    assert len(list(cache.iterdir())) == 2


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("METRICLI_CACHE", "")
    assert cache_folder() == Path("/home/me/.cache/metricli")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("/home/me/.cache/metricli")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_folder() == Path("/var/cache/me/metricli")
    monkeypatch.setenv("METRICLI_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_rows_that_are_known_to_be_bad(data, decoded, monkeypatch):
    table = read_table(data)
    assert len(known_to_be_bad(table, lambda: pytest.fail("nothing is known, and nothing is asked"))) == 0
    inspect_table(data, deep=True)
    seen_again(decoded)
    bad = known_to_be_bad(table, lambda: np.arange(6))
    assert bad.reasons == {
        row: f"cannot read image {str(data.parent / NAMES[row])!r}: image file is truncated" for row in (3, 4)
    }
    assert list(known_to_be_bad(table, lambda: np.array([0, 4])).reasons) == [4]
    os.utime(data.parent / "4.png", (OLD + 1, OLD + 1))
    assert list(known_to_be_bad(table, lambda: np.arange(6)).reasons) == [3]
    (data.parent / "3.png").unlink()
    assert len(known_to_be_bad(table, lambda: np.arange(6))) == 0
    assert seen_again(decoded) == [], "this never decodes"


def test_where_nothing_is_broken_nothing_is_read(data, decoded):
    table = read_table(data)
    undecodable(table, np.arange(3), 10**6)
    assert (len(read_known(table.root)), len(read_known(table.root, if_broken=True))) == (3, 0)
    undecodable(table, np.arange(5), 10**6)
    assert len(read_known(table.root, if_broken=True)) == 5


def test_a_look_that_is_stopped_keeps_what_it_has_seen(data, decoded):
    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        undecodable(read_table(data), np.arange(5), 10**6, stop)
    assert read_known(data.parent).table["path"].to_pylist() == NAMES[:2]


def test_the_refusal_names_ten_and_counts_all(tmp_path, cache):
    lines = []
    for i in range(13):
        (tmp_path / f"{i}.png").write_bytes(b"text")
        lines.append(f"a,{i}.png,train")
    (tmp_path / "t.csv").write_text("\n".join(["label,path,split", *lines]) + "\n")
    table = read_table(tmp_path / "t.csv")
    error = undecodable(table, np.arange(13), 100).refusal(table)
    assert error.exit_code == 3
    said = error.message.splitlines()
    assert said[0] == f"{tmp_path / 't.csv'}: 13 rows name images that cannot be read"
    reason = "not an image, or of a kind that is not read"
    assert said[1:-1] == [
        f"  cannot read image '{tmp_path}/{i}.png': {reason} (row {i + 1})" for i in range(10)
    ]
    assert said[-1] == "  and 3 more"
    one = undecodable(table, np.array([5]), 100).refusal(table)
    assert one.message == (
        f"{tmp_path / 't.csv'}: 1 row names an image that cannot be read: "
        f"cannot read image '{tmp_path}/5.png': {reason} (row 6)"
    )


def test_a_box_outside_its_image_is_found_too(data, tmp_path):
    header = "label,path,split,x_1,x_2,y_1,y_2"
    lines = ["a,0.png,train,0,9,0,8", "a,0.png,train,0,10,0,8", "a,1.png,train,,,,"]
    data.write_text("\n".join([header, *lines]) + "\n")
    bad = undecodable(read_table(data), np.arange(3), 1000)
    assert bad.reasons == {
        1: f"box (0, 0, 10, 8) reaches outside the 9 x 8 pixels of {str(data.parent / '0.png')!r}"
    }
