"""The same as real commands: what an in-process call could hide (a crash, a hang at exit, the encoding)."""

import subprocess
from functools import cache

import pytest

from tests.cli.conftest import listing, process
from tests.hostile.cases import ANY, Case
from tests.hostile.conftest import check
from tests.hostile.features import feature_cases
from tests.hostile.names import name_cases
from tests.hostile.specs import spec_cases
from tests.hostile.tables import table_cases

_OF_CI = (
    "inspect a pipe as the table",
    "inspect parquet of a long word in many rows",
    "train a device without end as the spec",
    "train aliases by nines",
    "inspect names 0",
)
_LONG = (
    "inspect a device as the table",
    "inspect utf-16 without",
    "inspect a million columns",
    "inspect a line of 8 MB",
    "inspect path a pipe",
    "inspect path a loop of links",
    "inspect parquet of many rows",
    "train a tag that runs",
    "train depth of lists",
    "train a pipe as the spec",
    "validate a pipe as the table",
    "predict a device as the table",
    "npy of objects",
    "npy of a huge shape",
    "parquet of many values",
    "safetensors of a long head",
    "an index: hostile 0",
    "a pipe as features",
)


@cache
def cases() -> dict[str, Case]:
    """All of them by name."""
    found = [*table_cases(seeds=0), *spec_cases(mutations=0, drawn=0), *feature_cases(), *name_cases()]
    return {case.name: case for case in found}


@pytest.mark.parametrize("name", [*_OF_CI, *(pytest.param(name, marks=pytest.mark.long) for name in _LONG)])
def test_a_real_command(name, ground, tmp_path):
    from tests.conftest import Outcome

    case = cases()[name]
    for file, data in case.files.items():
        (tmp_path / file).write_bytes(data)
    if case.make is not None:
        case.make(tmp_path)
    words = list(case.words)
    for key, value in {**ground, "here": str(tmp_path)}.items():
        words = [word.replace(f"{{{key}}}", value) for word in words]
    before = listing(tmp_path)
    running = process(*words, cwd=tmp_path)
    try:
        out, err = running.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        running.kill()
        raise
    assert case.codes != ANY
    check(case, Outcome(running.returncode, out, err))
    assert listing(tmp_path) == before
