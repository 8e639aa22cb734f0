"""Images on disk as upright RGB, or one sentence about why not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from metricli.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Suffixes, in lower case, that make a file of a folder an image."""

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
    8 bits, float grey is stretched over its own range, CMYK and palettes are converted by Pillow.

    Raises:
        DataError: the file is missing, no image, cut off or damaged, or has more than `max_pixels` pixels
            (its header is asked, before anything is decoded).
    """
    try:
        with _open(path, max_pixels) as image:
            image.load()  # before EXIF is asked: that may load too, and its failures are not those of pixels
            turn = _TURNS.get(_orientation(image))
            rgb = _to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"cannot read image {path}: {_reason(path, error)}") from error


def read_header(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int, str]:
    """Width, height (of the upright image) and format (such as "JPEG"), without decoding.

    Raises:
        DataError: as `open_image`, so far as a header can tell.
    """
    try:
        with _open(path, max_pixels) as image:
            # Pillow gives the size of a TIFF upright already (the newer ones); its tags have it as stored.
            tags = getattr(image, "tag_v2", {})
            width, height = tags.get(256, image.width), tags.get(257, image.height)
            if _orientation(image) in _SIDEWAYS:
                width, height = height, width
            return width, height, image.format or "unknown"
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"cannot read image {path}: {_reason(path, error)}") from error


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


def _open(path: Path, max_pixels: int) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and limit < max_pixels:
        # Pillow's own limit must not stop what the caller allows; a larger one is never lowered again, so
        # threads cannot disturb one another.
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image = Image.open(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        reason = f"more than the {max_pixels} pixels allowed"
        raise DataError(f"cannot read image {path}: {reason}", hint="see data.max_pixels") from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        reason = f"{width} x {height} is more than the {max_pixels} pixels allowed"
        raise DataError(f"cannot read image {path}: {reason}", hint="see data.max_pixels")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        # Not image.getexif(): for PNG it decodes the pixels to find a late chunk.
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to refuse the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        upper = np.clip(np.asarray(image, dtype=np.int32), 0, 65535) >> 8
        return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_stretched(np.asarray(image))).convert("RGB")
    return image.convert("RGB")


def _stretched(
    grey: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    finite = np.nan_to_num(grey, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    return ((finite - low) * (255.0 / (high - low) if high > low else 0.0)).astype(np.uint8)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        try:
            empty = path.stat().st_size == 0
        except OSError:
            empty = False
        return "the file is empty" if empty else "not an image, or of a kind that Pillow cannot read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).strip()
    return (text.splitlines()[0][:200] if text else type(error).__name__).rstrip(".")
