"""Images, labels and row numbers for the loops, each image seeded by (seed, epoch, position)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from metricli.data.images import crop_box, open_image
from metricli.errors import DataError

__all__ = ["Batch", "ImageDataset", "Item", "Place", "Told", "seeded"]


MOST_FAILURES = 100
"""Images that are tried for one place of a batch."""


class Place(NamedTuple):
    """A row, and where in the run it stands: the seed of its augmentation."""

    row: int
    epoch: int
    position: int


class Told(NamedTuple):
    """A place or a plain row with all that it takes to read its image, for a worker that has no table."""

    key: int | Place
    path: str
    label: int
    box: tuple[int, ...] | None


class Item(NamedTuple):
    """One image (None if it cannot be read), its label, its row, and what went wrong with which file."""

    image: Tensor | None
    label: int
    row: int
    bad: list[tuple[int, str]]


@dataclass
class Batch:
    """Images (B, 3, H, W), labels (B,), rows (B,), and the rows that could not be read, with the reason.

    `missing` is how many images fewer than asked for these are.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    bad: list[tuple[int, str]] = field(default_factory=list)
    missing: int = 0

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory; the loader asks for it on CUDA."""
        return replace(self, images=self.images.pin_memory())


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Torch's CPU generator, `random` and numpy's global one seeded by `entropy`, and put back afterwards."""
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(state)
    random.seed(state)
    np.random.seed(state % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class ImageDataset(Dataset[Item]):
    """Decodes, crops and transforms one image; a `Place` seeds the transform, a plain row does not.

    Args:
        root: folder that `paths` start from.
        paths: a path for each row.
        transform: uint8 (3, H, W) -> float (3, height, width).
        labels: integer labels (N,); None gives 0.
        boxes: (N, 4) as left, top, right, bottom, with -1 where a row has none; None if none has.
        max_pixels: refuse to decode an image with more.
        replace_bad: at a `Place` whose image cannot be read, take another image of its label, or, if none of
            them can be read, of another label, with that label; chosen by (seed, epoch, position). After
            `MOST_FAILURES` the place comes without an image, as every bad row does otherwise.
        seed: seed of the run.
    """

    def __init__(
        self,
        *,
        root: Path,
        paths: Sequence[str] | np.ndarray,
        transform: Callable[[Tensor], Tensor],
        labels: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        max_pixels: int = 100_000_000,
        replace_bad: bool = False,
        seed: int = 0,
    ) -> None:
        self.root = root
        self.paths = paths
        self.transform = transform
        self.labels = labels
        self.boxes = boxes
        self.max_pixels = max_pixels
        self.replace_bad = replace_bad
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def told(self, key: int | Place) -> Told:
        """A row with all that `read` has to know of it."""
        row = key.row if isinstance(key, Place) else key
        label = 0 if self.labels is None else int(self.labels[row])
        box = None if self.boxes is None or self.boxes[row, 0] < 0 else tuple(self.boxes[row].tolist())
        return Told(key, str(self.paths[row]), label, box)

    def without_table(self) -> ImageDataset:
        """What reads the images of `Told` rows alone."""
        return ImageDataset(
            root=self.root, paths=(), transform=self.transform, max_pixels=self.max_pixels, seed=self.seed
        )

    def read(self, row: int) -> Tensor:
        """The image of a row, cropped to its box: uint8 (3, H, W).

        Raises:
            DataError: it cannot be read, or its box lies outside of it.
        """
        return self._read(row, self.told(row))

    def _read(self, row: int, told: Told) -> Tensor:
        path = self.root / told.path
        image = open_image(path, max_pixels=self.max_pixels)
        if told.box is not None:
            try:
                image = crop_box(image, told.box)
            except DataError as error:
                raise DataError(
                    f"{str(path)!r} (row {row} of the split): {error.message}", hint=error.hint
                ) from None
        tensor: Tensor = pil_to_tensor(image)
        return tensor

    def __getitem__(self, key: int | Place | Told) -> Item:
        told = key if isinstance(key, Told) else self.told(key)
        if not isinstance(told.key, Place):
            return self._item(told.key, told, ())
        row, epoch, position = told.key
        with seeded(self.seed, epoch, position):
            return self._item(row, told, self._others(told.key) if self.replace_bad else ())

    def _item(self, row: int, told: Told, others: Iterable[int]) -> Item:
        """The image of a row, or of the first of the `others` that can be read."""
        bad: list[tuple[int, str]] = []
        every = chain([(row, told)], ((other, self.told(other)) for other in others))
        for candidate, facts in islice(every, MOST_FAILURES):
            try:
                image = self._read(candidate, facts)
            except DataError as error:
                bad.append((candidate, error.message))
                continue
            return Item(self.transform(image), facts.label, candidate, bad)
        return Item(None, told.label, row, bad)

    def _others(self, place: Place) -> Iterator[int]:
        """The rows to take for a bad one: first those of its label, then all others, each in random order."""
        assert self.labels is not None
        same = self.labels == self.labels[place.row]
        rng = np.random.default_rng([self.seed, place.epoch, place.position])
        rows = np.flatnonzero(same)
        yield from rng.permutation(rows[rows != place.row]).tolist()
        yield from rng.permutation(np.flatnonzero(~same))[:MOST_FAILURES].tolist()
