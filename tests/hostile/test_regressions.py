"""What once broke, each with its reason; the generators beside try the kinds, these are the very inputs."""

from functools import cache

import pytest

from tests.hostile.cases import FINE, REFUSED_DATA, REFUSED_SPEC, Case, on_table
from tests.hostile.features import VALUES, feature_cases, npy
from tests.hostile.specs import spec_cases
from tests.hostile.tables import IMAGES, table_cases

BROKE = {
    "inspect parquet of a NUL in a folder": "the real path of a folder with a NUL was asked for: a traceback",
    "npy of an archive": "numpy opens a .npz as an archive, which has no dimensions: a traceback",
    "an index: latin-1": "the index beside features was read without heed of its encoding: a traceback",
    "an index: a long field": "the csv module's limit on a field: a traceback",
    "parquet of other lengths": "lists of other lengths were cut anew, so that rows had others' numbers",
    "parquet with two rows missing": "missing rows were left out, so that rows had others' numbers",
    "inspect a pipe as the table": "a pipe that nobody writes to was waited for without end",
    "train a device without end as the spec": "the whole of /dev/zero was to be read",
    "inspect parquet of a long word in many rows": "some hundred bytes became ten gigabytes of text",
    "inspect a quote in the header": "a field beyond the csv module's limit: a traceback",
    "train a long hexadecimal": "a number that Python does not print: a traceback while it was to be shown",
    "train a NUL by escape": "a path with a NUL cannot be asked for",
    "train values by the hundred thousand": "half a minute of parsing before the cap on values was met",
    "train keys by the thousand": "a message of 900,000 characters",
}


@cache
def every() -> dict[str, Case]:
    """The generated cases by name."""
    found = [*table_cases(seeds=0), *spec_cases(mutations=0, drawn=0), *feature_cases()]
    return {case.name: case for case in found}


@pytest.mark.parametrize("name", BROKE)
def test_what_broke_is_refused(tried, name):
    case = every()[name]
    assert case.codes in (REFUSED_DATA, REFUSED_SPEC, frozenset({2, 3}))
    tried(case)


@pytest.mark.parametrize(
    "words",
    [
        ["validate", "--features", f"{'x' * 300}.npy", "--data", "{table}"],
        ["validate", "--ckpt", "x" * 300],
        ["inspect-dataset", "x" * 300],
        ["train", f"{'x' * 300}.yaml", "--dry-run"],
    ],
    ids=["features", "ckpt", "table", "spec"],
)
def test_a_name_that_no_system_takes(tried, words):
    outcome = tried(Case("long", words, codes=frozenset({2, 3, 5})))
    assert "too long" in outcome.err


def test_a_deep_key_of_an_override(tried):
    words = ["train", "{spec}", "a." * 10_000 + "b=1", "--dry-run"]
    assert "a key of 10001 levels, too deep for a spec" in tried(Case("deep", words, codes=REFUSED_SPEC)).err


def test_an_index_may_have_a_byte_order_mark(tried):
    lines = ["row,path,label,status", *(f"{i},{path},x,ok" for i, path in enumerate(IMAGES[4:]))]
    files = {"f.npy": npy(VALUES), "f.index.csv": "\n".join(lines).encode("utf-8-sig")}
    words = ["validate", "--features", "f.npy", "--data", "{table}", "--root", "{root}"]
    tried(Case("mark", words, files, codes=FINE))


def test_a_missing_table_is_named_in_one_line(tried):
    outcome = tried(Case("line", on_table("inspect", "a\nerror: b.csv")))
    assert outcome.err == "error: no such table: a\\nerror: b.csv; check the path\n"
