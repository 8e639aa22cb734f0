"""Small pictures of the images that a page shows, as data URIs within a budget."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from metricli.data.images import DEFAULT_MAX_PIXELS, open_image
from metricli.data.opening import opened
from metricli.data.phrases import counted
from metricli.errors import DataError

SIDE = 128
"""The longer side of a thumbnail, in pixels."""
_QUALITY = 60
_MARGIN = 0.25
"""What is shown around a box, as a part of its size."""
_BOX = (255, 196, 0)

Box = Sequence[int] | None


@dataclass(frozen=True)
class Budget:
    """What the thumbnails of a page may take."""

    images: int = 700
    size: int = 3_000_000
    """Bytes in all, before base64."""
    seconds: float = 20.0


@dataclass(frozen=True)
class Thumbnail:
    """One small picture."""

    uri: str
    width: int
    height: int


@dataclass
class Thumbnails:
    """Each thumbnail is made once, until the budget is used up; the rest and bad files have none."""

    max_pixels: int = DEFAULT_MAX_PIXELS
    budget: Budget = field(default_factory=Budget)
    made: list[Thumbnail] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Why an image has none."""

    def __post_init__(self) -> None:
        self._known: dict[tuple[str, tuple[int, ...] | None], int | None] = {}
        self._bytes, self._seconds, self._refused = 0, 0.0, 0

    def place(self, path: Path, box: Box = None) -> int | None:
        """The place of its thumbnail in `made`; None without one."""
        key = str(path), None if box is None else tuple(box)
        if key not in self._known:
            self._known[key] = self._make(path, box)
        return self._known[key]

    def _make(self, path: Path, box: Box) -> int | None:
        budget = self.budget
        full = len(self.made) >= budget.images or self._bytes >= budget.size
        if full or self._seconds >= budget.seconds:
            self._refused += 1
            return None
        started = time.monotonic()
        try:
            image = small_image(path, box, max_pixels=self.max_pixels)
            content = encoded(image)
        except DataError as error:
            self.failed.append(error.message)
            return None
        finally:
            self._seconds += time.monotonic() - started
        if self._bytes + len(content) > budget.size:
            self._refused += 1
            self._bytes = budget.size
            return None
        self._bytes += len(content)
        uri = "data:image/webp;base64," + base64.b64encode(content).decode("ascii")
        self.made.append(Thumbnail(uri, image.width, image.height))
        return len(self.made) - 1

    @property
    def notes(self) -> list[str]:
        """What to say of images that are not shown."""
        notes = []
        if self._refused:
            budget = self.budget
            limits = f"{budget.images} images, {budget.size / 1e6:g} MB or {budget.seconds:g} s"
            notes.append(
                f"{counted(self._refused, 'image')} not shown: a page has at most {limits} of thumbnails"
            )
        if self.failed:
            notes.append(
                f"{counted(len(self.failed), 'image')} could not be read, the first: {self.failed[0]}"
            )
        return notes


def small_image(
    path: Path, box: Box = None, *, side: int = SIDE, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Image.Image:
    """An image, upright, at most `side` pixels long; with a box, the box is drawn and little around it shown.

    Raises:
        DataError: it cannot be read.
    """
    image, scale = _decoded(path, box, side, max_pixels)
    if box is None or box[0] < 0:
        image.thumbnail((side, side), reducing_gap=2.0)
        return image
    left, top, right, bottom = (value * scale for value in box)
    wide, high = (right - left) * _MARGIN, (bottom - top) * _MARGIN
    view = (
        int(max(0, left - wide)),
        int(max(0, top - high)),
        max(int(max(0, left - wide)) + 1, int(min(image.width, right + wide))),
        max(int(max(0, top - high)) + 1, int(min(image.height, bottom + high))),
    )
    if view[2] > image.width or view[3] > image.height:
        raise DataError(f"box {tuple(box)} reaches outside {str(path)!r}")
    image = image.crop(view)
    whole = image.size
    image.thumbnail((side, side), reducing_gap=2.0)
    shrunk = image.width / whole[0], image.height / whole[1]
    corners = [
        ((left - view[0]) * shrunk[0], (top - view[1]) * shrunk[1]),
        (
            min((right - view[0]) * shrunk[0], image.width) - 1,
            min((bottom - view[1]) * shrunk[1], image.height) - 1,
        ),
    ]
    corners[1] = max(corners[1][0], corners[0][0]), max(corners[1][1], corners[0][1])
    ImageDraw.Draw(image).rectangle(corners, outline=_BOX, width=2)
    return image


def _decoded(path: Path, box: Box, side: int, max_pixels: int) -> tuple[Image.Image, float]:
    """An upright RGB image, and its size relative to the file's: of a large JPEG a part is decoded."""
    with opened(path, max_pixels=max_pixels) as image:
        if image.format == "JPEG":
            full = image.width, image.height
            shown = full if box is None or box[0] < 0 else (box[2] - box[0], box[3] - box[1])
            share = min(1.0, 2 * side / max(1, min(max(shown), max(full))))
            image.draft("RGB", (int(full[0] * share) + 1, int(full[1] * share) + 1))
            image.load()
            scale = max(image.size) / max(full)
            try:
                upright = ImageOps.exif_transpose(image)
            except Exception:  # damaged EXIF is no reason to refuse the pixels
                upright = image
            return upright.convert("RGB"), scale
    return open_image(path, max_pixels=max_pixels), 1.0


def encoded(image: Image.Image) -> bytes:
    """An image as WebP, without its metadata."""
    target = io.BytesIO()
    image.save(target, "WEBP", quality=_QUALITY, method=2)
    return target.getvalue()
