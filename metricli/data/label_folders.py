"""A folder of images with a folder for each label, or such folders for each split, as rows of a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metricli.data.folders import list_images
from metricli.data.kind import named
from metricli.data.phrases import counted, show
from metricli.data.splitting import judged_rows, validation_labels
from metricli.data.writing import Row
from metricli.errors import DataError

__all__ = ["ImageFolder", "read_image_folder"]

_SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_EXPECTED = "expected FOLDER/label/image.jpg, or FOLDER/train/label/image.jpg and FOLDER/validation/..."
_SHOWN = 5

Image = tuple[str, str]
"""Label and path."""


@dataclass
class ImageFolder:
    """The rows for training, further ones to be judged at the end, and what was decided, in sentences."""

    rows: list[Row] = field(default_factory=list)
    test: list[Row] = field(default_factory=list)
    """Of a folder `test` beside train and validation."""
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def read_image_folder(root: Path, *, prefix: str = "", share: float = 0.5, seed: int = 0) -> ImageFolder:
    """List a folder of images, take its first level as labels, or as splits, and split it if it is not.

    Args:
        root: the folder.
        prefix: what stands before each path.
        share: of the labels, that judge where there is no validation folder.
        seed: of that split.

    Raises:
        DataError: a folder cannot be read, or there are no two labels to train with.
    """
    made = ImageFolder()
    paths = _images(root, made)
    tops = dict.fromkeys(path.split("/", 1)[0] for path in paths)
    splits = [top for top in tops if top.lower() in _SPLITS]
    meanings = {_SPLITS[top.lower()] for top in splits}
    if "train" in meanings and len(meanings) > 1:
        if len(splits) < len(tops):
            others = [top for top in tops if top not in splits]
            raise DataError(
                f"{named(root)!r} has folders of splits, {_listed(splits)}, beside {_listed(others)}",
                hint="move the others elsewhere, or give the folder whose folders are labels",
            )
        _take_splits(root, paths, prefix, made)
    else:
        _split_by_label(root, paths, prefix, share, seed, made)
    return made


def _images(root: Path, made: ImageFolder) -> list[str]:
    """Relative paths of the images that lie in a folder; what is left out is noted."""
    listing = list_images(root)
    found: list[str] = listing.paths.to_pylist()
    if not found:
        raise DataError(f"{named(root)!r} holds no image", hint=_hint(root))
    hidden = [path for path in found if any(part.startswith((".", "__MACOSX")) for part in path.split("/"))]
    if hidden:
        _left_out(made, hidden, "hidden, or in a hidden folder")
        skipped = set(hidden)
        found = [path for path in found if path not in skipped]
    loose = [path for path in found if "/" not in path]
    if len(loose) == len(found):
        raise DataError(f"the images in {named(root)!r} lie in no folder of a label", hint=_hint(root))
    if loose:
        _left_out(made, loose, f"right in {named(root)!r}, in no folder of a label")
        found = [path for path in found if "/" in path]
    if listing.others:
        kinds = ", ".join(f"{suffix or 'no suffix'} {count}" for suffix, count in listing.others.items())
        others = sum(listing.others.values())
        made.notes.append(f"{counted(others, 'file')} of other kinds left out ({kinds})")
    _note_folders(root, found, made)
    return found


def _hint(root: Path, otherwise: str = _EXPECTED) -> str:
    """What to give instead: the table that lies in the folder, if there is one."""
    tables = [path for path in root.iterdir() if path.suffix.lower() in (".csv", ".parquet")]
    return f"did you mean the table {named(tables[0])!r}?" if len(tables) == 1 else otherwise


def _left_out(made: ImageFolder, paths: Sequence[str], why: str) -> None:
    made.doubts.append(f"{counted(len(paths), 'image', ('is', 'are'))} left out: {why} ({_listed(paths)})")


def _note_folders(root: Path, paths: Iterable[str], made: ImageFolder) -> None:
    """Say which folders of the first level give no label: links, and those without an image."""
    used = {path.split("/", 1)[0] for path in paths}
    linked: list[str] = []
    empty: list[str] = []
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name not in used and not entry.name.startswith((".", "__MACOSX")) and entry.is_dir():
                (linked if entry.is_symlink() else empty).append(entry.name)
    if linked:
        what = counted(len(linked), "folder", ("is a link", "are links"))
        made.doubts.append(f"{what} and not entered ({_listed(sorted(linked))})")
    if empty:
        what = counted(len(empty), "folder", ("holds", "hold"))
        made.doubts.append(f"{what} no image and gives no label ({_listed(sorted(empty))})")


def _take_splits(root: Path, paths: Sequence[str], prefix: str, made: ImageFolder) -> None:
    of_split: dict[str, list[Image]] = {"train": [], "validation": [], "test": []}
    loose, deep = [], 0
    for path in paths:
        top, label, *rest = path.split("/")
        if not rest:
            loose.append(path)
            continue
        deep += len(rest) > 1
        of_split[_SPLITS[top.lower()]].append((label, prefix + path))
    if loose:
        _left_out(made, loose, "right in the folder of a split, in none of a label")
    if not of_split["validation"]:
        of_split["validation"], of_split["test"] = of_split["test"], []
        made.notes.append("the folder test is used as validation, as there is no other")
    train, judged, test = of_split["train"], of_split["validation"], of_split["test"]
    _require_two_labels(root, [label for label, _ in train], train=True)
    if deep:
        made.notes.append(f"labels are the folders below train, ...; {_deeper(deep)}")
    made.rows = [Row(label, path, "train") for label, path in train] + judged_rows(judged, "validation")
    made.test = judged_rows(test, "test")
    labels, others = {label for label, _ in train}, {label for label, _ in judged}
    shared = labels & others
    kind = f"{len(shared)} of them in both: a closed set" if shared else "no label in both: an open set"
    made.notes.append(f"splits are as the folders say: {_counts(made.rows)}; {kind}")
    if test:
        what = f"{counted(len(test), 'image')} of {counted(len({label for label, _ in test}), 'label')}"
        made.notes.append(f"test: {what}, in a table of their own, to be judged at the end")
    _note_singles(made)


def _split_by_label(
    root: Path, paths: Sequence[str], prefix: str, share: float, seed: int, made: ImageFolder
) -> None:
    images = [(path.split("/", 1)[0], prefix + path) for path in paths]
    counts = Counter(label for label, _ in images)
    deep = sum(path.count("/") > 1 for path in paths)
    if len(counts) == 1 and deep:
        (label,) = counts
        what = f"{named(root)!r} has one folder, {show(label)}, which would be the only label"
        raise DataError(what, hint=_hint(root, f"did you mean {named(root / label)!r}?"))
    _require_two_labels(root, list(counts), train=False)
    if deep:
        made.notes.append(f"labels are the folders right below {named(root)!r}; {_deeper(deep)}")
    judging = validation_labels(counts, share=share, seed=seed)
    train = [Row(label, path, "train") for label, path in images if label not in judging]
    judged = [(label, path) for label, path in images if label in judging]
    made.rows = train + judged_rows(judged, "validation")
    if judging:
        made.notes.append(f"open-set split by labels, share {share:g}, seed {seed}: {_counts(made.rows)}")
        _note_bounds(counts, judging, share, made)
    else:
        why = "as asked" if share <= 0 else "fewer than 4 labels have two images"
        made.doubts.append(f"no label is set apart for validation, {why}: {_counts(made.rows)}")
    _note_singles(made)


def _note_bounds(counts: Mapping[str, int], judging: set[str], share: float, made: ImageFolder) -> None:
    """Say where the share could not be had, for either side needs two labels of several images."""
    several = [label for label, count in counts.items() if count > 1]
    taken, wanted = len(judging.intersection(several)), round(share * len(several))
    if taken < wanted:
        kept = sorted(set(several) - judging)
        made.doubts.append(
            f"a share of {share:g} is {wanted} of {len(several)} labels with two images, and {taken} are set "
            f"apart: {_listed(kept)} are kept, for training needs two"
        )
    elif taken > wanted:
        made.doubts.append(
            f"a share of {share:g} is {wanted} of {len(several)} labels with two images, and {taken} are set "
            "apart, the fewest that can judge"
        )


def _require_two_labels(root: Path, labels: Iterable[str], *, train: bool) -> None:
    distinct = sorted(set(labels))
    if len(distinct) < 2:
        which = "train label" if train else "label"
        there = f"one {which}, {show(distinct[0])}" if distinct else f"no {which}"
        raise DataError(f"{named(root)!r} has {there}, and training needs two", hint=_hint(root))


def _note_singles(made: ImageFolder) -> None:
    of_split = Counter((row.split, row.label) for row in made.rows)
    alone = Counter(split for (split, _), count in of_split.items() if count == 1)
    if alone["train"]:
        what = counted(alone["train"], "train label", ("has", "have"))
        made.doubts.append(f"{what} one image, which forms no positive pair")
    if alone["validation"]:
        what = counted(alone["validation"], "validation label", ("has", "have"))
        made.doubts.append(f"{what} one image, which has no match: it may be found, and does not ask")


def _counts(rows: Sequence[Row]) -> str:
    said = []
    for split in ("train", "validation"):
        images = [row.label for row in rows if row.split == split]
        said.append(f"{split} {counted(len(set(images)), 'label')}, {counted(len(images), 'image')}")
    return "; ".join(said)


def _deeper(count: int) -> str:
    return f"{counted(count, 'image', ('lies', 'lie'))} deeper and take{'s' if count == 1 else ''} that label"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(show, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
