"""Two evaluations compared: differences worked by hand, planted improvements, and pairs that are refused."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from metricli.core.bootstrap import paired_intervals
from metricli.errors import DataError, MetricliError, UsageError
from metricli.reports import Comparison, Flips, MetricDifference
from metricli.runs.comparison import compare
from metricli.runs.per_query import PerQuery
from metricli.tables import format_comparison

LABELS = ["sun", "sun", "sun", "ace", "ace", "elk", "elk", "owl"]
CATEGORIES = ["a", "a", "a", "b", "b", "", "", "b"]
PROTOCOL = {
    "rows_digest": "abc",
    "split": "validation",
    "unmatched": "skip",
    "method": {"distance": "cosine", "postprocessors": [], "embeddings": "one.ckpt"},
}


def words(texts: list[str]) -> Any:
    return np.array(texts, dtype=object)


def per_query(values: dict[str, list[float]], **changed: Any) -> PerQuery:
    known: dict[str, Any] = {
        "rows": np.arange(1, 9),
        "paths": words([f"{i}.jpg" for i in range(8)]),
        "labels": words(LABELS),
        "categories": words(CATEGORIES),
        "protocol": None,
    }
    found = {metric: np.array(column, dtype=np.float64) for metric, column in values.items()}
    return PerQuery(values=found, **known | changed)


def against(ours: PerQuery, theirs: PerQuery, **more: Any) -> Comparison:
    return compare(ours, theirs, ours_name="new", theirs_name="old", **more)


NAN = math.nan
OLD = {"cmc@5": [1] * 8, "cmc@1": [0, 0, 0, 1, 1, 1, NAN, 0], "mrr": [0.5] * 6 + [NAN, 0.25]}
NEW = {"cmc@5": [1] * 8, "mrr": [1.0] * 3 + [0.5] * 3 + [NAN, 0.25], "cmc@1": [1, 1, 0, 0, 1, 1, NAN, 1]}


def test_a_comparison_worked_by_hand():
    found = against(per_query(NEW, protocol=PROTOCOL), per_query(OLD, protocol=PROTOCOL), samples=200)
    assert (found.ours, found.theirs, found.samples, found.confidence) == ("new", "old", 200, 0.95)
    assert found.notes == []
    assert list(found.differences) == ["OVERALL", "a", "b"]
    assert list(found.differences["a"]) == ["cmc@5", "mrr", "cmc@1"]
    expected = {
        "OVERALL": (3 / 7, 5 / 7, 2 / 7),
        "a": (0.0, 2 / 3, 2 / 3),
        "b": (2 / 3, 2 / 3, 0.0),
    }
    for category, (theirs, ours, difference) in expected.items():
        entry = found.differences[category]["cmc@1"]
        assert (entry.theirs, entry.ours, entry.difference) == pytest.approx((theirs, ours, difference))
    alone = found.differences["a"]["cmc@1"]  # one label: no interval
    assert [math.isnan(value) for value in (alone.low, alone.high, alone.p)] == [True] * 3
    assert alone.verdict == "unclear"
    assert found.differences["OVERALL"]["cmc@5"] == MetricDifference(1, 1, 0, 0, 0, 1, "equal")
    assert found.flips == Flips("cmc@1", 3, 1, 3, [("sun", 2, 0), ("ace", 0, 1), ("owl", 1, 0)])
    assert json.loads(json.dumps(found.to_dict()))["differences"]["a"]["cmc@1"]["low"] is None


def test_queries_and_labels_are_those_that_were_judged():
    found = against(per_query({"mrr": OLD["mrr"]}), per_query({"mrr": NEW["mrr"]}))
    assert (found.queries, found.labels) == (7, 4)
    without = {"mrr": [*OLD["mrr"][:7], NAN]}
    found = against(per_query(without), per_query({"mrr": NEW["mrr"]}))
    assert (found.queries, found.labels) == (6, 3)
    assert found.notes[-1] == "1 of 8 queries are judged in one of the two only and left out"
    assert found.differences["OVERALL"]["mrr"].theirs == pytest.approx((3 + 1.5) / 6)
    back = against(per_query({"mrr": NEW["mrr"]}), per_query(without))
    assert back.differences["OVERALL"]["mrr"].ours == found.differences["OVERALL"]["mrr"].theirs


def planted(gain: float, seed: int = 0) -> tuple[PerQuery, PerQuery, torch.Tensor]:
    """A baseline over 50 labels of 10 queries, and one that finds a share `gain` of what it missed."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(50), 10)
    old = (rng.random(500) < rng.beta(2, 2, 50)[labels]).astype(np.float64)
    new = np.maximum(old, rng.random(500) < gain)
    many = {
        "rows": np.arange(500),
        "paths": words([f"{i}.jpg" for i in range(500)]),
        "labels": words([f"l{label:02}" for label in labels]),
        "categories": words([f"c{label % 3}" for label in labels]),
    }
    sides = [per_query({"cmc@1": values.tolist()}, **many) for values in (new, old)]
    return sides[0], sides[1], torch.from_numpy(labels)


def test_a_planted_improvement_is_better_one_way_and_worse_the_other():
    new, old, labels = planted(0.2)
    found, back = against(new, old), against(old, new)
    for category in ("OVERALL", "c0", "c1", "c2"):
        entry, other = found.differences[category]["cmc@1"], back.differences[category]["cmc@1"]
        assert (entry.verdict, other.verdict) == ("better", "worse")
        assert 0 < entry.low < entry.difference < entry.high
        assert (other.low, other.high, other.p) == pytest.approx((-entry.high, -entry.low, entry.p))
        assert entry.p < 0.01
    gained = int((new.values["cmc@1"] > old.values["cmc@1"]).sum())
    assert (found.flips.gained, found.flips.lost) == (back.flips.lost, back.flips.gained) == (gained, 0)
    low, high, p = paired_intervals(
        {"m": torch.from_numpy(old.values["cmc@1"])}, {"m": torch.from_numpy(new.values["cmc@1"])}, labels
    )["OVERALL"]["m"]
    entry = found.differences["OVERALL"]["cmc@1"]
    assert (entry.low, entry.high, entry.p) == (low, high, p)
    changes = [gained + lost for _, gained, lost in found.flips.labels]
    assert changes == sorted(changes, reverse=True)
    assert min(changes) > 0
    assert sum(changes) == gained


def test_noise_is_unclear_and_the_options_reach_the_draws():
    new, old, _ = planted(0.2)
    shuffled = dataclasses.replace(new, values={"cmc@1": np.roll(old.values["cmc@1"], 10)})
    entry = against(shuffled, old).differences["OVERALL"]["cmc@1"]
    assert entry.verdict == "unclear"
    assert entry.low < 0 < entry.high
    assert entry.p > 0.05
    narrow = against(shuffled, old, confidence=0.5).differences["OVERALL"]["cmc@1"]
    assert entry.low < narrow.low < narrow.high < entry.high
    assert against(shuffled, old, seed=1).differences["OVERALL"]["cmc@1"].low != entry.low
    bare = against(shuffled, old, samples=0).differences["OVERALL"]["cmc@1"]
    assert math.isnan(bare.low)
    assert bare.difference == entry.difference


def test_one_side_against_itself_is_equal():
    new, *_ = planted(0.1)
    found = against(new, new)
    assert {entry.verdict for row in found.differences.values() for entry in row.values()} == {"equal"}
    assert found.flips == Flips("cmc@1", 0, 0, 500, [])


def test_flips_are_of_the_lowest_cmc_or_of_the_first_metric_that_changed():
    same, more, less = [0.5] * 8, [0.5] * 7 + [0.75], [0.5] * 7 + [0.25]
    zeros, hits = [0.0] * 8, [0.0] * 7 + [1.0]

    def flips(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> Flips:
        return against(per_query(ours), per_query(theirs), samples=10).flips

    both = {"cmc@10": hits, "cmc@5": zeros, "mrr": more}
    assert flips(both, {"cmc@10": zeros, "cmc@5": hits, "mrr": same}).metric == "cmc@5"
    found = flips({"map@r": same, "mrr": more}, {"map@r": same, "mrr": same})
    assert found == Flips("mrr", 1, 0, 7, [("owl", 1, 0)])
    assert flips({"mrr": less}, {"mrr": same}) == Flips("mrr", 0, 1, 7, [("owl", 0, 1)])
    assert flips({"map@r": same, "mrr": same}, {"map@r": same, "mrr": same}).metric == "map@r"
    assert flips({"eer": less}, {"eer": same}) == Flips("eer", 1, 0, 7, [("owl", 1, 0)])  # lower is better


def test_a_k_is_a_number_however_large():
    many = {f"cmc@{k}": [0.0] * 8 for k in ("9", "1000000", "1e+06", "x")}
    assert against(per_query(many), per_query(many), samples=10).flips.metric == "cmc@9"
    odd = {"cmc@1e+06": [0.0] * 8}
    assert against(per_query(odd), per_query(odd), samples=10).flips.metric == "cmc@1e+06"


def test_lower_is_better_turns_the_verdict():
    falling = against(per_query({"eer": [0.1] * 8}), per_query({"eer": [0.2] * 8}))
    assert falling.differences["OVERALL"]["eer"].verdict == "better"
    rising = against(per_query({"eer": [0.2] * 8}), per_query({"eer": [0.1] * 8}))
    assert rising.differences["OVERALL"]["eer"].verdict == "worse"


def changed_protocol(**changes: Any) -> dict[str, Any]:
    method = PROTOCOL["method"] | {k.removeprefix("method_"): v for k, v in changes.items() if "_" in k}
    return PROTOCOL | {k: v for k, v in changes.items() if "_" not in k} | {"method": method}


def test_what_may_differ_is_said():
    method = {"method_postprocessors": ["rerank"], "method_embeddings": "two.ckpt"}
    ours = per_query({"mrr": [1] * 8, "cmc@1": [1] * 8}, protocol=changed_protocol(**method))
    theirs = per_query({"mrr": [1] * 8, "map@r": [1] * 8, "map@5": [1] * 8}, protocol=PROTOCOL)
    assert against(ours, theirs).notes == [
        "postprocessors: new has ['rerank'], old has none",
        "embeddings: new has two.ckpt, old has one.ckpt",
        "only new has cmc@1",
        "only old has map@r, map@5",
    ]
    bare = per_query({"mrr": [1] * 8})
    unknown = "no protocol is known of {}: the queries are compared, not how they were judged"
    assert against(ours, bare).notes[0] == unknown.format("'old'")
    assert against(bare, theirs).notes[0] == unknown.format("'new'")
    assert against(bare, bare).notes == [unknown.format("'new' and 'old'")]


def test_a_protocol_in_memory_is_that_of_a_file():
    memory = PROTOCOL | {"shares": (0.1, 0.2), "limit": NAN}
    file = PROTOCOL | {"shares": [0.1, 0.2], "limit": None}
    assert against(per_query(OLD, protocol=memory), per_query(OLD, protocol=file)).notes == []


def test_many_categories_are_said_to_err():
    many = {"categories": words([f"c{i}" for i in range(8)])}
    found = against(per_query(OLD, **many), per_query(NEW, **many), confidence=0.75)
    assert found.notes[-1] == "of 8 categories about 2 would seem better or worse by chance alone"


TABLE = "; compare evaluations of one table and split"
REFUSED = {
    "other queries": (
        {"paths": words(["0.jpg", "x.jpg", "y.jpg", *[f"{i}.jpg" for i in range(3, 8)]])},
        DataError,
        "2 of 8 queries of 'new' are not among those of 'old', the first 'x.jpg'" + TABLE,
    ),
    "another order": (
        {"paths": words([f"{i}.jpg" for i in range(7, -1, -1)])},
        DataError,
        "'new' and 'old' have the same paths of queries, but in another order or number" + TABLE,
    ),
    "other labels": (
        {"labels": words([*LABELS[:5], "emu", "emu", "owl"])},
        DataError,
        "'new' and 'old' have other labels for 2 of 8 queries, the first for '5.jpg': 'emu' and 'elk'"
        + TABLE,
    ),
    "other categories": (
        {"categories": words([*CATEGORIES[:7], "c"])},
        DataError,
        "'new' and 'old' have other categories for 1 of 8 queries, the first for '7.jpg': 'c' and 'b'"
        + TABLE,
    ),
    "another gallery": (
        {"protocol": PROTOCOL | {"rows_digest": "abd"}},
        DataError,
        "'new' and 'old' have the same queries, but searched another gallery: other rows, labels, sequences "
        "or boxes, or other images taken for the query itself" + TABLE,
    ),
    "other rules": (
        {"protocol": changed_protocol(split="test", unmatched="zero") | {"rows_digest": "abd"}},
        UsageError,
        "'new' and 'old' were judged by other rules: split is 'test' and 'validation'; unmatched is 'zero' "
        "and 'skip'; judge both in the same way",
    ),
    "another distance": (
        {"protocol": changed_protocol(method_distance="euclidean")},
        UsageError,
        "'new' and 'old' were judged by other rules: method.distance is 'euclidean' and 'cosine'; judge both "
        "in the same way",
    ),
    "many rules": (
        {"protocol": PROTOCOL | dict.fromkeys(["p", "q", "r", "s"], 1)},
        UsageError,
        "'new' and 'old' were judged by other rules: p is 1 and None; q is 1 and None; r is 1 and None; and "
        "1 more; judge both in the same way",
    ),
    "other metrics": (
        {"values": {"ndcg@5": np.ones(8), "recall@1": np.ones(8)}},
        UsageError,
        "'new' and 'old' have no metric in common: ndcg@5, recall@1, and cmc@5, cmc@1, mrr; judge both by "
        "the same metrics",
    ),
    "no metric at all": (
        {"values": {}},
        UsageError,
        "'new' has no metric with a value for each query, and these are compared; ask for a ranking metric, "
        "such as validation.metrics.cmc=[1]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_compare_is_refused(case):
    changes, kind, message = REFUSED[case]
    theirs = per_query(OLD, protocol=PROTOCOL)
    with pytest.raises(MetricliError) as raised:
        against(dataclasses.replace(theirs, **changes), theirs)
    assert type(raised.value) is kind
    assert str(raised.value) == message


def test_a_query_that_one_side_lacks_is_named_from_either_side():
    theirs = per_query(OLD)
    fewer = PerQuery(
        *(column[:7] for column in (theirs.rows, theirs.paths, theirs.labels, theirs.categories)),
        {metric: column[:7] for metric, column in theirs.values.items()},
        None,
    )
    message = "1 of 8 queries of {} are not among those of {}, the first '7.jpg'" + TABLE
    for pair, names in (((fewer, theirs), ("'old'", "'new'")), ((theirs, fewer), ("'new'", "'old'"))):
        with pytest.raises(DataError) as raised:
            against(*pair)
        assert str(raised.value) == message.format(*names)


def test_rows_may_have_moved_in_the_table():
    theirs = per_query(OLD)
    found = against(dataclasses.replace(theirs, rows=theirs.rows + 100), theirs)
    assert found.differences["OVERALL"]["mrr"].verdict == "equal"


TEXT = """\
A  runs/old
B  runs/new\\n
7 queries of 4 labels; intervals by 1000 draws of labels

         metric       A       B    B - A       95 % interval      p
OVERALL  cmc@1   0.4286  0.7143  +0.2857  -0.5000 to +0.7500  0.400  unclear
a        cmc@1        -       -        -                   -      -
b        cmc@1   0.5000  0.6250  +0.1250                   -      -  unclear

cmc@1 by query, from A to B: 3 gained, 1 lost, 3 unchanged
label  gained  lost
sun         2     0
ace         0     1
note: only new has mrr"""


def test_the_text():
    differences = {
        "OVERALL": {"cmc@1": MetricDifference(3 / 7, 5 / 7, 2 / 7, -0.5, 0.75, 0.4, "unclear")},
        "a": {"cmc@1": MetricDifference(NAN, NAN, NAN, NAN, NAN, NAN, "unclear")},
        "b": {"cmc@1": MetricDifference(0.5, 0.625, 0.125, NAN, NAN, NAN, "unclear")},
    }
    flips = Flips("cmc@1", 3, 1, 3, [("sun", 2, 0), ("ace", 0, 1)])
    found = Comparison("runs/old", "runs/new\n", 7, 4, 0.95, 1000, differences, flips, ["only new has mrr"])
    assert str(found) == format_comparison(found) == TEXT.replace("1\nnote", "1\n\nnote")
    cut = format_comparison(dataclasses.replace(found, notes=[]), most=1)
    shorter = TEXT.replace("ace         0     1\nnote: only new has mrr", "and 1 more label, see --json")
    hidden = next(line for line in TEXT.splitlines() if line.startswith("b "))
    assert cut == shorter.replace(hidden, "and 1 more category, see --json")
    none = format_comparison(dataclasses.replace(found, flips=Flips("cmc@1", 0, 0, 7, []), notes=[]), most=0)
    assert none.splitlines()[-1] == "cmc@1 by query, from A to B: 0 gained, 0 lost, 7 unchanged"


NARROW = """\
A  runs/old
B  runs/new\\n
7 queries of 4 labels; intervals by 1000 draws of labels

 metric    B - A       95 % interval
OVERALL
 cmc@1   +0.2857  -0.5000 to +0.7500  unclear
 map@r   -0.1000                   -  unclear
a category of a lon…
 cmc@1         -                   -

 metric       A       B      p
OVERALL
 cmc@1   0.4286  0.7143  0.400
 map@r   0.4000  0.3000      -
a category of a lon…
 cmc@1        -       -      -

cmc@1 by query, from A to B: 3 gained, 1 lost, 3 unchanged
label                 gained  lost
sunsunsunsunsunsuns…       2     0"""


def test_the_text_on_a_narrow_terminal():
    differences = {
        "OVERALL": {
            "cmc@1": MetricDifference(3 / 7, 5 / 7, 2 / 7, -0.5, 0.75, 0.4, "unclear"),
            "map@r": MetricDifference(0.4, 0.3, -0.1, NAN, NAN, NAN, "unclear"),
        },
        "a category of a long name": {"cmc@1": MetricDifference(NAN, NAN, NAN, NAN, NAN, NAN, "unclear")},
    }
    flips = Flips("cmc@1", 3, 1, 3, [("sun" * 9, 2, 0)])
    found = Comparison("runs/old", "runs/new\n", 7, 4, 0.95, 1000, differences, flips)
    assert format_comparison(found, width=60) == NARROW
    assert format_comparison(found, width=200) == format_comparison(found) == str(found)
    assert "a category of a long name" in str(found)
