"""A predict that was cut off goes on: what is done is not computed again, and the file is the same."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from metricli.components.tensorfile import read_tensor_file, write_tensor_file
from metricli.errors import DataError, Interrupted, ResourceError, Terminated, UsageError
from metricli.runs.block_writer import BlockWriter
from metricli.runs.blocks import Blocks
from metricli.runs.features import Layout
from metricli.runs.unfinished import Unfinished
from tests.cli.conftest import process
from tests.conftest import FIGURES
from tests.runs.predicting import Cut, run, table_of
from tests.worlds import Worlds

SMALL = ("prediction.batch_size=10",)
ROWS = 150


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return table_of(tmp_path, ROWS)


@pytest.fixture
def whole(trained: Any, table: Path, tmp_path: Path) -> np.ndarray:
    """What an uninterrupted predict writes, in batches of another size."""
    run(trained.best_ckpt, table, tmp_path / "whole.npy")
    return np.load(tmp_path / "whole.npy")


def journals(part: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in part.glob("done-*") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".safetensors"])
def test_finished_blocks_are_not_computed_again(
    trained: Any, table: Path, whole: np.ndarray, tmp_path: Path, suffix: str
) -> None:
    from metricli.runs.saved_features import read_array

    out, part = tmp_path / f"f{suffix}", tmp_path / f"f{suffix}.part"
    report, read, _ = run(trained.best_ckpt, table, out, *SMALL, cut_after=4)
    assert (report, len(read), out.exists()) == (None, 50, False)
    report, read, said = run(trained.best_ckpt, table, out, *SMALL, cut_after=3)
    assert said == [f"going on with {str(part)!r}: 40 of 150 blocks are done"]
    assert read == list(range(40, 80))
    report, read, said = run(trained.best_ckpt, table, out, *SMALL)
    assert said == [f"going on with {str(part)!r}: 70 of 150 blocks are done"]
    assert read == list(range(70, 150))
    assert report is not None
    assert (report.resumed, report.rows) == (70, 150)
    np.testing.assert_allclose(read_array(out), whole, atol=1e-6)
    assert (tmp_path / "f.index.csv").read_text() == (tmp_path / "whole.index.csv").read_text()
    assert not part.exists()


@pytest.mark.xdist_group("worlds")
def test_it_goes_on_on_another_number_of_processes(
    trained: Any, worlds: Worlds, table: Path, whole: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "f.npy"
    run(trained.best_ckpt, table, out, *SMALL, cut_after=4)
    worlds.run(3, _cut_together, 2, trained.best_ckpt, table, out, *SMALL)
    told = worlds.run(2, run, trained.best_ckpt, table, out, *SMALL)
    assert told[0][2] == [f"going on with '{out}.part': 100 of 150 blocks are done"]
    assert sorted(row for _, read, _ in told for row in read) == list(range(100, 150))
    np.testing.assert_allclose(np.load(out), whole, atol=1e-6)


def _cut_together(batches: int, *args: Any) -> None:
    """Each of several processes ends after so many batches; none cleans up before the others are so far."""
    done = run(*args, cut_after=batches)
    assert done[0] is None


def test_what_does_not_match_its_digest_is_done_again(
    trained: Any, table: Path, whole: np.ndarray, tmp_path: Path
) -> None:
    out, part = tmp_path / "f.npy", tmp_path / "f.npy.part"
    run(trained.best_ckpt, table, out, *SMALL, cut_after=5)
    with (part / "data").open("rb+") as file:  # a flipped bit of row 7
        file.seek(Layout(".npy", ROWS, 16, "float32").size - (ROWS - 7) * 64 + 5)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    journal = next(part.glob("done-*-0.jsonl"))
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:-1], lines[-1][: len(lines[-1]) // 2]]))  # torn
    _, read, said = run(trained.best_ckpt, table, out, *SMALL)
    assert said == [f"going on with {str(part)!r}: 48 of 150 blocks are done"]
    assert read == [7, *range(49, 150)]
    np.testing.assert_allclose(np.load(out), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("prediction.dtype=float16", "dtype"),
        ("transforms.eval.size=48", "eval transform"),
        ("data.max_pixels=1000000", "data.max_pixels"),
        ("data.root=/tmp", "root"),
    ],
)
def test_another_request_starts_anew_and_says_why(
    trained: Any, table: Path, tmp_path: Path, word: str, other: str
) -> None:
    out = tmp_path / "f.npy"
    run(trained.best_ckpt, table, out, *SMALL, cut_after=2)
    report, read, said = run(trained.best_ckpt, table, out, *SMALL, word)
    assert said == [f"warning: starting anew: '{out}.part' was begun with another {other}"]
    assert (len(read), report and report.resumed) == (ROWS, 0)


def test_other_rows_and_another_checkpoint_start_anew(trained: Any, table: Path, tmp_path: Path) -> None:
    out, ckpt = tmp_path / "f.npy", tmp_path / "other.ckpt"
    run(trained.best_ckpt, table, out, *SMALL, cut_after=2)
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    _, read, said = run(trained.best_ckpt, table, out, *SMALL, cut_after=2)
    assert said == [f"warning: starting anew: '{out}.part' was begun with another rows"]
    again = json.loads((tmp_path / "f.npy.part/request.json").read_text())
    ckpt.write_text(json.dumps(again | {"ckpt_sha256": "0"}))
    shutil.copy(ckpt, tmp_path / "f.npy.part/request.json")
    _, read, said = run(trained.best_ckpt, table, out, *SMALL)
    assert said == [f"warning: starting anew: '{out}.part' was begun with another checkpoint"]
    assert len(read) == ROWS


@pytest.fixture
def torn(tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the drawn data set whose image of row 105 is torn."""
    folder = tmp_path / "figures"
    shutil.copytree(FIGURES.parent, folder)
    image = folder / (folder / "df.csv").read_text().splitlines()[106].split(",")[1]
    image.write_bytes(b"torn")
    return folder / "df.csv", image


def test_a_failure_keeps_what_is_done_and_says_so(
    trained: Any, tmp_path: Path, torn: tuple[Path, Path]
) -> None:
    """Rows done while bad images stop the run are as good where they are skipped, as the hint advises."""
    table, image = torn
    out = tmp_path / "f.npy"
    with pytest.raises(DataError) as caught:
        run(trained.best_ckpt, table, out, *SMALL)
    assert caught.value.message.startswith(f"cannot read image {str(image)!r}")
    assert caught.value.hint == (
        "repair or remove it, or set data.on_bad_image=skip; "
        f"the same command goes on: 100 of 204 blocks are done in '{out}.part'"
    )
    report, read, _ = run(trained.best_ckpt, table, out, *SMALL, "data.on_bad_image=skip", cut_after=3)
    assert (report, read) == (None, list(range(100, 140)))
    assert [line["block"] for line in journals(tmp_path / "f.npy.part") if line["skipped"]] == [105]
    with pytest.raises(DataError, match="129 of 204 blocks"):  # what was skipped must be read now
        run(trained.best_ckpt, table, out, *SMALL)
    report, read, _ = run(trained.best_ckpt, table, out, *SMALL, "data.on_bad_image=skip")
    assert report is not None
    assert (report.resumed, report.skipped) == (129, [f"images/{image.name}"])
    assert np.flatnonzero(np.isnan(np.load(out)).any(1)).tolist() == [105]


def test_a_failure_before_the_first_block_leaves_nothing(trained: Any, table: Path, tmp_path: Path) -> None:
    run(trained.best_ckpt, table, tmp_path / "f.npy", *SMALL, cut_after=0)
    assert [path.name for path in tmp_path.iterdir()] == [table.name]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_goes_on(trained: Any, table: Path, tmp_path: Path, signum: int) -> None:
    write, batches = BlockWriter.write, []

    def signalled(self: BlockWriter, *args: Any) -> None:
        batches.append(1)
        if len(batches) == 3:
            os.kill(os.getpid(), signum)
        write(self, *args)

    def terminated(_signum: int, _frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        with mock.patch.object(BlockWriter, "write", signalled), pytest.raises(Interrupted) as caught:
            run(trained.best_ckpt, table, tmp_path / "f.npy", *SMALL)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.exit_code == 128 + signum
    assert caught.value.hint == (
        f"the same command goes on: 20 of 150 blocks are done in '{tmp_path / 'f.npy'}.part'"
    )
    _, read, _ = run(trained.best_ckpt, table, tmp_path / "f.npy", *SMALL)
    assert read == list(range(20, 150))


@pytest.mark.parametrize("where", ["write_manifest", "write_index"])
def test_an_end_while_the_files_are_put_in_place_is_mended(
    trained: Any, table: Path, whole: np.ndarray, tmp_path: Path, where: str
) -> None:
    out = tmp_path / "f.npy"
    with (
        mock.patch(f"metricli.runs.unfinished.{where}", side_effect=OSError(errno.ENOSPC, "No space left")),
        pytest.raises(ResourceError) as caught,
    ):
        run(trained.best_ckpt, table, out)
    assert str(caught.value) == (
        f"cannot write {str(out)!r}: No space left; free some space; "
        f"the same command goes on: 150 of 150 blocks are done in '{out}.part'"
    )
    assert not out.exists()
    report, read, _ = run(trained.best_ckpt, table, out)
    assert (read, report and report.resumed) == ([], 150)
    np.testing.assert_array_equal(np.load(out), whole)


def test_an_end_after_the_last_move_costs_nothing(
    trained: Any, table: Path, whole: np.ndarray, tmp_path: Path
) -> None:
    out, part = tmp_path / "f.npy", tmp_path / "f.npy.part"
    with (
        mock.patch.object(Unfinished, "remove", side_effect=Cut),
        mock.patch.object(Unfinished, "kept", return_value=nullcontext()),
    ):
        run(trained.best_ckpt, table, out)
    assert out.exists()
    assert not (part / "data").exists()
    report, read, said = run(trained.best_ckpt, table, out)
    assert said == [f"going on with {str(part)!r}: 150 of 150 blocks are done"]
    assert (read, report and report.resumed) == ([], 150)
    np.testing.assert_array_equal(np.load(out), whole)
    assert not part.exists()


def test_another_file_in_its_place_is_not_taken_for_it(
    trained: Any, table: Path, whole: np.ndarray, tmp_path: Path
) -> None:
    out, part = tmp_path / "f.npy", tmp_path / "f.npy.part"
    run(trained.best_ckpt, table, out, *SMALL, cut_after=4)
    (part / "data").unlink()
    np.save(out, whole + 1)
    _, read, _ = run(trained.best_ckpt, table, out, *SMALL)
    assert len(read) == ROWS
    np.testing.assert_allclose(np.load(out), whole, atol=1e-6)


def test_a_folder_that_another_command_has_just_removed(tmp_path: Path) -> None:
    work = Unfinished(tmp_path / "f.npy", Layout(".npy", ROWS, 16, "float32"), Blocks(0, ROWS))
    for again in (False, True):

        def removed(_handle: int, _how: int, again: bool = again) -> None:
            work.folder.rmdir()
            if again:
                work.folder.mkdir()

        with (
            mock.patch("metricli.runs.unfinished.fcntl.flock", removed),
            pytest.raises(UsageError, match="another command is writing"),
            work.locked(),
        ):
            pass


def test_two_commands_do_not_write_one_file(trained: Any, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npy"
    other = Unfinished(out, Layout(".npy", ROWS, 16, "float32"), Blocks(0, ROWS))
    with other.locked(), pytest.raises(UsageError) as caught:
        run(trained.best_ckpt, table, out)
    assert str(caught.value) == (
        f"another command is writing {str(out)!r}; wait for its end, or give another --out"
    )
    run(trained.best_ckpt, table, out)
    assert out.exists()


def test_a_folder_of_others_is_not_touched(trained: Any, table: Path, tmp_path: Path) -> None:
    out, part = tmp_path / "f.npy", tmp_path / "f.npy.part"
    part.write_text("mine")
    with pytest.raises(UsageError, match="is a file in the place of a folder of ours"):
        run(trained.best_ckpt, table, out)
    part.unlink()
    part.mkdir()
    (part / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds 'notes\.txt', which is no part of features"):
        run(trained.best_ckpt, table, out)
    assert [path.name for path in part.iterdir()] == ["notes.txt"]


def test_kill_9_and_the_same_command_again(
    trained: Any, table: Path, whole: np.ndarray, tmp_path: Path
) -> None:
    out, part = tmp_path / "f.npy", tmp_path / "f.npy.part"
    words = ["predict", "--ckpt", trained.best_ckpt, "--data", table, "--out", out]
    words += ["data.allow_outside_root=true", "prediction.batch_size=1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = process(*words, cwd=tmp_path, **quiet)
    deadline = time.monotonic() + 60
    while not (part.is_dir() and len(journals_whole(part)) > 5):
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.kill()
    running.wait()
    done = len(journals_whole(part))
    assert 5 < done < ROWS
    report, read, said = run(trained.best_ckpt, table, out)
    assert said == [f"going on with {str(part)!r}: {done} of 150 blocks are done"]
    assert (read, report and report.resumed) == (list(range(done, ROWS)), done)
    np.testing.assert_allclose(np.load(out), whole, atol=1e-6)
    assert not part.exists()


def journals_whole(part: Path) -> list[str]:
    return [line for path in part.glob("done-*") for line in path.read_text().splitlines(True) if "}" in line]


def test_the_manifest_names_the_file_that_was_read(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may put another best.ckpt in its place meanwhile."""
    from metricli.runs import checkpoints

    ckpt, newer = tmp_path / "best.ckpt", tmp_path / "newer.ckpt"
    shutil.copy(trained.best_ckpt, ckpt)
    tensors, meta, _ = read_tensor_file(ckpt)
    write_tensor_file(newer, {name: tensor * 2 for name, tensor in tensors.items()}, meta)
    digest, read = checkpoints.file_sha256, checkpoints.read_best
    seen = []

    def noting(path: Path) -> Any:
        seen.append(digest(path))
        found = read(path)
        if newer.exists():
            newer.replace(path)
        return found

    monkeypatch.setattr(checkpoints, "read_best", noting)
    best, named = checkpoints.read_best_and_sha256(ckpt)
    assert named == digest(ckpt) == seen[-1] != seen[0]
    assert best.sha256 == read(ckpt).sha256
