"""Scalars are YAML 1.2's, not PyYAML's 1.1: a table, a second statement of the core schema, a round trip."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from metricli.specs.document import parse

TABLE: list[tuple[str, Any]] = [
    ("1e-5", 1e-5),
    ("1e5", 1e5),
    ("1.5E+3", 1500.0),
    ("12.", 12.0),
    (".5", 0.5),
    ("-.5", -0.5),
    ("+1", 1),
    ("-0", 0),
    ("0", 0),
    ("010", 10),
    ("0o10", 8),
    ("0x1F", 31),
    ("-0x1F", "-0x1F"),
    ("0b11", "0b11"),
    ("0o8", "0o8"),
    ("1_000", "1_000"),
    ("1:30", "1:30"),
    ("190:20:30", "190:20:30"),
    ("2026-01-01", "2026-01-01"),
    ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
    ("on", "on"),
    ("off", "off"),
    ("yes", "yes"),
    ("No", "No"),
    ("y", "y"),
    ("true", True),
    ("True", True),
    ("TRUE", True),
    ("tRUE", "tRUE"),
    ("false", False),
    ("~", None),
    ("null", None),
    ("Null", None),
    ("NULL", None),
    ("nULL", "nULL"),
    ("None", "None"),
    (".inf", math.inf),
    ("+.INF", math.inf),
    ("-.Inf", -math.inf),
    (".iNF", ".iNF"),
    ("inf", "inf"),
    ("nan", "nan"),
    ("-.nan", "-.nan"),
    (".", "."),
    ("1e", "1e"),
    ("e5", "e5"),
    ("1.2.3", "1.2.3"),
    ('"5"', "5"),
    ("'true'", "true"),
    ('""', ""),
    ("!!str 5", "5"),
    ("!!float 5", 5.0),
    ("=", "="),
    ("<<", "<<"),
]


@pytest.mark.parametrize(("text", "value"), TABLE)
def test_table(text, value):
    found = parse(f"key: {text}\n", "t").data["key"]
    assert (type(found), found) == (type(value), value)
    assert parse(text, "t").data == value


def test_nan():
    found = parse("[.nan, .NaN, .NAN]", "t").data
    assert len(found) == 3
    assert all(isinstance(value, float) and math.isnan(value) for value in found)


def test_keys_are_text_whatever_they_look_like():
    assert parse("{1: a, on: b, null: c, 1e-5: d, 0x1F: e}", "t").data == {
        "1": "a",
        "on": "b",
        "null": "c",
        "1e-5": "d",
        "0x1F": "e",
    }


def core_schema(text: str) -> Any:
    """YAML 1.2.2, section 10.3.2, its table of regular expressions row by row."""
    if re.fullmatch(r"null|Null|NULL|~", text) or not text:
        return None
    if re.fullmatch(r"true|True|TRUE", text):
        return True
    if re.fullmatch(r"false|False|FALSE", text):
        return False
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return int(text, 10)
    if re.fullmatch(r"0o[0-7]+", text):
        return int(text[2:], 8)
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text[2:], 16)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text):
        return float(text)
    if re.fullmatch(r"[-+]?(\.inf|\.Inf|\.INF)", text):
        return -math.inf if text[0] == "-" else math.inf
    if re.fullmatch(r"\.nan|\.NaN|\.NAN", text):
        return math.nan
    return text


NUMBER_LIKE = st.text("0123456789+-.eExo_abfnINFNatrulsTRUEno~", min_size=1, max_size=8)


@settings(max_examples=500, deadline=None)
@given(NUMBER_LIKE.filter(lambda text: text not in ("-", "---", "...") and not text.startswith("- ")))
def test_plain_scalars_follow_the_core_schema(text):
    found = parse(f"[{text}]", "t").data
    assert repr(found) == repr([core_schema(text)])


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co"]), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abz_-. ", min_size=1), inner, max_size=4)
    ),
    max_leaves=20,
)


def one_way(value: Any) -> bool:
    """Whether YAML 1.1, which dumps, writes it unquoted in a form that is another value in 1.2."""
    if isinstance(value, dict):
        return any(one_way(item) for item in value.values())
    if isinstance(value, list):
        return any(one_way(item) for item in value)
    if isinstance(value, str):
        return yaml.safe_dump(value).split("\n")[0] == value and core_schema(value) != value
    return False


@settings(max_examples=200, deadline=None)
@given(PLAIN.filter(lambda value: not one_way(value)), st.booleans())
def test_what_pyyaml_dumps_is_read_back(value, flow):
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True, sort_keys=False)
    assert repr(parse(text, "t").data) == repr(value)


def test_the_filter_of_the_round_trip_is_narrow():
    assert one_way("1e5")
    assert one_way("0o10")
    assert not one_way("on")
    assert not one_way("12")
    assert not one_way(["x", {"y": 1e-5}])


def test_lines_of_keys_and_items():
    document = parse("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\ne: &n [1]\nf: *n\n", "t")
    found = {".".join(map(str, path)): line for path, line in document.lines.items() if path}
    assert found == {
        "a": 1,
        "a.b": 2,
        "a.c": 3,
        "a.c.0": 4,
        "a.c.1": 5,
        "a.c.1.d": 5,
        "e": 6,
        "e.0": 6,
        "f": 7,
        "f.0": 6,
    }
    assert document.line(("a", "c", 1, "missing", "deep")) == 5
    assert document.line(("missing",)) is None


def test_an_alias_is_a_copy():
    data = parse("a: &n {x: 1}\nb: *n\n", "t").data
    assert data == {"a": {"x": 1}, "b": {"x": 1}}
    assert data["a"] is not data["b"]
