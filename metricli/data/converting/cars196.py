"""CARS196: the .mat files of either published layout, read by scipy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metricli.data.converting.annotations import Annotation, find, first_half, judged_alike, label_names
from metricli.data.kind import named
from metricli.data.phrases import show
from metricli.errors import DataError, UsageError

__all__ = ["read_cars196"]

_LAYOUT = (
    "cars_annos.mat and car_ims/, or devkit/cars_train_annos.mat, devkit/cars_meta.mat, "
    "cars_test_annos_withlabels.mat, cars_train/ and cars_test/"
)
_ALL = "cars_annos.mat"
_TRAIN = ("devkit/cars_train_annos.mat", "cars_train_annos.mat")
_TEST = ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")
_META = ("devkit/cars_meta.mat", "cars_meta.mat")


def read_cars196(root: Path, split: str, *, boxes: bool) -> Iterator[Annotation]:
    """Its images; boxes count pixels from 1, and their last ones belong to them."""
    entries, names = _entries(root)
    train = first_half(number for _, number, _, _ in entries)
    for path, number, is_test, box in entries:
        is_train = number in train if split == "paper" else not is_test
        side = "train" if is_train else "validation"
        label = names.get(number, str(number))
        yield Annotation(label, path, side, *judged_alike(side), box=box if boxes else None)


Entry = tuple[str, int, bool, tuple[float, float, float, float]]
"""Path, number of the label, whether it is a test image of the classification task, and box."""


def _entries(root: Path) -> tuple[list[Entry], dict[int, str]]:
    """All images, and the names of the labels, none if they are not told."""
    if (root / _ALL).exists():
        found = _load(root / _ALL)
        entries = [
            _entry(root / _ALL, row, row.get("relative_im_path"), bool(row.get("test")))
            for row in _rows(root / _ALL, found)
        ]
        return entries, _names(found)
    entries = []
    for places, folder in ((_TRAIN, "cars_train"), (_TEST, "cars_test")):
        path = find(root, *places, layout=_LAYOUT)
        rows = _rows(path, _load(path))
        entries += [_entry(path, row, f"{folder}/{row.get('fname')}", folder == "cars_test") for row in rows]
    return entries, _names(_load(find(root, *_META, layout=_LAYOUT)))


def _entry(file: Path, row: Mapping[str, Any], path: Any, is_test: bool) -> Entry:
    try:
        left, top, right, bottom = (float(row[f"bbox_{side}"]) for side in ("x1", "y1", "x2", "y2"))
        return str(path), int(row["class"]), is_test, (left - 1, top - 1, right, bottom)
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{named(file)!r}: an annotation lacks its class or its box: {show(dict(row))}",
            hint="of the test images it is the file with labels that is needed",
        ) from None


def _rows(file: Path, found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = found.get("annotations")
    rows = [rows] if isinstance(rows, Mapping) else rows
    if rows is None or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(f"{named(file)!r} holds no annotations", hint="unpack it again")
    return list(rows)


def _names(found: Mapping[str, Any]) -> dict[int, str]:
    names = found.get("class_names", [])
    listed = [names] if isinstance(names, str) else names
    return label_names({number: str(name) for number, name in enumerate(listed, 1)})


def _load(path: Path) -> dict[str, Any]:
    """The variables of a .mat file as plain lists and mappings.

    Raises:
        UsageError: scipy is not installed.
        DataError: the file cannot be read.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UsageError("reading .mat files needs scipy", hint="pip install 'metricli[cars196]'") from None
    try:
        found: dict[str, Any] = loadmat(str(path), simplify_cells=True)
    except OSError as error:
        reason = (error.strerror or "not a .mat file").lower()
        raise DataError(f"cannot read {named(path)!r}: {reason}", hint="unpack it again") from None
    except Exception as error:  # of a damaged file scipy raises anything
        raise DataError(
            f"{named(path)!r} is no .mat file that scipy can read: {type(error).__name__}",
            hint="unpack it again",
        ) from None
    return found
