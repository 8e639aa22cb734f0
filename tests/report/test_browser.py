"""The page in a real browser: it renders, sorts and filters by keyboard, and runs nothing hostile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import metricli
from metricli import TrainReport
from tests.conftest import FIGURES
from tests.report.browser import Browser, find_browser
from tests.report.conftest import Seen

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="there is no chromium here: apt-get install chromium"),
    pytest.mark.xdist_group("browser"),
]
COLUMN = (
    "[...document.querySelectorAll('#{table} tbody tr')].filter(r => !r.hidden)"
    ".map(r => r.cells[{place}].innerText)"
)
HEADS = "document.querySelectorAll('#{table} thead button')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("browser")) as found:
        yield found


def column(browser: Browser, table: str, place: int) -> list[str]:
    return list(browser.run(COLUMN.format(table=table, place=place)))


@pytest.mark.parametrize("dark", [False, True])
def test_it_renders_in_light_and_dark_without_a_word_of_complaint(
    browser: Browser, hostile: Seen, tmp_path: Path, dark: bool
) -> None:
    browser.open(hostile.folder / "report.html", dark=dark)
    assert browser.complaints == []
    asked = [address for address in browser.requests if not address.startswith("data:image/webp;base64,")]
    assert asked == [(hostile.folder / "report.html").as_uri()]
    assert len(browser.requests) > 10
    assert browser.run("document.title") == "validation"
    assert browser.run("document.querySelectorAll('svg.chart').length") == 2
    assert browser.run("[...document.querySelectorAll('.panel')].length") > 11
    browser.screenshot(tmp_path / "page.png", height=900)
    with Image.open(tmp_path / "page.png") as image:
        ground = image.convert("L").resize((64, 64)).getextrema()
        colours = image.convert("RGB").getcolors(1 << 20) or []
    count, most = max(colours)
    assert (sum(most) < 120) is dark, most
    assert count < 0.97 * 1280 * 900
    assert ground[1] - ground[0] > 20


def test_hostile_words_do_not_run_nor_break_out(browser: Browser, hostile: Seen) -> None:
    browser.open(hostile.folder / "report.html")
    assert browser.run("typeof window.hacked") == "undefined"
    browser.run("document.querySelectorAll('*').forEach(e => e.dispatchEvent(new MouseEvent('mouseover')))")
    assert browser.run("typeof window.hacked") == "undefined"
    assert (
        browser.run("document.querySelectorAll('img, iframe, svg [onload], a:not([href^=\"#\"])').length")
        == 0
    )
    assert browser.run("JSON.parse(document.getElementById('data').textContent).queries") == 40
    # Even what would slip through could not run: the policy allows the page's own script alone.
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 9\">')")
    browser.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 9';"
        " document.body.append(s); })()"
    )
    browser.run("new Promise(done => setTimeout(done, 100))")
    assert browser.run("typeof window.hacked") == "undefined"


def test_tables_sort_by_keyboard(browser: Browser, hostile: Seen) -> None:
    browser.open(hostile.folder / "report.html")
    before = column(browser, "t-labels", 0)
    heads = HEADS.format(table="t-labels")
    place = browser.run(f"[...{heads}].findIndex(b => b.innerText.trim().startsWith('cmc@1'))")
    browser.run(f"{heads}[{place}].focus()")
    browser.press("Enter", 13, "\r")
    assert browser.run(f"{heads}[{place}].parentElement.getAttribute('aria-sort')") == "ascending"
    values = [float(text) for text in column(browser, "t-labels", place)]
    assert values == sorted(values)
    assert len(set(values)) > 2
    browser.press(" ", 32, " ")
    assert browser.run(f"{heads}[{place}].parentElement.getAttribute('aria-sort')") == "descending"
    assert [float(text) for text in column(browser, "t-labels", place)] == sorted(values, reverse=True)
    browser.run(f"{heads}[0].focus()")
    browser.press("Enter", 13, "\r")
    names = column(browser, "t-labels", 0)
    assert sorted(names) == sorted(before)
    assert names != before
    assert browser.run(f"[...{heads}].filter(b => b.parentElement.ariaSort !== 'none').length") == 1
    assert browser.complaints == []


def test_numbers_are_sorted_as_numbers_and_what_has_none_comes_last(browser: Browser, hostile: Seen) -> None:
    browser.open(hostile.folder / "report.html")
    given = ["0.5", "", "-10", "1e-7", "-2", "10", "9", "", "0", "-0.5"]
    cells = "[...document.querySelectorAll('#t-labels tbody tr')].map(r => r.cells[2])"
    browser.run(f"{cells}.forEach((c, i) => c.dataset.value = {given}[i])")
    for ordered in (sorted, lambda values: sorted(values, reverse=True)):
        browser.run(f"{HEADS.format(table='t-labels')}[2].click()")
        found = browser.run(f"{cells}.map(c => c.dataset.value)")
        assert [float(value) for value in found[:8]] == ordered([float(value) for value in given if value])
        assert found[8:] == ["", ""]


def test_tables_filter_as_one_types(browser: Browser, hostile: Seen) -> None:
    browser.open(hostile.folder / "report.html")
    field = "document.querySelector('.tools[data-for=t-queries] input')"
    output = "document.querySelector('.tools[data-for=t-queries] output').value"
    assert browser.run(output) in ("", "40 rows")
    browser.run(f"{field}.focus()")
    browser.type("PLAIN ✗")
    shown = column(browser, "t-queries", 1)
    rows = browser.run(
        "[...document.querySelectorAll('#t-queries tbody tr')].map(r => r.textContent.toLowerCase())"
    )
    wanted = [text for text in rows if "plain" in text and "✗" in text]
    assert 0 < len(shown) == len(wanted) < 40
    assert browser.run(output) == f"{len(wanted)} of 40 rows"
    browser.run(f"{field}.select()")
    browser.press("Delete", 46)
    assert len(column(browser, "t-queries", 1)) == 40
    assert browser.run(output) == "40 rows"


def test_everything_is_reached_by_keyboard(browser: Browser, hostile: Seen) -> None:
    browser.open(hostile.folder / "report.html")
    reached = set()
    for _ in range(80):
        browser.press("Tab", 9)
        reached.add(
            browser.run(
                "document.activeElement.tagName + ' ' + (document.activeElement.innerText || '').slice(0, 5)"
            )
        )
    kinds = {each.split()[0] for each in reached}
    assert {"A", "BUTTON", "INPUT", "SUMMARY", "DIV"} <= kinds
    browser.run("document.querySelector('summary').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.run("document.querySelector('details').open") is True


@pytest.mark.parametrize("width", [375, 768])
def test_a_phone_never_scrolls_sideways(browser: Browser, hostile: Seen, width: int) -> None:
    browser.open(hostile.folder / "report.html", width=width, height=800)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    wide = browser.run(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, pre, .skip, svg') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []


def test_without_its_script_it_is_all_there(browser: Browser, hostile: Seen, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(re.sub(r"<script>.*?</script>", "", hostile.html, flags=re.DOTALL), encoding="utf-8")
    browser.open(page)
    assert browser.run("getComputedStyle(document.querySelector('.tools')).display") == "none"
    assert len(column(browser, "t-queries", 0)) == 40


@pytest.mark.parametrize("kind", ["run", "table"])
def test_a_run_and_a_table_of_figures_mini_are_shown(
    browser: Browser, trained: TrainReport, tmp_path: Path, kind: str
) -> None:
    page = trained.run_dir / "report.html"
    if kind == "table":
        page = tmp_path / "table.html"
        metricli.inspect_dataset(FIGURES, html=page)
    browser.open(page)
    assert browser.complaints == []
    assert [a for a in browser.requests if not a.startswith("data:image/webp;base64,")] == [page.as_uri()]
    charts = browser.run(
        "[...document.querySelectorAll('svg.chart')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(charts) >= (5 if kind == "run" else 2)
    assert min(charts) > 100
    loaded = browser.run(
        "Promise.all([...document.querySelectorAll('.im')].slice(0, 30).map(e => new Promise(done => {"
        " const i = new Image(); i.onload = () => done(i.width); i.onerror = () => done(0);"
        " i.src = getComputedStyle(e).backgroundImage.slice(5, -2); })))"
    )
    assert min(loaded) >= 32
    table = "t-metrics" if kind == "run" else "t-splits"
    browser.run(f"{HEADS.format(table=table)}[1].focus()")
    browser.press("Enter", 13, "\r")
    values = [float(text.split()[0]) for text in column(browser, table, 1)]
    assert values == sorted(values)
    browser.open(page, width=375, height=800)
    assert browser.run("document.documentElement.scrollWidth") <= 375
