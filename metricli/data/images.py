"""Images on disk as upright RGB, or one sentence about why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metricli.data.opening import opened
from metricli.errors import DataError

DEFAULT_MAX_PIXELS = 100_000_000

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})


def open_image(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decode an image as RGB, turned upright by its EXIF orientation.

    Of an animation, the first frame. Transparent pixels are laid over white. 16-bit grey keeps its upper
    8 bits, float grey is stretched over its own range, CMYK and palettes are converted by Pillow. The kinds
    that are read are `FORMATS` of opening.py.

    Raises:
        DataError: the file is missing, no image, cut off or damaged, or has more than `max_pixels` pixels
            (its header is asked, before anything is decoded).
    """
    with opened(path, max_pixels=max_pixels, whole=True) as image:
        image.load()  # before EXIF is asked: that may load too, and its failures are not those of pixels
        return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A decoded image as `open_image` gives it: turned upright, as RGB."""
    turn = _TURNS.get(_orientation(image))
    rgb = _to_rgb(image)
    return rgb if turn is None else rgb.transpose(turn)


def read_header(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int, str]:
    """Width, height (of the upright image) and format (such as "JPEG"), without decoding.

    Raises:
        DataError: as `open_image`, so far as a header can tell.
    """
    with opened(path, max_pixels=max_pixels) as image:
        # Pillow gives the size of a TIFF upright already (the newer ones); its tags have it as stored.
        tags = getattr(image, "tag_v2", {})
        width, height = tags.get(256, image.width), tags.get(257, image.height)
        if _orientation(image) in _SIDEWAYS:
            width, height = height, width
        return width, height, image.format or "unknown"


def crop_box(image: Image.Image, box: Sequence[int]) -> Image.Image:
    """The part of an upright image within `box` (left, top, right, bottom in pixels); -1s: all of it.

    Raises:
        DataError: the box reaches outside the image (Pillow alone would fill up with black).
    """
    left, top, right, bottom = (int(side) for side in box)
    if left < 0:
        return image
    if right > image.width or bottom > image.height:
        size = f"{image.width} x {image.height} pixels"
        message = f"box {left, top, right, bottom} reaches outside its image of {size}"
        raise DataError(message, hint="boxes are left, top, right, bottom of the upright image")
    return image.crop((left, top, right, bottom))


def _orientation(image: Image.Image) -> int:
    try:
        # Not image.getexif(): for PNG it decodes the pixels to find a late chunk.
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to refuse the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _upper_bits(image)
    if image.mode == "F":
        return Image.fromarray(_stretched(np.asarray(image))).convert("RGB")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _upper_bits(image: Image.Image) -> Image.Image:
    """16-bit grey; the value that stands for transparent (of a PNG) becomes white."""
    values = np.asarray(image)
    upper = np.empty(values.shape, dtype=np.uint8)
    clear = image.info.get("transparency")
    for at in _bands(values):
        upper[at] = np.clip(values[at], 0, 65535) >> 8
        if isinstance(clear, int):
            upper[at][values[at] == clear] = 255
    return Image.fromarray(upper).convert("RGB")


def _stretched(
    grey: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """0 for the least finite value and what is below it or NaN, 255 for the greatest and what is above it."""
    least = [part.min() for at in _bands(grey) if (part := grey[at][np.isfinite(grey[at])]).size]
    most = [part.max() for at in _bands(grey) if (part := grey[at][np.isfinite(grey[at])]).size]
    low, high = float(min(least, default=0.0)), float(max(most, default=0.0))
    found = np.empty(grey.shape, dtype=np.uint8)
    for at in _bands(grey):
        part = np.nan_to_num(grey[at].astype(np.float64), nan=low, posinf=high, neginf=low)
        found[at] = (part - low) / (high - low) * 255 if high > low else 0
    return found


def _bands(grey: np.ndarray[tuple[int, ...], np.dtype[Any]]) -> Iterator[slice]:
    """Some rows of an image at a time: what is computed with them takes less memory than the image."""
    return (slice(start, start + 256) for start in range(0, len(grey), 256))
