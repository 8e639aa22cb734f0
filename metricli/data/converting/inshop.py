"""DeepFashion, In-shop Clothes Retrieval: list_eval_partition.txt and list_bbox_inshop.txt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from metricli.data.converting.annotations import Annotation, find, whole, words_of
from metricli.data.kind import named
from metricli.data.phrases import show
from metricli.errors import DataError

__all__ = ["read_inshop"]

_FLAGS: dict[str, tuple[str, bool | None, bool | None]] = {
    "train": ("train", None, None),
    "query": ("validation", True, False),
    "gallery": ("validation", False, True),
}
_LAYOUT = "list_eval_partition.txt and img/ (or img_highres/); for --boxes list_bbox_inshop.txt too"
_SMALL, _LARGE = ("img", "Img/img"), ("img_highres", "Img/img_highres")


def read_inshop(root: Path, split: str, *, boxes: bool) -> Iterator[Annotation]:
    """Its images; queries never answer. A category is what stands above the item, such as WOMEN/Dresses."""
    del split
    partition = find(root, "list_eval_partition.txt", "Eval/list_eval_partition.txt", layout=_LAYOUT)
    folder = find(root, *_SMALL, *_LARGE, layout=_LAYOUT).relative_to(root).as_posix()
    if boxes and folder in _LARGE:
        what = (
            f"the boxes belong to the images of 256 pixels in img/, and {named(root)!r} has {folder}/ alone"
        )
        raise DataError(what, hint="unpack img.zip, or leave --boxes away")
    places = ("list_bbox_inshop.txt", "Anno/list_bbox_inshop.txt")
    found = _boxes(find(root, *places, layout=_LAYOUT)) if boxes else {}
    for place, (image, item, status) in words_of(partition, 3, skip=2):
        if status not in _FLAGS or not image.startswith("img/"):
            what = (
                f"{place} has {show(image)} and {show(status)}, expected img/... and train, query or gallery"
            )
            raise DataError(what, hint="unpack it again")
        if boxes and image not in found:
            raise DataError(f"{place}: {show(image)} has no box", hint="unpack list_bbox_inshop.txt again")
        inner = image.removeprefix("img/")
        category = "/".join(inner.split("/")[:-2])
        yield Annotation(item, f"{folder}/{inner}", *_FLAGS[status], category, found.get(image))


def _boxes(path: Path) -> dict[str, tuple[float, float, float, float]]:
    """Image -> x_1, y_1, x_2, y_2: the upper left and the lower right corner."""
    found = {}
    for place, (image, _, _, *words) in words_of(path, 7, skip=2):
        left, top, right, bottom = (float(whole(word, place)) for word in words)
        found[image] = (left, top, right, bottom)
    return found
