"""CUB-200-2011: images.txt and its companions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from metricli.data.converting.annotations import (
    Annotation,
    find,
    first_half,
    judged_alike,
    label_names,
    numbered,
    whole,
    words_of,
)
from metricli.data.kind import named
from metricli.data.phrases import show
from metricli.errors import DataError

__all__ = ["read_cub200"]

_LAYOUT = (
    "images/, images.txt and image_class_labels.txt; for --split oml train_test_split.txt, for --boxes "
    "bounding_boxes.txt too"
)


def read_cub200(root: Path, split: str, *, boxes: bool) -> Iterator[Annotation]:
    """Its images; boxes are x, y, width and height in pixels from 0."""
    paths = numbered(find(root, "images.txt", layout=_LAYOUT))
    numbers = {
        image: whole(value, f"image {image} of image_class_labels.txt")
        for image, value in numbered(find(root, "image_class_labels.txt", layout=_LAYOUT)).items()
    }
    names = label_names(numbered(root / "classes.txt")) if (root / "classes.txt").exists() else {}
    if split == "paper":
        train = first_half(numbers.values())
        trains = {image for image, number in numbers.items() if number in train}
    else:
        flags = numbered(find(root, "train_test_split.txt", layout=_LAYOUT))
        trains = {image for image, flag in flags.items() if flag == "1"}
    found = _boxes(find(root, "bounding_boxes.txt", layout=_LAYOUT)) if boxes else {}
    for image, path in paths.items():
        if image not in numbers or (boxes and image not in found):
            what = "label" if image not in numbers else "box"
            raise DataError(
                f"{named(root)!r}: image {image}, {show(path)}, has no {what}", hint="unpack it again"
            )
        side = "train" if image in trains else "validation"
        label = names.get(numbers[image], str(numbers[image]))
        yield Annotation(label, f"images/{path}", side, *judged_alike(side), box=found.get(image))


def _boxes(path: Path) -> dict[int, tuple[float, float, float, float]]:
    found = {}
    for place, (image, *words) in words_of(path, 5):
        try:
            left, top, width, height = map(float, words)
        except ValueError:
            raise DataError(
                f"{place}: expected four numbers, got {show(words)}", hint="unpack it again"
            ) from None
        found[whole(image, place)] = (left, top, left + width, top + height)
    return found
