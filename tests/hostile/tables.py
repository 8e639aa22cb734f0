"""Hostile tables."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import zipfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.cases import ANY, HOSTILE, OF_VERB, REFUSED_DATA, Case, Make, on_table

HEADER = "label,path,split,is_query,is_gallery,category,sequence,ignore,x_1,x_2,y_1,y_2"
ROWS = (
    *(f"{label},{i}.png,train,,,c{i % 2},,,,,," for i, label in enumerate("aabb")),
    *(f"{label},{4 + i}.png,validation,1,1,c{i % 2},s{i},,,,," for i, label in enumerate("ccdd")),
)
SOUND = "\n".join([HEADER, *ROWS]) + "\n"
IMAGES = tuple(f"{i}.png" for i in range(8))


def with_row(row: str, *, header: str = HEADER) -> bytes:
    """The sound table and another row."""
    return f"{SOUND.replace(HEADER, header)}{row}\n".encode(errors="surrogatepass")


def parquet(columns: dict[str, Any], **how: Any) -> bytes:
    """A parquet file."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **how)
    return file.getvalue()


def sound_columns() -> dict[str, Any]:
    """The sound table as columns."""
    cells = [row.split(",") for row in ROWS]
    return {name: [row[i] for row in cells] for i, name in enumerate(HEADER.split(","))}


def path_row(path: str) -> bytes:
    """A validation row whose path is this, quoted."""
    return with_row(f'e,"{path}",validation,1,1,c,s,,,,,')


def _bomb(length: int, rows: int) -> bytes:
    """Rows that all have one long word, which the file holds once."""
    one = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * length]))
    columns = {name: one for name in ("label", "path", "split", "is_query", "is_gallery")}
    return parquet(columns, compression="zstd", write_statistics=False, store_schema=False)


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("table.csv", SOUND)
    return file.getvalue()


def bad_files() -> dict[str, bytes]:
    """Whole files that are no table, by what is wrong."""
    text = SOUND.encode()
    sound = parquet(sound_columns())
    files = {
        "utf-16 with a mark": SOUND.encode("utf-16"),
        "utf-16 without": SOUND.encode("utf-16-le"),
        "utf-32": SOUND.encode("utf-32"),
        "latin-1": SOUND.replace("c1", "é").encode("latin-1"),
        "half a character": text + b"e,\xf0\x9f\x98,validation,1,1,c,s,,,,,\n",
        "a surrogate": with_row("e,\ud800.png,validation,1,1,c,s,,,,,"),
        "a NUL": text + b"e,\0,validation,1,1,c,s,,,,,\n",
        "empty": b"",
        "a byte": b"x",
        "a mark alone": b"\xef\xbb\xbf",
        "spaces": b" \n\t\n  \n",
        "line breaks": b"\n" * 10_000,
        "header only": HEADER.encode() + b"\n",
        "half a header": HEADER[:20].encode(),
        "semicolons": SOUND.replace(",", ";").encode(),
        "tabs": SOUND.replace(",", "\t").encode(),
        "pipes": SOUND.replace(",", "|").encode(),
        "a short row": with_row("a,b"),
        "a long row": with_row("a" + "," * 40),
        "a million columns": (HEADER + "".join(f",{i}" for i in range(1_000_000)) + "\n").encode(),
        "a line of 8 MB": with_row("x" * (8 << 20)),
        "a header of 2 MB": f'"{"x" * (2 << 20)}",path\n'.encode(),
        "a quote in the header": f'"{HEADER}\n'.encode() + text,
        "a quote that stays open": with_row('e,"8.png,validation,1,1,c,s,,,,,'),
        "a quote inside": with_row('e,8".p"ng,validation,1,1,c,s,,,,,"'),
        "a repeated column": SOUND.replace("sequence", "path").encode(),
        "columns in other words": SOUND.replace("label", "labels").replace("path", "paht").encode(),
        "upper case": SOUND.replace(HEADER, HEADER.upper()).encode(),
        "a quoted piece of a name": SOUND.replace("label,", 'la"bel",').encode(),
        "no header": "\n".join(ROWS).encode(),
        "gzip": gzip.compress(text),
        "zip": _zip(),
        "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "pickle": pickle.dumps({"path": [1]}),
        "json": b'[{"path": "0.png"}]',
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "a numpy file": b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}",
    }
    for at in (4, 8, len(sound) // 2, len(sound) - 8, len(sound) - 1):
        files[f"parquet cut at {at}"] = sound[:at]
    for at in range(12, len(sound), len(sound) // 8):
        files[f"parquet torn at {at}"] = sound[:at] + b"\xff" * 16 + sound[at + 16 :]
    rows = len(ROWS)
    nested: dict[str, Any] = {"list": [["0.png"]], "struct": [{"a": "0.png"}], "map": [[("a", "b")]]}
    kinds = {"map": pa.map_(pa.string(), pa.string())}
    for kind, cell in nested.items():
        path = pa.array(cell * rows, kinds.get(kind))
        files[f"parquet of a {kind}"] = parquet(sound_columns() | {"path": path})
    files["parquet of bytes that are no text"] = parquet(sound_columns() | {"path": [b"\xff\xfe"] * rows})
    files["parquet of a NUL"] = parquet(sound_columns() | {"path": ["\0.png"] * rows})
    files["parquet of a NUL in a folder"] = parquet(sound_columns() | {"path": ["\0/a.png"] * rows})
    files["parquet of nulls"] = parquet(sound_columns() | {"path": pa.nulls(rows)})
    files["parquet without rows"] = parquet({name: pa.array([], pa.string()) for name in HEADER.split(",")})
    files["parquet without columns"] = parquet({})
    files["parquet of a long word in many rows"] = _bomb(100_000, 100_000)
    files["parquet of many rows"] = _bomb(1, 3_000_000)
    return files


def bad_rows() -> dict[str, bytes]:
    """A sound table and one bad row, by what is wrong."""
    paths = {
        "..": "../x.png",
        "deep ..": "a/../../../../../etc/passwd",
        "absolute": "/etc/passwd",
        "device": "/dev/zero",
        "home": "~/x.png",
        "empty": "",
        "a dot": ".",
        "5000 characters": "x" * 5000,
        "5000 folders": "x/" * 2500 + "x.png",
        "missing": "none.png",
        "a folder": "folder",
        "through a file": "0.png/0.png",
        "a link out": "out.png",
        "a loop of links": "loop.png",
        "a link to nothing": "dangling.png",
        "a pipe": "pipe.png",
        "a url": "http://localhost/x.png",
        "backslashes": "..\\..\\x.png",
        "a line break": "a\nb.png",
        **{f"hostile {i}": name.replace('"', '""') for i, name in enumerate(HOSTILE)},
    }
    files = {f"path {name}": path_row(path) for name, path in paths.items()}
    boxes = ("1,1,1,1", "5,1,1,5", "-1,5,0,5", "1e3,5,1,5", "nan,inf,0,1", "1,,2,3", "0,99999999999,0,5")
    boxes += ("0x1,5,1,5", "1.5,5,1,5", "\u0661,5,1,5", f"{'9' * 400},5,1,5")
    for box in boxes:
        files[f"box {box[:20]}"] = with_row(f"e,7.png,validation,1,1,c,s,,{box}")
    for flag in ("yes", "2", "TRUE ", "\x1b[2J", "-0", "9" * 5000):
        files[f"flag {flag[:9]!r}"] = with_row(f"e,7.png,validation,{flag},1,c,s,,,,,")
    files["no label"] = with_row(",7.png,validation,1,1,c,s,,,,,")
    files["the reserved category"] = with_row("e,7.png,validation,1,1,OVERALL,s,,,,,")
    return files


def special() -> dict[str, Make]:
    """What stands in the place of a table and is none."""
    return {
        "a pipe": lambda here: os.mkfifo(here / "t.csv"),
        "a folder": lambda here: (here / "t.csv").mkdir(),
        "a device": lambda here: (here / "t.csv").symlink_to("/dev/zero"),
        "an empty device": lambda here: (here / "t.csv").symlink_to("/dev/null"),
        "a loop": lambda here: (here / "t.csv").symlink_to(here / "t.csv"),
        "a link to nothing": lambda here: (here / "t.csv").symlink_to(here / "none"),
        "nothing": lambda here: None,
    }


def mutated(seed: int) -> bytes:
    """The sound table with a few random changes."""
    draw = random.Random(seed)
    data = bytearray(SOUND.encode())
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(data))
        kind = draw.randrange(6)
        if kind == 0:
            data[at] = draw.randrange(256)
        elif kind == 1:
            piece = (
                b'"',
                b",",
                b"\n",
                b"\r",
                b"\0",
                b'""',
                b"\xff",
                b"..",
                b"/",
                b"\xe2\x80\xae",
                b"\x1b[2J",
            )
            data[at:at] = draw.choice(piece)
        elif kind == 2:
            del data[at : at + draw.randrange(1, 40)]
        elif kind == 3:
            data[at:at] = data[at : at + draw.randrange(1, 80)]
        elif kind == 4:
            data[at:at] = draw.choice(HOSTILE).encode()
        else:
            del data[at:]
        data = data or bytearray(b"x")
    return bytes(data)


def table_cases(seeds: int = 30) -> Iterator[Case]:
    """All of them; what predicting has no use for, it need not refuse."""
    verbs = list(OF_VERB)
    for i, (name, data) in enumerate(bad_files().items()):
        file = "t.parquet" if name.startswith("parquet") else "t.csv"
        big = len(data) > 1 << 20 or "many" in name
        for verb in ("inspect", verbs[1 + i % 3]) if big else verbs:
            unread = verb == "validate" and "NUL" in name  # saved features are judged without any image
            unread = unread or (verb == "predict" and "quoted piece" in name)
            codes = ANY if "torn" in name or unread else REFUSED_DATA
            yield Case(f"{verb} {name}", on_table(verb, file), {file: data}, codes=codes)
    for i, (name, data) in enumerate(bad_rows().items()):
        for verb in ("inspect", ("train", "validate")[i % 2]):
            yield Case(f"{verb} {name}", on_table(verb, "t.csv"), {"t.csv": data})
    for name, make in special().items():
        for verb in verbs:
            yield Case(
                f"{verb} {name} as the table", on_table(verb, "t.csv"), make=make, codes=frozenset({2, 3})
            )
    for seed in range(seeds):
        for verb in ("inspect", "validate"):
            files = {"t.csv": mutated(seed)}
            yield Case(f"{verb} mutation {seed}", on_table(verb, "t.csv"), files, codes=ANY)
