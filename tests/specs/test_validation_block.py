"""Rules of the `validation` block that need neither a table nor a model."""

import pytest
from pydantic import ValidationError

from metricli.specs.validate import ValidationSpec


def messages(**block):
    with pytest.raises(ValidationError) as raised:
        ValidationSpec(**block)
    return [(".".join(map(str, error["loc"])), error["msg"]) for error in raised.value.errors()]


@pytest.mark.parametrize(
    ("block", "place", "message"),
    [
        (
            {"bootstrap": {"samples": 39}},
            "bootstrap.samples",
            "an interval of 0.95 needs 40 draws or more, got 39; 0: no intervals",
        ),
        (
            {"bootstrap": {"samples": 1000, "confidence": 0.999}},
            "bootstrap.samples",
            "an interval of 0.999 needs 2000 draws or more, got 1000; 0: no intervals",
        ),
        (
            {"search": {"nprobe": 3}},
            "search.nprobe",
            "is for an IVF index alone; remove it, or set index: IVF1024,Flat",
        ),
        (
            {"search": {"index": "HNSW32"}, "metrics": {"mrr": True, "minp": True}},
            "search.index",
            "an approximate index gives no whole ranking, which mrr and minp look at; "
            "remove them, or the index",
        ),
        (
            {"gallery_table": "old.csv"},
            "gallery_table",
            "is the table of gallery_features, which is not given",
        ),
        ({"metrics": {"fnmr": [1.0]}}, "metrics.fnmr", "must lie between 0 and 1, got 1"),
        ({"metrics": {"pcf": [0.5, 0.5]}}, "metrics.pcf", "a value is given twice: [0.5, 0.5]"),
        ({"metrics": {"hubness": [0]}}, "metrics.hubness", "every k must be at least 1, got 0"),
    ],
)
def test_what_contradicts_itself_is_refused(block, place, message):
    assert messages(**block) == [(place, message)]


def test_what_is_enough():
    assert ValidationSpec(bootstrap={"samples": 40}).bootstrap.samples == 40
    assert ValidationSpec(bootstrap={"samples": 0}).bootstrap.samples == 0
    assert ValidationSpec(search={"index": "IVF8,Flat", "nprobe": 2}).search.nprobe == 2
