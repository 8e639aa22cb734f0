"""The histogram of distances and the map of the embeddings as arrays of pixels, for loggers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from metricli.pages.charts import ticks
from metricli.pages.model import Pictures
from metricli.pages.sheets import INK, SOFT, WHITE, drawable, font
from metricli.pages.views import coloured, coordinates
from metricli.reports import OVERALL
from metricli.tables import shortened

__all__ = ["histogram", "scatter"]

_SCALE = 2  # drawn larger, then made smaller: smooth edges
_WIDTH, _HEIGHT, _PAD, _FOOT = 720, 320, 24, 44
_SIDE, _LEGEND, _LINE = 480, 220, 20
_GENUINE, _IMPOSTOR = (33, 147, 106), (194, 51, 77)
_RULE = (221, 225, 232)
_COLOURS = (
    (47, 111, 222),
    (217, 98, 43),
    (33, 147, 106),
    (160, 66, 158),
    (184, 134, 11),
    (14, 143, 163),
    (194, 51, 77),
    (107, 114, 128),
)


def histogram(pictures: Pictures) -> NDArray[np.uint8] | None:
    """Distances of genuine and impostor pairs, each as shares of its own total, with the operating points.

    (H, W, 3); None without pairs.
    """
    found = pictures.distances
    if found is None or not (sum(found.genuine) or sum(found.impostor)):
        return None
    image, draw = _canvas(_WIDTH, _HEIGHT)
    low, high = found.edges[0], found.edges[-1]
    bottom = _HEIGHT - _FOOT

    def across(value: float) -> float:
        return _PAD + (value - low) / (high - low) * (_WIDTH - 2 * _PAD)

    for value in ticks(low, high):
        draw.line(_scaled([(across(value), _PAD), (across(value), bottom)]), fill=_RULE, width=_SCALE)
        _words(draw, (across(value), bottom + 4), f"{value:.6g}", anchor="ma")
    shares = [
        (colour, [count / max(1, sum(counts)) for count in counts])
        for colour, counts in ((_IMPOSTOR, found.impostor), (_GENUINE, found.genuine))
    ]
    top = max(max(some) for _, some in shares)
    for colour, some in shares:
        outline = [(across(low), float(bottom))]
        for left, right, share in zip(found.edges[:-1], found.edges[1:], some, strict=True):
            height = bottom - share / top * (bottom - _PAD - _LINE)
            outline += [(across(left), height), (across(right), height)]
        outline.append((across(high), float(bottom)))
        over = Image.new("RGBA", image.size, (*colour, 0))
        ImageDraw.Draw(over).polygon(_scaled(outline), fill=(*colour, 120), outline=(*colour, 255))
        image.alpha_composite(over)
    marks = pictures.thresholds.get(OVERALL, {}).items()
    for place, (name, at) in enumerate((name, value) for name, value in marks if value is not None):
        if low <= at <= high:
            draw.line(_scaled([(across(at), _PAD), (across(at), bottom)]), fill=INK, width=_SCALE)
            words = f"{shortened(drawable(name), 40)}: {at:.4f}"
            beside = (across(at) + 4, "la") if at < (low + high) / 2 else (across(at) - 4, "ra")
            _words(draw, (beside[0], _PAD + place * _LINE), words, colour=INK, anchor=beside[1])
    _words(draw, (_WIDTH / 2, _HEIGHT - 20), f"{pictures.distance} distance", anchor="ma")
    _words(draw, (_PAD, 4), "genuine pairs", colour=_GENUINE)
    _words(draw, (_PAD + 110, 4), "impostor pairs", colour=_IMPOSTOR)
    return _pixels(image)


def scatter(pictures: Pictures) -> NDArray[np.uint8] | None:
    """The embeddings by their first two principal components, coloured as in the report.

    (H, W, 3); None where there is no map.
    """
    found = pictures.map
    if found is None:
        return None
    spots = coordinates(found)[:, :2]
    colours, legend = coloured([pictures.items[place] for place in found.items])
    image, draw = _canvas(_SIDE + _LEGEND, _SIDE)
    middle = (spots.max(0) + spots.min(0)) / 2
    span = max(float(np.ptp(spots, axis=0).max()), 1e-9)
    places = _SIDE / 2 + (spots - middle) / span * (_SIDE - 2 * _PAD) * np.array([1.0, -1.0])
    for (x, y), colour in sorted(zip(places.tolist(), colours, strict=True), key=lambda each: each[1]):
        draw.ellipse(_scaled([(x - 3.5, y - 3.5), (x + 3.5, y + 3.5)]), fill=_colour(colour), outline=WHITE)
    for line, (colour, word) in enumerate(legend):
        y = _PAD + line * _LINE
        draw.rectangle(_scaled([(_SIDE, y), (_SIDE + 10, y + 10)]), fill=_colour(colour))
        _words(draw, (_SIDE + 16, y - 2), shortened(drawable(word), 28))
    first, second = (f"{100 * share:.0f} %" for share in found.shares[:2])
    _words(draw, (_PAD, 4), f"principal components 1 and 2: {first} and {second} of the variance")
    return _pixels(image)


def _colour(place: int) -> tuple[int, int, int]:
    return SOFT if place < 0 else _COLOURS[min(place, len(_COLOURS) - 1)]


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (width * _SCALE, height * _SCALE), WHITE)
    return image, ImageDraw.Draw(image)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    small = image.convert("RGB").resize((image.width // _SCALE, image.height // _SCALE), Image.Resampling.BOX)
    return np.asarray(small)


def _scaled(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x * _SCALE, y * _SCALE) for x, y in spots]


def _words(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    *,
    colour: tuple[int, int, int] = SOFT,
    anchor: str = "la",
) -> None:
    draw.text((at[0] * _SCALE, at[1] * _SCALE), text, colour, font=font(12 * _SCALE), anchor=anchor)
