"""Hostile names where they are allowed: labels, paths, categories, sequences, files and folders."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from tests.hostile.cases import FINE, HOSTILE, Case, on_table
from tests.hostile.tables import HEADER, ROWS

LONG = "x" * 300
SINGLE = tuple(name for name in HOSTILE if "\n" not in name and len(name) < 200)


def table_of(name: str) -> bytes:
    """The sound table with this as a label, a category and a sequence, on the rows that are judged."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(HEADER.split(","))
    for row in ROWS:
        cells = row.split(",")
        if "validation" in cells:
            cells[0], cells[5], cells[6] = cells[0] + name, f"c{name}", f"{cells[6]}{name}"
        writer.writerow(cells)
    return file.getvalue().encode()


def name_cases() -> Iterator[Case]:
    """Commands that succeed on them, and words that name nothing."""
    for i, name in enumerate(HOSTILE):
        files = {"t.csv": table_of(name)}
        for verb in ("inspect", "validate"):
            words = on_table(verb, "t.csv")
            yield Case(f"{verb} names {i}", words, files, codes=FINE)
            yield Case(f"{verb} names {i} as JSON", [*words, "--json"], files, codes=FINE)
    for i, name in enumerate((*SINGLE, LONG, "a\nb")):
        odd = name.replace("/", "-")
        every: list[list[str]] = [
            ["inspect-dataset", odd],
            ["inspect-dataset", "{table}", "--root", odd],
            ["train", f"{odd}.yaml", "--dry-run"],
            ["train", "{spec}", "--dry-run", "--device", odd],
            ["validate", "--ckpt", odd],
            ["validate", "--features", f"{odd}.npy", "--data", "{table}"],
            ["validate", "--ckpt", "{best}", "--split", odd],
            ["validate", "--ckpt", "{best}", "--against", odd],
            ["validate", "--features", "{features}", "--data", "{table}", "--fail-under", f"{odd}=1"],
            ["predict", "--ckpt", "{best}", "--out", f"{odd}/f.npy"],
            ["predict", "--ckpt", "{best}", "--data", odd, "--out", "f.npy"],
            ["predict", "--ckpt", "{best}", "--dtype", odd, "--out", "f.npy"],
            ["merge", odd, "--out", "f.npy"],
            ["plugins", odd],
            ["schema", odd],
            ["init", odd],
            [f"--{odd.strip() or 'x'}"],
            [odd],
        ]
        for words in every[i % 3 :: 3]:
            yield Case(f"word {i} {' '.join(words[:2])[:40]}", words, codes=frozenset({2, 3, 5}))
