"""Opening the image files of a data set, none of which is trusted: what is read, and why one is refused."""

from __future__ import annotations

import importlib
import logging
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from metricli.data.kind import not_a_file
from metricli.errors import DataError
from metricli.tables import printable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What is read, by content and not by suffix. Not among them: EPS, for which Pillow starts Ghostscript."""

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        *(".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
        *(".pbm", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k"),
    }
)
"""Suffixes, in lower case, that make a file of a folder an image."""

_MODULES = ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Ppm", "Avif", "Jpeg2K")
_MOST_STRIPS = 200_000
"""Strips or tiles of a TIFF; Pillow keeps a few hundred bytes of each."""
_MOST_TAGS = 1 << 16
_STRIP_OFFSETS, _TILE_OFFSETS, _TILE_SIDES = 273, 324, (322, 323)
_PNG, _PIECE = b"\x89PNG\r\n\x1a\n", 1 << 20
_OF_PILLOW = re.compile(r"PIL\.")
_FOREIGN = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"<!DOCTYPE html", "HTML"),
    (b"<html", "HTML"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)
_lock = threading.Lock()


class ImageError(DataError):
    """An image file that cannot be read, for a reason that is `lasting` if only another content mends it."""

    def __init__(self, path: Path, reason: str, *, lasting: bool = False, hint: str = "") -> None:
        super().__init__(f"cannot read image {str(path)!r}: {reason}", hint=hint)
        self.reason, self.lasting = reason, lasting


@contextmanager
def opened(path: Path, *, max_pixels: int, whole: bool = False) -> Iterator[Image.Image]:
    """A regular file opened as an image of `FORMATS`, of which the body may decode no more than `max_pixels`.

    For a body that decodes it, `whole` asks for what Pillow does not: the checksums of a PNG's pixels.

    Raises:
        ImageError: the file is not there, no image or damaged, or has more pixels; also for whatever the body
            raises, but MemoryError.
    """
    try:
        if what := not_a_file(path):  # it may block, or never end
            raise ImageError(path, f"is {what}")
        _settle_pillow(max_pixels)
        with open(path, "rb") as file:
            _require_few_strips(file)
            with Image.open(file, formats=_formats()) as image:
                _require_small(image, path, max_pixels)
                if whole and image.format == "PNG":
                    _require_checksums(file)
                yield image
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large(path, f"more than the {max_pixels} pixels allowed") from None
    except Exception as error:
        of_content = not isinstance(error, OSError) or error.errno is None
        raise ImageError(path, _reason(path, error), lasting=of_content) from error


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow knows; no other decoder of it is loaded."""
    for name in _MODULES:
        try:
            importlib.import_module(f"PIL.{name}ImagePlugin")
        except ImportError:  # AVIF came with Pillow 11.3
            continue
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors go to stderr
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _settle_pillow(max_pixels: int) -> None:
    """Pillow's global settings as needed here, which stay so: threads cannot disturb one another then.

    Its own limit must not stop what the caller allows, a cut off image is not one with a grey rest, whoever
    has set that, and what it warns of is either harmless or becomes an error.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and limit < max_pixels:
        Image.MAX_IMAGE_PIXELS = max_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if not _is_quiet():
        with _lock:
            if not _is_quiet():
                warnings.filterwarnings("ignore", module=_OF_PILLOW.pattern)


def _is_quiet() -> bool:
    return any(entry[3] == _OF_PILLOW and entry[0] == "ignore" for entry in warnings.filters)


def _require_few_strips(file: BinaryIO) -> None:
    """Refuse a TIFF of which the list of strips alone takes much memory; Pillow makes it before it is asked.

    Raises:
        ValueError: it has more than any sound one.
    """
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 16:
        return
    is_big = start[2:4] in (b"+\0", b"\0+")
    (place,) = struct.unpack(order + ("Q" if is_big else "L"), start[8:16] if is_big else start[4:8])
    if place >= 2**62:
        return
    file.seek(place)
    counter, entry = (struct.Struct(order + kind) for kind in (("Q", "HHQ8x") if is_big else ("H", "HHL4x")))
    counted = file.read(counter.size)
    tags = min(counter.unpack(counted)[0], _MOST_TAGS) if len(counted) == counter.size else 0
    listed = file.read(tags * entry.size)
    for tag, _, count in entry.iter_unpack(listed[: len(listed) // entry.size * entry.size]):
        if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and count > _MOST_STRIPS:
            raise ValueError(f"it claims to have {count} strips")


def _require_small(image: Image.Image, path: Path, max_pixels: int) -> None:
    """Refuse what would take more memory or time than an image of `max_pixels`; headers alone are asked."""
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(path, f"{width} x {height} is more than the {max_pixels} pixels allowed")
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return
    # A tile is decoded whole, however little of it belongs to the image.
    sides = [tags.get(tag, 0) for tag in _TILE_SIDES]
    if all(isinstance(side, int) for side in sides) and sides[0] * sides[1] > max_pixels:
        what = f"its tiles of {sides[0]} x {sides[1]} are more than the {max_pixels} pixels allowed"
        raise _too_large(path, what)
    areas = ((right - left) * (lower - upper) for _, (left, upper, right, lower), *_ in image.tile)  # type: ignore[attr-defined]
    times = sum(areas) // (width * height * len(image.getbands()))
    if times > 1:
        raise ValueError(f"its strips cover it {times} times")


def _require_checksums(file: BinaryIO) -> None:
    """Refuse a PNG whose pixels were changed after it was written; the place in the file stays.

    Raises:
        ValueError: they do not fit their checksum.
    """
    place = file.tell()
    file.seek(len(_PNG))
    while len(head := file.read(8)) == 8:
        size, name = struct.unpack(">L4s", head)
        if name == b"IEND":
            break
        if name != b"IDAT":
            file.seek(size + 4, os.SEEK_CUR)
            continue
        checksum = zlib.crc32(name)
        while size and (part := file.read(min(size, _PIECE))):
            checksum, size = zlib.crc32(part, checksum), size - len(part)
        wanted = file.read(4)
        if size or len(wanted) < 4:
            raise ValueError("image file is truncated")
        if wanted != checksum.to_bytes(4, "big"):
            raise ValueError("its pixels do not fit their checksum")
    file.seek(place)


def _too_large(path: Path, reason: str) -> ImageError:
    return ImageError(path, reason, hint="see data.max_pixels")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return _what_else(path)
    if isinstance(error, FileNotFoundError):
        return "a link to a file that does not exist" if path.is_symlink() else "no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error).strip()
    first = text.splitlines()[0][:200] if text else type(error).__name__
    return printable(first).rstrip(".")


def _what_else(path: Path) -> str:
    """What a file is that is no image."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        start = b"?"
    if not start:
        return "the file is empty"
    if not start.strip(b"\0"):
        return "the file holds zeros"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = next((name for magic, name in _FOREIGN if text.startswith(magic.lower())), None)
    if kind is not None:
        return f"not an image of a kind that is read, but {kind}"
    return "not an image, or of a kind that is not read"
