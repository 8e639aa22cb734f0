"""The inputs that fuzzing starts from, made here so that no binary file is kept."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

ROOT = Path(__file__).resolve().parents[1]
HEADER = "label,path,split,is_query,is_gallery,category,sequence,ignore,x_1,x_2,y_1,y_2"
ROWS = (
    "a,1.jpg,train,,,c,,,,,,",
    "a,2.jpg,train,,,c,s,,1,5,2,6",
    "b,3.jpg,train,,,d,,,,,,",
    "c,4.jpg,validation,1,0,c,s,,,,,",
    "c,5.jpg,validation,true,True,,,1,,,,",
    "c,../6.jpg,validation,0,1,OVERALL,,,9,5,2.0,x",
)


def specs() -> list[bytes]:
    """Every example, and the corners of YAML."""
    examples = [path.read_bytes() for path in sorted((ROOT / "examples" / "configs").glob("*.yaml"))]
    corners = (
        "a: &a [x, y]\nb: *a\n",
        "&a [*a]",
        "a: !!python/object:os.system x\n",
        "{a: 1, a: 2, ? [x] : y}",
        "loss: {name: triplet, margin: .inf}\nseed: 0x1F\nname: 1e-5\n",
        "<<: {a: 1}\n",
        "--- a\n--- b\n",
        '"\\ud800\\0": "\\x1b[2J"\n',
    )
    return [*examples, *(text.encode() for text in corners)]


def _parquet(columns: dict[str, Any], **how: Any) -> bytes:
    file = io.BytesIO()
    pa_parquet.write_table(pa.table(columns), file, **how)
    return file.getvalue()


def tables() -> list[bytes]:
    """CSV and parquet, sound and not; the first byte is for `targets.a_table`."""
    lines = [HEADER, *ROWS]
    text = "\n".join(lines) + "\n"
    texts = (
        text,
        text.replace("\n", "\r\n"),
        text.replace(",", ";"),
        "\ufeff" + text,
        text.replace("a,1.jpg", '"a\nb","1,""2"".jpg"'),
        "path\n1.jpg\n",
        "label,path,split\na,1.jpg,train\n",
        '"label","path',
    )
    cells = [row.split(",") for row in ROWS]
    columns = {name: [row[i] for row in cells] for i, name in enumerate(HEADER.split(","))}
    coded = {name: pa.array(column).dictionary_encode() for name, column in columns.items()}
    typed = columns | {"label": [1.0, None, 2.0, 3.5, 3.0, 3.0], "is_query": [True, False, None] * 2}
    nested = columns | {"path": [["1.jpg"]] * len(ROWS)}
    files = [
        *(value.encode() for value in texts),
        text.encode("utf-16"),
        text.replace("c", "\xe9").encode("latin-1"),
        _parquet(columns),
        _parquet(columns, use_dictionary=False, compression="none"),
        _parquet(coded, row_group_size=2),
        _parquet(typed, compression="zstd"),
        _parquet(nested),
    ]
    return [bytes([how]) + file for file in files for how in (0, 1, 2)]


def checkpoints() -> list[bytes]:
    """A best.ckpt and a last.ckpt of one small layer, other programs' files, and broken heads."""
    import torch
    from safetensors.torch import save

    from fuzzing.targets import signed

    weights = {"extractor.fc.weight": torch.ones(2, 3), "extractor.n": torch.tensor(1)}
    best = {
        "kind": "best",
        "metricli": "0.1.0",
        "spec": {"name": "fuzz", "data": {"table": "df.csv"}, "loss": "triplet"},
        "base": "/nowhere",
        "extractor": {"name": "timm", "model": "test_resnet", "dim": 2},
        "eval_transform": {"name": "resize_normalize", "size": 32},
        "labels": ["a", "b"],
        "metrics": {"OVERALL": {"cmc@1": 0.5}},
        "epoch": 1,
    }
    state = {"items": [["extractor", {"items": [["w", {"tensor": "state.0"}], ["n", [1, None, 0.5]]]}]]}
    last = {
        "kind": "last",
        "metricli": "0.1.0",
        "state": state,
        "spec": best["spec"],
        "labels": ["a", "b"],
        "rows": 4,
        "progress": {"epoch": 1, "step": 2},
    }

    def file(what: Any, tensors: dict[str, torch.Tensor], **more: str) -> bytes:
        head = {"format": "metricli", "format_version": "1", "meta": json.dumps(what), "sha256": ""} | more
        return signed(save(tensors, metadata=head))

    whole = file(best, weights)
    return [
        whole,
        file(last, {"state.0": torch.ones(2)}),
        file(best, {"extractor.h": torch.ones(3, dtype=torch.bfloat16), "extractor.e": torch.ones(0, 3)}),
        file([], {}),
        file(best, weights, format_version="2"),
        file(best, weights, meta="[" * 100),
        save(weights),
        whole[:-1],
        whole[:100],
        b"\xff" * 16,
        b"\x80\x02}q\x00.",
    ]


SEEDS = {"spec": specs, "table": tables, "checkpoint": checkpoints}
