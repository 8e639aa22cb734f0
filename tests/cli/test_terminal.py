"""What a person sees: no line broken at 80 columns, nothing but plain lines in a pipe."""

import io
import math
import re
from unicodedata import east_asian_width

import pytest

from metricli.cli import progress, render
from metricli.cli.bars import two_sides
from metricli.reports import (
    Comparison,
    Flips,
    MetricDifference,
    PairHistogram,
    TrainReport,
    ValidateReport,
)
from metricli.tables import aligned, broken

ROW = {
    "epoch": 3,
    "epochs": 20,
    "loss": 0.12345,
    "lr": 2.5e-4,
    "seconds": 12.3,
    "cmc@1": 0.5,
    "cmc@5": 0.75,
    "precision@5": 0.1234,
    "map@5": 0.3,
    "map@r": 0.25,
    "best": 1,
}
LIVE = {
    "loss": 0.1,
    "lr": 1e-3,
    "active": 0.5,
    "positive_distance": 0.9,
    "negative_distance": 1.1,
    "images": 64,
}


def live(monkeypatch, width):
    """A reporter on a terminal of this width, and what it wrote."""
    from rich.console import Console

    reporter = progress.LiveReporter()
    written = io.StringIO()
    reporter.console = Console(file=written, force_terminal=True, width=width, highlight=False)
    return reporter, written


def shown(written):
    """The lines without colours and cursor moves."""
    return [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue()).split("\n") if line]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (80, "epoch 3/20  loss 0.1235  lr 2.50e-04  cmc@1 0.5000  cmc@5 0.7500  12.3 s  best"),
        (
            140,
            "epoch 3/20  loss 0.1235  lr 2.50e-04  cmc@1 0.5000  cmc@5 0.7500  "
            "precision@5 0.1234  map@5 0.3000  map@r 0.2500  12.3 s  best",
        ),
        (20, "epoch 3/20  12.3 s  best"),
    ],
)
def test_an_epoch_is_one_line_on_a_terminal(monkeypatch, width, expected):
    reporter, written = live(monkeypatch, width)
    reporter.epoch(ROW)
    assert shown(written) == [expected]


def test_an_epoch_is_whole_in_a_pipe():
    line = progress.describe_epoch(ROW)
    assert line.endswith("map@5 0.3000  map@r 0.2500  12.3 s  best")


@pytest.mark.parametrize(
    ("width", "name", "numbers"),
    [
        (
            140,
            "epoch 1/4",
            "loss 0.1000, lr 1.00e-03, active 0.5000, d+ 0.9000, d- 1.1000, 128 images/s",
        ),
        (80, "epoch 1/4", "loss 0.1000, lr 1.00e-03, 128 images/s"),
        (80, "epoch 10/20 (frozen)", "loss 0.1000, 128 images/s"),
        (60, "epoch 10/20 (frozen)", ""),
        (40, "epoch 10/20 (frozen)", ""),
    ],
)
def test_the_bar_fits_the_terminal(monkeypatch, width, name, numbers):
    reporter, written = live(monkeypatch, width)
    reporter.begin(name, 1000, "step")
    reporter.started -= 0.5
    monkeypatch.setattr(progress.time, "monotonic", lambda started=reporter.started: started + 0.5)
    reporter.advance(500, LIVE)
    reporter.progress.refresh()
    reporter.end()
    lines = [line.rstrip() for part in shown(written) for line in part.split("\r") if "50" in line]
    assert all(len(line) <= width for line in lines)
    if width >= 60:
        assert lines
        assert all(line.startswith(name) and "500/1000" in line for line in lines)
        assert lines[-1].endswith(numbers)


@pytest.mark.parametrize(("unit", "each"), [("step", "images"), ("image", "images"), ("query", "queries")])
def test_progress_in_a_pipe_is_a_line_every_half_minute(capfd, monkeypatch, unit, each):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    reporter = progress.reporter()
    assert type(reporter) is progress.PlainReporter
    reporter.begin("work", 100, unit)
    for _ in range(60):
        now[0] += 1
        reporter.advance(1, {"images": 8} if unit == "step" else None)
    rate = 8 if unit == "step" else 1
    counted = {"step": "steps", "image": "images", "query": "queries"}[unit]
    assert capfd.readouterr().err.splitlines() == [
        f"work: 30/100 {counted}, {rate} {each}/s, 1:10 left",
        f"work: 60/100 {counted}, {rate} {each}/s, 0:40 left",
    ]
    quiet = progress.reporter(quiet=True)
    quiet.say("nothing")
    quiet.epoch(ROW)
    quiet.warn("careful")
    assert capfd.readouterr().err == "warning: careful\n"


@pytest.mark.parametrize("width", [70, 140])
def test_the_metric_tables_fit_the_terminal(capfd, monkeypatch, width, tmp_path):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.chdir(tmp_path)
    categories = ("OVERALL", "a category with a long name")
    metrics = {name: {k: v for k, v in ROW.items() if "@" in k} for name in categories}
    folder = tmp_path / "runs" / ("x" * 60)
    report = TrainReport(
        metrics, folder, folder / "best.ckpt", folder / "last.ckpt", 3, 20, 60, "cmc@1", 0.5, "epochs"
    )
    render.trained(report)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capfd.readouterr().out).splitlines()
    tables = [line for line in lines if "runs/" not in line]
    assert all(len(line) <= width for line in tables)
    name = "a category with a long name" if width == 140 else "a category with a long…"
    assert sum(line.strip().startswith(f"{name} ") for line in tables) == (1 if width == 140 else 2)
    heads = [line.split() for line in tables if "@" in line and not line.startswith("best epoch")]
    names = [name for name in ROW if "@" in name]
    assert [name for head in heads for name in head] == names
    assert len(heads) == (1 if width == 140 else 2)
    assert lines[-1] == f"next        metricli validate --ckpt runs/{'x' * 60}/best.ckpt"


def test_a_report_in_a_pipe_has_no_escape_codes_and_is_never_cut(cli, figures, tmp_path):
    long = "n" * 150
    (figures / "long.csv").write_text(
        f"label,path,split,is_query,is_gallery,{long}\na,images/arc_plain_8.png,validation,1,1,x\n"
    )
    done = cli("inspect-dataset", "figures/long.csv")
    assert long in done.out
    assert "\x1b" not in done.out + done.err


def judged(**changes):
    known = {
        "metrics": {"OVERALL": {"cmc@1": 0.5}},
        "split": "validation",
        "queries": 4,
        "gallery": 5,
        "queries_without_match": 0,
        "distance": "cosine",
        "embeddings": "x.npy",
    }
    return ValidateReport(**known | changes)


def test_a_terminal_shows_some_categories_and_a_pipe_all(capfd, monkeypatch):
    names = ["OVERALL", *(f"c{i:02}" for i in range(22)), "x" * 70]
    report = judged(metrics={name: {"cmc@1": 0.5} for name in names})
    render.validated(report)
    piped = capfd.readouterr().out
    assert all(name in piped for name in names)
    assert "more categor" not in piped
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    render.validated(report)
    shown = capfd.readouterr().out
    assert [name in shown for name in names] == [True] * 21 + [False] * 3
    assert "and 3 more categories, see --json" in shown


def test_the_line_on_intervals_is_true(capfd):
    nan = math.nan
    intervals = {"OVERALL": {"cmc@1": (0.4, 0.6)}, "a": {"cmc@1": (nan, nan)}}
    line = "95% intervals: bootstrap over labels; too narrow where there are fewer than 10"
    for given, said in (
        (intervals, [line]),
        ({"OVERALL": {"cmc@1": (nan, nan)}}, ["fewer than two labels: no intervals"]),
        ({"OVERALL": {}}, []),  # of verification alone
        ({}, []),  # not asked for
    ):
        render.validated(judged(intervals=given))
        assert [text for text in capfd.readouterr().out.splitlines() if "intervals" in text] == said


def test_a_threshold_without_a_value(capfd):
    thresholds = {"OVERALL": {"fnmr@0.1": 0.25, "eer": math.nan}}
    render.validated(judged(metrics={"OVERALL": {"eer": math.nan}}, thresholds=thresholds))
    assert "threshold on the distance: fnmr@0.1 at 0.2500, eer at -\n" in capfd.readouterr().out


@pytest.mark.parametrize("width", [60, 100])
def test_a_comparison_fits_the_terminal(capfd, monkeypatch, width):
    entry = MetricDifference(0.25, 0.5, 0.25, 0.1, 0.4, 0.002, "better")
    names = ("cmc@1", "precision_capped@5")
    differences = {category: dict.fromkeys(names, entry) for category in ("OVERALL", "c" * 70)}
    flips = Flips("cmc@1", 1, 0, 3, [("l" * 70, 1, 0)])
    found = Comparison("old", "new", 4, 2, 0.95, 1000, differences, flips)
    render.validated(judged(comparison=found))
    assert "c" * 70 in capfd.readouterr().out
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    render.validated(judged(comparison=found))
    lines = capfd.readouterr().out.split("\n\n", 1)[1].splitlines()
    assert max(map(len, lines)) <= width
    assert sum("+0.1000 to +0.4000" in line for line in lines) == 4


def test_a_failure_on_a_terminal_takes_the_place_of_a_bar_that_was_left(monkeypatch):
    """That of a process that was killed, with the cursor hidden; a pipe gets the words alone."""
    from metricli.cli.launch import fail
    from metricli.errors import WorkerError

    for terminal in (False, True):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stderr", stream)
        assert fail(WorkerError("rank 0 is gone"), as_json=False) == 6
        tidy = "\r\x1b[2K\x1b[?25h" if terminal else ""
        assert stream.getvalue() == f"{tidy}error: rank 0 is gone\n"


def test_words_in_a_pipe_are_broken_between_them_and_nowhere_else(capfd):
    reporter = progress.PlainReporter()
    path = "/a/long/path-with-hyphens" * 12
    reporter.warn("word " * 90 + path)
    reporter.say("short")
    reporter.epoch(ROW | {f"metric@{k}": 0.5 for k in range(40)})
    reporter.begin("epoch 1/4", 10, "step")
    reporter.said -= 60
    reporter.advance(1, dict.fromkeys(progress.LIVE, 0.5))
    lines = capfd.readouterr().err.splitlines()
    whole = [line for line in lines if line.strip() != path]
    assert len(lines) == len(whole) + 1
    assert max(map(len, whole)) <= 200
    assert " ".join(" ".join(lines[:4]).split()) == "warning: " + "word " * 90 + path
    assert lines[4] == "short"
    assert lines[5].startswith("epoch 3/20  loss 0.1235")
    assert " ".join(lines[5:-1]).endswith("12.3 s  best")
    assert "metric@39 0.5000" in " ".join(lines[5:-1]), "nothing is cut"
    assert lines[-1].startswith("epoch 1/4: 1/10 steps, loss 0.5000")


def test_many_metrics_in_a_pipe_are_several_tables(capfd):
    names = [f"precision_capped@{k}" for k in range(1, 25)]
    metrics = {category: {name: k / 100 for k, name in enumerate(names)} for category in ("OVERALL", "ring")}
    render.metrics_table(metrics, {}, 0.95)
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 200
    heads = [line.split() for line in lines if "precision" in line]
    assert len(heads) > 1
    assert [name for head in heads for name in head] == names
    values = [value for line in lines if line.startswith("ring") for value in line.split()[1:]]
    assert values == [f"{k / 100:.4f}" for k in range(24)]


def test_a_run_in_a_pipe_has_no_escape_codes_and_no_long_lines(cli, spec):
    ks = ", ".join(map(str, range(1, 13)))
    metrics = f"validation.metrics={{cmc: [{ks}], precision: [{ks}], recall: [{ks}], map: [1, 5], mrr: true}}"
    done = cli("train", spec, metrics, "validation.monitor=cmc@1", "training.log_every_steps=1")
    assert done.code == 0, done.err
    lines = (done.out + done.err).splitlines()
    assert "\x1b" not in done.out + done.err
    assert "\r" not in done.out + done.err
    assert max(map(len, lines)) <= 200
    assert done.out.splitlines()[-6].startswith("best epoch  ")
    assert [line.split()[0] for line in done.out.splitlines()[-5:]] == [
        "trained",
        "best",
        "last",
        "report",
        "next",
    ]


PAIRS = PairHistogram(
    edges=[0, 0.5, 1.0, 1.5, 2.0], genuine=[6, 2, 0, 0], impostor=[0, 1, 9_999, 0], is_exact=False
)


@pytest.mark.parametrize("width", [80, 140])
def test_a_histogram_of_pairs(width):
    """Each side as shares of its own total; both bars on one scale, on which the largest share is full."""
    title, head, *lines = [
        "".join(text for text, _ in line) for line in two_sides(PAIRS, "cosine", "#", width)
    ]
    assert (
        title
        == "cosine distances between the embeddings of 8 genuine and 10,000 impostor pairs, drawn at random"
    )
    assert head.split() == ["genuine", "impostor"]
    assert max(map(len, lines)) <= width
    long = (width - 14 - 24) // 2
    cells = [line.split() for line in lines]
    assert [line[:3] for line in cells] == [
        ["0.000", "to", "0.500"],
        ["0.500", "to", "1.000"],
        ["1.000", "to", "1.500"],
        ["1.500", "to", "2.000"],
    ]
    assert cells[0][3:] == ["75.0", "%", "#" * round(0.75 / 0.9999 * long)]
    assert cells[1][3:] == ["25.0", "%", "#" * round(0.25 / 0.9999 * long), "<0.1", "%", "#"]
    assert cells[2][3:] == ["100.0", "%", "#" * long]
    assert cells[3][3:] == []
    starts = {line.index("#", 14) for line in (lines[0], lines[1])}
    assert starts == {head.index("genuine")}
    assert lines[2].index("#") == head.index("impostor")


def test_a_terminal_has_blocks_and_colours_and_a_pipe_has_neither(capfd, monkeypatch):
    report = judged(count=lambda: PAIRS)
    render.validated(report)
    piped = capfd.readouterr().out
    assert "#" in piped
    assert "█" not in piped
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    render.validated(report)
    drawn = capfd.readouterr().out
    assert re.search("\x1b\\[32m█+", drawn), "genuine pairs in green"
    assert re.search("\x1b\\[31m█+", drawn), "impostor pairs in red"
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR")
    render.validated(report)
    assert "\x1b[3" not in capfd.readouterr().out


def test_no_pairs_no_histogram(capfd):
    nothing = PairHistogram(edges=[0.0, 1.0], genuine=[0], impostor=[0], is_exact=True)
    render.validated(judged(count=lambda: nothing))
    assert "distances between" not in capfd.readouterr().out


def test_long_lines_of_several_are_broken_each_by_itself():
    """A problem stays below its heading; what follows of it is indented further; a long word stays whole."""
    text = "1 problem\n  line 7  " + "word " * 60 + "x" * 250 + "\nshort"
    lines = broken(text)
    assert lines[0] == "1 problem"
    assert lines[-1] == "short"
    assert all(line.startswith("    ") for line in lines[2:-1])
    assert [line for line in lines if len(line) > 200] == ["    " + "x" * 250]
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert broken("  a line of spaces kept") == ["  a line of spaces kept"]


def test_columns_of_wide_characters_are_aligned():
    """Two columns for a Chinese character, by the standard's widths."""
    rows = [["", "cmc@1"], ["多边形", "0.5000"], ["ring", "0.2500"]]
    lines = aligned(rows, left=(0,))
    ends = [sum(2 if east_asian_width(c) in "WF" else 1 for c in line) for line in lines]
    assert ends == [14, 14, 14]
    assert lines[1] == "多边形  0.5000"


def test_a_long_category_leaves_room_for_the_metrics(capfd):
    metrics = {
        name: {f"cmc@{k}": 0.5 for k in range(1, 7)} for name in ("OVERALL", "c" * 300, "c" * 299 + "d")
    }
    render.metrics_table(metrics, {}, 0.95)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 4, "two categories that begin alike are two lines"
    assert max(map(len, lines)) <= 200


def test_a_metric_without_a_value_is_a_dash(tmp_path):
    nan = math.nan
    assert "cmc@1 -" in progress.describe_epoch(ROW | {"cmc@1": nan})
    assert progress.number(0.0) == "0"


@pytest.mark.parametrize(
    ("metrics", "value", "expected"),
    [
        ({"OVERALL": {"cmc@1": 0.5}}, 0.5, ["3 of 20 (cmc@1 0.5000)", "metricli validate --ckpt"]),
        (
            {"OVERALL": {"cmc@1": math.nan}},
            math.nan,
            ["3 of 20 (the newest; cmc@1 has no value)", "metricli validate --ckpt"],
        ),
        ({}, math.nan, ["3 of 20", "metricli predict --out feats.npy --ckpt"]),
    ],
)
def test_the_end_of_a_run_says_what_can_be_done(capfd, tmp_path, metrics, value, expected):
    files = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    render.trained(TrainReport(metrics, tmp_path, *files, 3, 20, 60, "cmc@1", value, "early stopping"))
    lines = capfd.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("best epoch")) == f"best epoch  {expected[0]}"
    assert "trained     60 steps in 0:00, stopped early" in lines
    assert lines[-1] == f"next        {expected[1]} {files[0]}"


def test_a_report_prints_its_comparison():
    entry = MetricDifference(0.25, 0.5, 0.25, 0.1, 0.4, 0.002, "better")
    found = Comparison(
        "old", "new", 4, 2, 0.95, 1000, {"OVERALL": {"cmc@1": entry}}, Flips("cmc@1", 1, 0, 3, [])
    )
    assert str(judged(comparison=found)) == f"{judged()}\n\n{found}"
