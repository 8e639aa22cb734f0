"""Stanford Online Products: Ebay_train.txt and Ebay_test.txt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from metricli.data.converting.annotations import Annotation, find, judged_alike, whole, words_of

__all__ = ["read_sop"]

_LAYOUT = "Ebay_train.txt, Ebay_test.txt and folders such as bicycle_final/"


def read_sop(root: Path, split: str, *, boxes: bool) -> Iterator[Annotation]:
    """Its images; a category is the folder of a super class, without the `_final` behind it."""
    del split, boxes
    for name, side in (("Ebay_train.txt", "train"), ("Ebay_test.txt", "validation")):
        for place, (_, label, super_class, path) in words_of(find(root, name, layout=_LAYOUT), 4, skip=1):
            category = path.rpartition("/")[0].removesuffix("_final") or super_class
            yield Annotation(str(whole(label, place)), path, side, *judged_alike(side), category)
