"""The pictures that loggers get: what is drawn where, read off the pixels."""

from __future__ import annotations

import base64
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFont

from metricli.pages import plots
from metricli.pages import sheets as drawing
from metricli.pages.model import DistanceBars, EmbeddingMap, Item, Panel, Pictures, Shown
from metricli.pages.plots import histogram, scatter
from metricli.pages.sheets import drawable, font, sheets
from metricli.reports import OVERALL

BLUE = (10, 20, 240)


def items(folder: Path, count: int, size: tuple[int, int] = (40, 40)) -> list[Item]:
    """Blue images; the last one's file is not an image."""
    found = []
    for place in range(count):
        path = folder / f"{place}.png"
        Image.new("RGB", size, BLUE).save(path)
        found.append(Item(row=place + 1, path=path.name, label=f"label {place}", category="ab"[place % 2]))
    (folder / f"{count - 1}.png").write_bytes(b"not an image")
    return found


def pictures(folder: Path, **more: Any) -> Pictures:
    return Pictures(
        **{
            "distance": "cosine", "root": str(folder), "gallery_root": str(folder), "max_pixels": 10**6,
            "metric": "map@r", "columns": [], "queries": 4, "gallery": 4, "without_match": 0, "items": [],
            **more,
        }
    )  # fmt: skip


def panel(matches: str, missed: int = 0, group: str = OVERALL, kind: Any = "worst") -> Panel:
    """A panel of the query 0: `+-` are a match and another label."""
    results = [
        Shown(item=place, distance=place / 10, is_match=sign == "+", rank=place)
        for place, sign in enumerate(matches, start=1)
    ]
    left = [Shown(item=1, distance=0.9, is_match=True) for _ in range(missed)]
    return Panel(
        group=group, kind=kind, query=0, value=0.25, relevant=3, results=results, missed=left,
        missed_in_all=missed,
    )  # fmt: skip


def borders(sheet: NDArray[np.uint8]) -> list[list[str]]:
    """What the long lines across the sheet say: of each row of tiles, the kinds of its tiles."""
    kinds = {(22, 25, 31): "query", (18, 129, 63): "match", (192, 43, 43): "other", (89, 98, 115): "missed"}
    rows = []
    for line in sheet:
        runs = [(tuple(colour), len(list(some))) for colour, some in groupby(map(tuple, line.tolist()))]
        found = [kinds[colour] for colour, length in runs if length > 100 and colour in kinds]
        if found and (not rows or rows[-1][0] != found):
            rows.append((found, 1))
    return [found for found, _ in rows]


def test_borders_say_what_matches(tmp_path: Path) -> None:
    known = items(tmp_path, 5)
    found = list(
        sheets(pictures(tmp_path, items=known, panels=[panel("+--", 2), panel("-+", kind="median")]))
    )
    assert [(group, kind) for group, kind, _ in found] == [(OVERALL, "worst"), (OVERALL, "median")]
    worst, median = (sheet for *_, sheet in found)
    assert borders(worst) == [["query", "match", "other", "other", "missed", "missed"]]
    assert borders(median) == [["query", "other", "match"]]
    assert (worst.dtype, worst.ndim, worst.shape[2]) == (np.uint8, 3, 3)


def test_rows_stand_below_each_other(tmp_path: Path) -> None:
    both = [panel("+-"), panel("-+", 1)]
    ((_, _, sheet),) = sheets(pictures(tmp_path, items=items(tmp_path, 4), panels=both))
    assert borders(sheet) == [["query", "match", "other"], ["query", "other", "match", "missed"]]


def blue(sheet: NDArray[np.uint8]) -> int:
    return int((np.abs(sheet.astype(int) - BLUE).max(2) < 20).sum())


def test_images_fill_their_tiles(tmp_path: Path) -> None:
    """112 x 112 pixels of each of three tiles, however small the file; the broken one's stays empty."""
    known = items(tmp_path, 4, size=(8, 8))
    ((_, _, sheet),) = sheets(pictures(tmp_path, items=known, panels=[panel("+-+")]))
    assert blue(sheet) == pytest.approx(3 * 112 * 112, rel=0.01)
    ((_, _, late),) = sheets(pictures(tmp_path, items=known, panels=[panel("+-+")]), seconds=0)
    assert blue(late) == 0
    assert borders(late) == borders(sheet)


def test_categories_have_their_own(tmp_path: Path) -> None:
    some = [panel("+"), panel("-", group="ring/\n<b>"), panel("+", group="ring/\n<b>", kind="random")]
    found = sheets(pictures(tmp_path, items=items(tmp_path, 3), panels=some))
    assert [x[:2] for x in found] == [(OVERALL, "worst"), ("ring/\n<b>", "worst"), ("ring/\n<b>", "random")]


def greenish(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    red, green, _ = np.moveaxis(image.astype(int), 2, 0)
    return green > red + 25


def reddish(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    red, green, _ = np.moveaxis(image.astype(int), 2, 0)
    return red > green + 25


def test_histogram_draws_shares(tmp_path: Path) -> None:
    """Genuine pairs in the first quarter, impostors evenly in the others: areas and places follow."""
    bars = DistanceBars(
        edges=[0, 0.5, 1, 1.5, 2], genuine=[7, 0, 0, 0], impostor=[0, 20, 20, 20], is_exact=True
    )
    image = histogram(pictures(tmp_path, distances=bars))
    assert image is not None
    body = image[30:-44]
    green, red = np.argwhere(greenish(body)), np.argwhere(reddish(body))
    inner = image.shape[1] - 48
    assert green[:, 1].max() == pytest.approx(24 + inner / 4, abs=3)
    assert red[:, 1].min() == pytest.approx(24 + inner / 4, abs=3)
    tall, low = np.ptp(green[:, 0]), np.ptp(red[:, 0])
    assert tall / low == pytest.approx(3, rel=0.05), "a share of 1 is three times as tall as one of 1/3"


def test_histogram_marks_operating_points(tmp_path: Path) -> None:
    bars = DistanceBars(edges=[0, 1, 2], genuine=[1, 0], impostor=[0, 1], is_exact=True)
    points = {OVERALL: {"fnmr@fmr=0.1": 0.5, "elsewhere": 9.0, "unknown": None}}
    plain, marked = (
        histogram(pictures(tmp_path, distances=bars, thresholds=which)) for which in ({}, points)
    )
    assert plain is not None
    assert marked is not None
    lines = np.flatnonzero((marked != plain).any(2).mean(0) > 0.7)
    assert lines.tolist() == pytest.approx([24 + (720 - 48) / 4] * len(lines), abs=2)
    assert len(lines) >= 1
    assert histogram(pictures(tmp_path)) is None
    empty = DistanceBars(edges=[0, 1], genuine=[0], impostor=[0], is_exact=True)
    assert histogram(pictures(tmp_path, distances=empty)) is None


def test_map_places_and_colours(tmp_path: Path) -> None:
    """Two images left of all others, above them: each category's dots lie where its scores are."""
    scores = np.array([[-1, 0.5], [1, -0.5], [-0.9, 0.5], [0.9, -0.5]])
    packed = base64.b64encode(scores.astype("<f2").tobytes()).decode()
    chart = EmbeddingMap(items=[0, 1, 2, 3], scores=packed, dims=2, scale=3.0, shares=[0.6, 0.3], of=4)
    image = scatter(pictures(tmp_path, items=items(tmp_path, 4), map=chart))
    assert image is not None
    dots = image[20:, :480].astype(int)
    first = np.argwhere(dots[..., 2] > dots[..., 0] + 60)
    second = np.argwhere(dots[..., 0] > dots[..., 2] + 60)
    assert first[:, 1].max() < 100 < 350 < second[:, 1].min(), "categories by their first component"
    assert first[:, 0].max() < second[:, 0].min(), "a larger second component is higher up"
    legend = image[:, 480:].astype(int)
    assert ((legend[..., 2] > legend[..., 0] + 60).any(), (legend[..., 0] > legend[..., 2] + 60).any()) == (
        True,
        True,
    )
    assert scatter(pictures(tmp_path)) is None


def test_words_that_the_font_lacks_are_escapes() -> None:
    assert drawable("Zoe 1 <b>\n") == "Zoe 1 <b>\\n"
    assert drawable("a\u718a\U0001f43c") == "a\\u718a\\U0001f43c"


def test_a_label_without_glyphs_is_named_by_its_row(tmp_path: Path) -> None:
    """Below a tile there is room for three escapes."""
    known = items(tmp_path, 3)
    drawn = []
    for word in ("\u718a\u732b" * 2, "\u4e2d\u6587" * 2, "row 2", "\u718a\u732b", r"\u718a\u732b"):
        named = [known[0], known[1].model_copy(update={"label": word}), known[2]]
        ((_, _, sheet),) = sheets(pictures(tmp_path, items=named, panels=[panel("-")]))
        drawn.append(sheet)
    assert (drawn[0] == drawn[2]).all()
    assert (drawn[1] == drawn[2]).all()
    assert (drawn[3] == drawn[4]).all()
    assert (drawn[3] != drawn[2]).any()


def test_the_font_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[float | None] = []
    load = ImageFont.load_default

    def counting(size: float | None = None) -> Any:
        read.append(size)
        return load(size)

    font.cache_clear()
    monkeypatch.setattr(ImageFont, "load_default", counting)
    bars = DistanceBars(edges=[0, 1, 2], genuine=[1, 0], impostor=[0, 1], is_exact=True)
    for _ in range(2):
        histogram(pictures(tmp_path, distances=bars))
    assert len(read) == 1


def test_pictures_have_the_colours_of_the_page() -> None:
    """Those of a light page."""
    css = (Path(drawing.__file__).parent / "templates" / "page.css").read_text()
    light = dict(re.findall(r"--([\w-]+): #(\w{6});", css.partition("@media")[0]))
    of_page = {name: tuple(bytes.fromhex(value)) for name, value in light.items()}
    assert tuple(of_page[f"c{place}"] for place in range(8)) == plots._COLOURS
    for kind, colour in (("genuine", plots._GENUINE), ("impostor", plots._IMPOSTOR)):
        found = re.search(rf"\.bars\.{kind}[^{{]*{{ fill: var\(--(c\d)\)", css)
        assert found is not None
        assert of_page[found[1]] == colour
    names = {"ground": drawing.WHITE, "ink": drawing.INK, "soft": drawing.SOFT, "good": drawing._GOOD}
    for name, colour in {**names, "bad": drawing._BAD, "rule": plots._RULE}.items():
        assert of_page[name] == colour, name
