"""Pages that repeat what the code says: docs/spec.md and the findings of docs/table.md."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def maker() -> Any:
    place = importlib.util.spec_from_file_location(
        "make_spec_reference", ROOT / "docs/make_spec_reference.py"
    )
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def test_the_spec_reference_is_fresh(maker: Any) -> None:
    written = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    assert written == maker.reference(), "run: .venv/bin/python docs/make_spec_reference.py"


def test_the_page_of_losses_says_when_to_use_each(maker: Any) -> None:
    written = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    assert written == maker.with_advice(written), "run: .venv/bin/python docs/make_spec_reference.py"
    built_in = importlib.metadata.entry_points(group="metricli.losses")
    assert len(built_in) >= 21
    for name in [entry.name for entry in built_in if entry.value.startswith("metricli.")]:
        assert re.search(rf"^\| `{name}` \| [^|]+\. \| [^|]+\. \|$", written, re.M), name
    stale = written.replace("Use it as a first", "Use it as the last")
    assert stale != written
    assert maker.with_advice(stale) == written


def test_the_spec_reference_has_every_kind_of_row(maker: Any) -> None:
    page = maker.reference()
    for row in (
        "| `data` | **required** | a block | the table of images |",
        "| `gpus` | `1` | whole number ≥ 1 | processes, one for each GPU; the results do not depend on it |",
        "| `sampler` | `null` | a sampler or null | forms the batches; null: plain shuffling, with "
        "training.batch_size |",
        "| `dtype` | `float32` | `float32`, `float16` | type of the saved features |",
        "| `miner` | `hard_triplets` | a miner | picks the triplets of a batch |",
        "| `cmc` | `[1, 5, 10]` | list of whole numbers | any relevant item within the first k |",
        "| `postprocessors` | `[]` | list of postprocessors | applied to the rankings, in order |",
    ):
        assert row in page
    for title in ("## validation.metrics", "### optimizers: adafactor", "### schedulers: plateau"):
        assert f"\n{title}\n" in page


def test_the_table_page_lists_every_finding() -> None:
    page = (ROOT / "docs" / "table.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z-]+)` \| (error|warning) \|", page, re.M)
    found = {("empty-label", "error"), ("empty-path", "error")}
    for file in (ROOT / "metricli" / "data").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                words = [word.value for word in node.args if isinstance(word, ast.Constant)]
                if node.func.id == "finding" and len(words) > 1:
                    found.add((words[1], words[0]))
                elif node.func.id == "_contradictions":
                    found.add((words[1], "warning"))
    assert listed == sorted(listed, key=lambda item: (item[1] != "error", item[0]))
    assert set(listed) == found
