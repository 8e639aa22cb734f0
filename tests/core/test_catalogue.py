"""The names that values print as: one each, however large or fine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricli.core.catalogue import metric_names, metric_of, printed


@pytest.mark.parametrize(
    ("key", "at", "name"),
    [
        ("cmc", 1, "cmc@1"),
        ("cmc", 1_000_000, "cmc@1000000"),
        ("precision", 1_234_567, "precision@1234567"),
        ("hubness", 10**17 + 1, "hubness@100000000000000001"),
        ("fnmr", 0.1, "fnmr@0.1"),
        ("fnmr", 0.01234567, "fnmr@0.01234567"),
        ("tar", 1e-6, "tar@1e-06"),
        ("map_r", None, "map@r"),
        ("mrr", None, "mrr"),
    ],
)
def test_names(key, at, name):
    assert printed(key, at) == name
    assert metric_of(name).key == key


@given(st.sets(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=9), st.sets(st.integers(1)))
def test_no_two_of_them_collide(shares, ks):
    names = metric_names({"fnmr": sorted(shares), "cmc": sorted(ks)})
    assert len(set(names)) == len(shares) + len(ks)
    assert {int(name[4:]) for name in names if name.startswith("cmc@")} == ks
    assert {float(name[5:]) for name in names if name.startswith("fnmr@")} == shares
