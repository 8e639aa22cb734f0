"""Names that steer a terminal come out escaped where a person reads, and exact where a program does."""

import csv
import io
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from metricli.cli import lines, progress
from metricli.tables import printable, shortened
from tests.hostile.cases import FINE, HOSTILE, Case
from tests.hostile.names import SINGLE, name_cases, table_of


@pytest.mark.parametrize("case", list(name_cases()), ids=lambda case: case.name)
def test_hostile_names(tried, case):
    tried(case)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_json_has_the_exact_name_and_the_table_an_escaped_one(tried, name):
    words = ["validate", "--features", "{features}", "--data", "t.csv", "--root", "{root}"]
    shown = tried(Case("shown", words, {"t.csv": table_of(name)}, codes=FINE))
    assert shortened(printable(f"c{name}"), 80) in shown.out
    told = tried(Case("told", [*words, "--json"], codes=FINE))
    assert list(json.loads(told.out)["metrics"]) == ["OVERALL", f"c{name}"]


def test_predicted_paths_are_exact_in_the_index(tried, tmp_path, ground):
    names = [f"{name.replace('/', '-')}.png" for name in SINGLE if name.strip()]
    folder = tmp_path / "images"
    folder.mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name, format="png")
    words = ["predict", "--ckpt", "{best}", "--data", "images", "--out", "f.npy"]
    tried(Case("folder", words, codes=FINE))
    with (tmp_path / "f.index.csv").open(newline="", encoding="utf-8") as file:
        index = list(csv.DictReader(file))
    assert [row["path"] for row in index] == sorted(names)
    assert len(np.load(tmp_path / "f.npy")) == len(names)
    (folder / names[0]).write_bytes(b"no image")
    outcome = tried(Case("torn", words, codes=frozenset({3})))
    assert printable(names[0]) in outcome.err
    skipped = tried(Case("skipped", [*words, "data.on_bad_image=skip"], codes=FINE))
    assert "1 of" in skipped.err
    shutil.rmtree(folder)


def test_a_run_on_hostile_names_logs_them_escaped(tried, tmp_path):
    name = "\x1b[2J[red]\u202e\x9b"
    rows = table_of(name).decode().replace(",train,", ",train,").replace("a,0.png", f"a{name},0.png")
    words = ["train", "{spec}", "data.table={here}/t.csv", "data.root={root}", "training.epochs=1"]
    tried(Case("run", [*words, "--run-dir", "run"], {"t.csv": rows.encode()}, codes=FINE))
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert log
    assert log.replace("\n", "").isprintable()


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_terminal_gets_no_markup_and_no_escape_of_a_name(monkeypatch, name):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200000")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, _Terminal())
    lines.table(["", name], [[name, "1"]], title=name)
    lines.out(name)
    live = progress.LiveReporter()
    live.say(name)
    live.warn(name)
    assert sys.stderr.getvalue() == f"{printable(name)}\nwarning: {printable(name)}\n"
    written = sys.stdout.getvalue()
    assert written.replace("\n", "").isprintable(), repr(written[:500])
    if len(name) < 20:  # a longer one is folded
        assert written.count(printable(name).strip()) >= 3
