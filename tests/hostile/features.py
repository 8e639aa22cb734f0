"""Hostile features files and their indexes."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tests.hostile.cases import FINE, HOSTILE, REFUSED_DATA, Case, Make
from tests.hostile.tables import IMAGES, parquet

JUDGED = IMAGES[4:]
VALUES = np.eye(4, 3, dtype=np.float32) + 0.1


def npy(array: Any, **how: Any) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def _lying(shape: str, descr: str = "'<f4'", version: bytes = b"\x01\x00", body: bytes = bytes(48)) -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    width = 2 if version == b"\x01\x00" else 4
    return b"\x93NUMPY" + version + (len(head)).to_bytes(width, "little") + head + body


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, features=VALUES)
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", "y")
    return file.getvalue()


def tensors(entries: dict[str, Any], body: bytes = bytes(48)) -> bytes:
    """A safetensors file with this head."""
    head = json.dumps(entries).encode()
    return len(head).to_bytes(8, "little") + head + body


def _entry(kind: str = "F32", shape: tuple[int, ...] = (4, 3), end: int = 48) -> dict[str, Any]:
    return {"features": {"dtype": kind, "shape": shape, "data_offsets": [0, end]}}


def _lists(rows: list[Any], kind: Any = None) -> bytes:
    return parquet({"features": pa.array(rows, kind or pa.list_(pa.float32()))})


def _constant(rows: int, width: int) -> bytes:
    """Many equal numbers, which take a few bytes."""
    flat = pa.array(np.zeros(rows * width, np.float32))
    column = pa.FixedSizeListArray.from_arrays(flat, width)
    return parquet({"features": column}, compression="zstd", write_statistics=False)


def bad_npy() -> dict[str, bytes]:
    """By what is wrong."""
    whole = npy(VALUES)
    nan, inf = VALUES.copy(), VALUES.copy()
    nan[2, 1], inf[0, 0] = np.nan, -np.inf
    files = {
        "objects": npy(np.array([[None, {}]] * 4, dtype=object), allow_pickle=True),
        "a pickle": pickle.dumps(VALUES),
        "NaN": npy(nan),
        "infinity": npy(inf),
        "whole numbers": npy(np.ones((4, 3), int)),
        "truths": npy(np.ones((4, 3), bool)),
        "complex": npy(np.ones((4, 3), complex)),
        "text": npy(np.array([["a"] * 3] * 4)),
        "records": npy(np.zeros(4, dtype=[("a", "f4")])),
        "times": npy(np.zeros((4, 3), "M8[s]")),
        "one dimension": npy(np.ones(12, np.float32)),
        "three dimensions": npy(np.ones((4, 3, 1), np.float32)),
        "no dimension": npy(np.float32(1)),
        "no rows": npy(np.ones((0, 3), np.float32)),
        "no columns": npy(np.ones((4, 0), np.float32)),
        "a row more": npy(np.ones((5, 3), np.float32)),
        "an archive": _npz(),
        "a zip": _zip(),
        "empty": b"",
        "text file": b"hello",
        "a huge shape": _lying("(4, 10000000000000)"),
        "a shape beyond numbers": _lying("(99999999999999999999, 99999999999999999999)"),
        "a shape whose product is small by overflow": _lying("(4294967296, 4294967296)"),
        "a negative shape": _lying("(-4, 3)"),
        "a shape of floats": _lying("(4.0, 3)"),
        "a shape that is code": _lying("__import__('os').system('touch owned')"),
        "a shape of truths": _lying("(True, 3)"),
        "a deep head": _lying("(" * 3000 + ")" * 3000),
        "no dtype": _lying("(4, 3)", "'nonsense'"),
        "a dtype that is a list": _lying("(4, 3)", "[('a', '<f4')]"),
        "version 9": _lying("(4, 3)", version=b"\x09\x00"),
        "version 3 with latin": b"\x93NUMPY\x03\x00\x02\x00\x00\x00\xff\xff",
        "a head longer than the file": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    }
    return files | {f"cut at {at}": whole[:at] for at in (3, 7, 9, 40, len(whole) - 1)}


def bad_others() -> dict[str, bytes]:
    """Parquet and safetensors, the suffix first."""
    files = {
        "parquet text": b"hello",
        "parquet without features": parquet({"x": [1.0] * 4}),
        "parquet of numbers": parquet({"features": [1.0] * 4}),
        "parquet of words": _lists([["a"] * 3] * 4, pa.list_(pa.string())),
        "parquet of whole numbers": _lists([[1, 2, 3]] * 4, pa.list_(pa.int64())),
        "parquet of other lengths": _lists([[1.0], [2.0, 3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]),
        "parquet with a gap": _lists([[1.0, 2.0, 3.0], None, [1.0, None, 3.0], [1.0, 2.0, 3.0]]),
        "parquet with two rows missing": _lists(
            [[1.0, 2.0], None, None, [1.0, 2.0]], pa.list_(pa.float32(), 2)
        ),
        "parquet of lists of lists": _lists([[[1.0]]] * 4, pa.list_(pa.list_(pa.float32()))),
        "parquet of a struct": parquet({"features": [{"a": 1.0}] * 4}),
        "parquet without rows": _lists([]),
        "parquet of empty lists": _lists([[]] * 4),
        "parquet of NaN": _lists([[1.0, float("nan"), 3.0]] * 4),
        "parquet of many values": _constant(4, 20_000_000),
        "parquet cut": _lists([[1.0, 2.0]] * 4)[:-20],
        "safetensors empty": b"",
        "safetensors of a long head": (1 << 62).to_bytes(8, "little") + b"{}",
        "safetensors of no JSON": tensors({})[:8] + b"{]",
        "safetensors without features": tensors({"x": _entry()["features"]}),
        "safetensors of whole numbers": tensors(_entry("I32")),
        "safetensors of half floats of another sort": tensors(_entry("BF16", end=24), bytes(24)),
        "safetensors of eighths": tensors(_entry("F8_E4M3", end=12), bytes(12)),
        "safetensors of no type": tensors(_entry("X99")),
        "safetensors of a lying shape": tensors(_entry(shape=(4, 1 << 40))),
        "safetensors of a lying end": tensors(_entry(end=1 << 40)),
        "safetensors of one dimension": tensors(_entry(shape=(12,))),
        "safetensors that list features": tensors({"features": [1]}),
        "safetensors of a number": tensors({"features": 1}),
    }
    return files


def index(lines: list[str], head: str = "row,path,label,status") -> bytes:
    """An index file."""
    return "\n".join([head, *lines, ""]).encode(errors="surrogatepass")


def bad_indexes() -> dict[str, bytes]:
    """By what is wrong; the features beside are sound."""
    lines = [f"{i},{path},x,ok" for i, path in enumerate(JUDGED)]
    files = {
        "empty": b"",
        "header only": index([]),
        "other columns": index(lines, "a,b,c,d"),
        "a row less": index(lines[:-1]),
        "a row more": index([*lines, lines[0]]),
        "other paths": index([line.replace("png", "jpg") for line in lines]),
        "another order": index(lines[::-1]),
        "latin-1": index(lines) + b"9,\xe9,x,ok\n",
        "utf-16": index(lines).decode().encode("utf-16"),
        "a NUL": index(lines) + b"\0",
        "an open quote": index(['0,"x', *lines]),
        "a long field": index([f"0,{'x' * 200_000},x,ok", *lines[1:]]),
        "short rows": index(["0"] * 4),
        "a surrogate": index(["0,\ud800,x,ok", *lines[1:]]),
        "bytes": b"\x89PNG\r\n\x1a\n",
    }
    for i, name in enumerate(HOSTILE):
        files[f"hostile {i}"] = index(['0,"' + name.replace('"', '""') + '",x,ok', *lines[1:]])
    return files


def special() -> dict[str, Make]:
    """What stands in the place of features and is none."""
    return {
        "a pipe": lambda here: os.mkfifo(here / "f.npy"),
        "a folder": lambda here: (here / "f.npy").mkdir(),
        "a device": lambda here: (here / "f.npy").symlink_to("/dev/zero"),
        "a loop": lambda here: (here / "f.npy").symlink_to(here / "f.npy"),
        "nothing": lambda here: None,
    }


def feature_cases() -> Iterator[Case]:
    """All of them, against the sound table."""

    def words(file: str) -> list[str]:
        return ["validate", "--features", file, "--data", "{table}", "--root", "{root}"]

    for name, data in bad_npy().items():
        yield Case(f"npy of {name}", words("f.npy"), {"f.npy": data})
    for name, data in bad_others().items():
        file = f"f.{name.split()[0]}"
        yield Case(name, words(file), {file: data})
    for name, data in bad_indexes().items():
        files = {"f.npy": npy(VALUES), "f.index.csv": data}
        yield Case(f"an index: {name}", words("f.npy"), files)
    for name, make in special().items():
        yield Case(f"{name} as features", words("f.npy"), make=make, codes=REFUSED_DATA)
    for file in ("f.pkl", "f.csv", "f", "f.npz"):
        yield Case(f"features named {file!r}", words(file), {file: npy(VALUES)})
    sound = {
        "column order": npy(np.asfortranarray(VALUES)),
        "big ends": npy(VALUES.astype(">f4")),
        "half": npy(VALUES.astype(np.float16)),
        "double": npy(VALUES.astype(np.float64)),
        "version 2": _lying("(4, 3)", version=b"\x02\x00", body=VALUES.tobytes()),
        "version 3": _lying("(4, 3)", version=b"\x03\x00", body=VALUES.tobytes()),
        "bytes behind the end": npy(VALUES) + b"more",
    }
    for name, data in sound.items():
        yield Case(f"sound: {name}", words("f.npy"), {"f.npy": data}, codes=FINE)
    escape = "\x1b[2J.npy"
    yield Case("sound: a name to clear the screen", words(escape), {escape: npy(VALUES)}, codes=FINE)
