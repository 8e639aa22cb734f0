"""Retrieval panels as arrays of pixels, for loggers: a row for each query, on a white ground."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from metricli.data.images import DEFAULT_MAX_PIXELS
from metricli.errors import DataError
from metricli.pages.model import Item, Panel, Pictures, Shown
from metricli.pages.thumbnails import small_image
from metricli.tables import printable, shortened

__all__ = ["INK", "SOFT", "WHITE", "drawable", "font", "sheets"]

WHITE, INK, SOFT = (255, 255, 255), (22, 25, 31), (89, 98, 115)
_GOOD, _BAD = (18, 129, 63), (192, 43, 43)
_SIDE, _BORDER, _GAP, _LINE, _PAD = 112, 4, 8, 15, 12
_TILE = _SIDE + 2 * _BORDER
_WORDS = 18
"""Characters that fit below a tile."""
_UNASSIGNED = "\U0010ffff"


@cache
def font(size: int = 12) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all pictures."""
    return ImageFont.load_default(size)


def drawable(text: str) -> str:
    """A user's word in characters that the font has; others as escapes."""
    return "".join(
        c if _has_glyph(c) else c.encode("unicode_escape").decode("ascii") for c in printable(text)
    )


@lru_cache(maxsize=10_000)
def _has_glyph(character: str) -> bool:
    return character.isascii() or _glyph(character) != _glyph(_UNASSIGNED)


def _glyph(character: str) -> object:
    try:
        mask = font().getmask(character)
    except UnicodeError:  # a font of Pillow without FreeType knows Latin alone
        return None
    return mask.size, bytes(mask)


def sheets(
    pictures: Pictures, *, max_pixels: int = DEFAULT_MAX_PIXELS, seconds: float = 4.0
) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
    """OVERALL or a category, the kind of panels such as `worst`, and a picture (H, W, 3) of them.

    Each row is a query, what it found with a green or a red border and the distance below, and after them
    what it should have found too. An image that cannot be read, or not in `seconds` in all, is an empty tile.
    """
    drawer = _Drawer(pictures, max_pixels, seconds)
    groups: dict[tuple[str, str], list[Panel]] = {}
    for panel in pictures.panels:
        groups.setdefault((panel.group, panel.kind), []).append(panel)
    for (group, kind), panels in groups.items():
        yield group, kind, np.asarray(drawer.sheet(panels))


class _Drawer:
    """Draws panels, and reads each image once."""

    def __init__(self, pictures: Pictures, max_pixels: int, seconds: float) -> None:
        self.pictures, self.max_pixels = pictures, max_pixels
        self.ends = time.monotonic() + seconds
        self.known: dict[int, Image.Image | None] = {}
        self.font = font()

    def sheet(self, panels: Sequence[Panel]) -> Image.Image:
        """One row below the other."""
        row = 2 * _LINE + _TILE + 2 * _LINE
        tiles = max(1 + len(panel.results) + len(panel.missed) for panel in panels)
        width = 2 * _PAD + tiles * (_TILE + _GAP) + 2 * 2 * _GAP
        image = Image.new("RGB", (width, _PAD + len(panels) * row), WHITE)
        draw = ImageDraw.Draw(image)
        for place, panel in enumerate(panels):
            self._row(image, draw, panel, _PAD + place * row)
        return image

    def _row(self, image: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, top: int) -> None:
        item = self.pictures.items[panel.query]
        value = "" if panel.value is None else f"   {self.pictures.metric} {panel.value:.4f}"
        missed = f"   {panel.missed_in_all} of {panel.relevant} missed" if panel.missed_in_all else ""
        title = f"{shortened(drawable(item.label), 40)}   row {item.row}{value}{missed}"
        draw.text((_PAD, top), title, INK, font=self.font)
        left, top = _PAD, top + _LINE + 4
        self._tile(image, draw, panel.query, (left, top), INK, ["query"])
        left += _TILE + 3 * _GAP
        for one in panel.results:
            words = [f"{one.rank}:  {_far(one)}"] + ([] if one.is_match else [_named(self._item(one))])
            self._tile(image, draw, one.item, (left, top), _GOOD if one.is_match else _BAD, words)
            left += _TILE + _GAP
        left += 2 * _GAP
        for one in panel.missed:
            words = [f"missed:  {_far(one)}"] + ([] if one.rank is None else [f"rank {one.rank}"])
            self._tile(image, draw, one.item, (left, top), SOFT, words)
            left += _TILE + _GAP

    def _item(self, one: Shown) -> Item:
        return self.pictures.items[one.item]

    def _tile(
        self,
        image: Image.Image,
        draw: ImageDraw.ImageDraw,
        item: int,
        corner: tuple[int, int],
        colour: tuple[int, int, int],
        words: Sequence[str],
    ) -> None:
        """An image in its border, and words below it."""
        left, top = corner
        edge = left + _TILE - 1, top + _TILE - 1
        draw.rectangle((corner, edge), fill=(246, 247, 249), outline=colour, width=_BORDER)
        small = self._image(item)
        if small is None:
            draw.line((corner, edge), fill=colour)
        else:
            x, y = (_TILE - small.width) // 2, (_TILE - small.height) // 2
            image.paste(small, (left + x, top + y))
        for line, text in enumerate(words):
            shown = shortened(drawable(text), _WORDS)
            draw.text((left, top + _TILE + 2 + line * (_LINE - 2)), shown, SOFT, font=self.font)

    def _image(self, place: int) -> Image.Image | None:
        if place not in self.known:
            item = self.pictures.items[place]
            root = self.pictures.root if item.side == "query" else self.pictures.gallery_root
            self.known[place] = None
            if time.monotonic() < self.ends:
                try:
                    path = Path(root) / item.path
                    small = small_image(path, item.box, side=_SIDE, max_pixels=self.max_pixels)
                    self.known[place] = ImageOps.contain(small, (_SIDE, _SIDE))
                except DataError:  # it has been named by then
                    pass
        return self.known[place]


def _named(item: Item) -> str:
    """Its label, or its row if the escapes of that do not fit below a tile."""
    shown = drawable(item.label)
    return shown if shown == printable(item.label) or len(shown) <= _WORDS else f"row {item.row}"


def _far(one: Shown) -> str:
    return "-" if one.distance is None else f"{one.distance:.4f}"
