"""The findings of random tables are those of a checker that looks at one row after the other."""

import os
from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metricli.data.checks import check_table
from metricli.data.reading import BOX_COLUMNS
from metricli.data.table import Table

HEADER = ("label", "path", "split", "is_query", "is_gallery", "category", "sequence", "ignore", *BOX_COLUMNS)
LONG = "images/a_long_enough_folder/of_many_photographs_"
OF_THE_TABLE = {"no-train-rows", "no-validation-rows", "no-queries", "empty-gallery"}
OF_ONE_LABEL = {"one-train-label", "one-label-gallery"}
OF_LABELS = {"label-in-two-splits", "label-in-two-categories"}
FLAGS = {"": None, "True": True, "1": True, "false": False, "0": False}

box = st.sampled_from([("", "", "", ""), ("0", "0", "4", "4"), ("4", "0", "4", "4"), ("0", "", "4", "4")])
row = st.tuples(
    st.sampled_from(
        ["a", "b", "c", "", " a", "c\t", "a label longer than sixteen", "a label longer than sixteen!"]
    ),
    st.sampled_from(["1.jpg", "2.jpg", "", "../3.jpg", f"{LONG}1.jpg", f"{LONG}2.jpg", f"x/{LONG}1.jpg"])
    | st.integers(0, 10**6).map(lambda i: f"{LONG}{i:07d}.jpg"),
    st.sampled_from(["train", "train", "validation", "validation", "validatiom", ""]),
    st.sampled_from([*FLAGS, "yes"]),
    st.sampled_from([*FLAGS, "True "]),
    st.sampled_from(["", "food", "food ", "drink", "OVERALL", "a category of its own"]),
    st.sampled_from(["", "", "s", "t"]),
    st.sampled_from(["", "", "", "0", "1", "1", "no"]),
    box,
).map(lambda cells: dict(zip(HEADER, (*cells[:-1], *cells[-1]), strict=True)))


def cell_rules(row: dict[str, str]) -> list[str]:
    """Codes of what is wrong with a row whatever the others."""
    sides = [row[name] for name in BOX_COLUMNS]
    flags = [row["is_query"], row["is_gallery"]]
    known = [FLAGS.get(flag, "bad") for flag in flags]
    validation = judged(row)
    rules = {
        "empty-path": row["path"] == "",
        "empty-label": row["label"] == "",
        "bad-split": row["split"] not in ("train", "validation"),
        "flags-missing": validation and flags == ["", ""],
        "unused-row": validation and not {True, "bad"} & set(known) and flags != ["", ""],
        "flags-on-train": row["split"] == "train" and bool({True, False} & set(known)),
        "ignored-row": row["split"] == "validation" and row["ignore"] == "1",
        "reserved-category": row["category"] == "OVERALL",
        "partial-box": "" in sides and sides != [""] * 4,
        "bad-box": "" not in sides and sides != ["0", "0", "4", "4"],
        "path-outside-root": row["path"].split(os.sep)[0] == "..",
    }
    more = ["bad-flag"] * (known.count("bad") + (row["ignore"] == "no"))
    more += ["flags-on-train"] * (row["split"] == "train" and row["ignore"] == "1")
    return [code for code, wrong in rules.items() if wrong] + more


def judged(row: dict[str, str]) -> bool:
    """Whether evaluation looks at a row."""
    return row["split"] == "validation" and row["ignore"] != "1"


def drawn(row: dict[str, str]) -> list[str]:
    """The box of a row, if it is one."""
    sides = [row[name] for name in BOX_COLUMNS]
    return sides if sides == ["0", "0", "4", "4"] else []


def earlier_rules(row: dict[str, str], before: list[dict[str, str]]) -> list[str]:
    """Codes of what is wrong with a row after those before it."""
    same = [other for other in before if other["path"] == row["path"]]
    of_box = [other for other in same if drawn(other) == drawn(row)]
    named = [other for other in before if other["label"] == row["label"] and other["category"]]
    rules = {
        "duplicate-row": any(
            (other["label"], other["split"]) == (row["label"], row["split"]) for other in of_box
        ),
        "path-with-two-labels": bool(of_box) and of_box[0]["label"] != row["label"],
        "path-in-two-splits": bool(same) and same[0]["split"] != row["split"],
        "label-in-two-categories": row["category"] != ""
        and bool(named)
        and named[0]["category"] != row["category"],
    }
    return [code for code, wrong in rules.items() if wrong]


def table_rules(row: dict[str, str], rows: list[dict[str, str]]) -> list[str]:
    """Codes of what is wrong with a row among all."""
    own = [other for other in rows if other["label"] == row["label"]]
    splits = Counter(other["split"] for other in own)
    validation = row["split"] == "validation"
    gallery = [
        other
        for other in own
        if other is not row
        and judged(other)
        and FLAGS.get(other["is_gallery"]) is True
        and (row["sequence"] == "" or other["sequence"] != row["sequence"])
    ]
    offered = any(judged(r) and FLAGS.get(r["is_gallery"]) is True for r in rows)
    again = [
        other
        for other in rows
        if other is not row
        and judged(other)
        and (other["path"], other["split"]) == (row["path"], row["split"])
        and drawn(other) == drawn(row)
        and FLAGS.get(other["is_gallery"]) is True
        and not (FLAGS.get(other["is_query"]) is True and FLAGS.get(row["is_gallery"]) is True)
        and (row["sequence"] == "" or other["sequence"] != row["sequence"])
    ]
    asks = judged(row) and FLAGS.get(row["is_query"]) is True
    rules = {
        "single-instance-label": row["split"] == "train" and splits["train"] == 1,
        "label-in-two-splits": validation and splits["train"] > 0,
        "no-category": row["category"] == "" and any(other["category"] for other in rows),
        "query-without-match": asks and offered and not gallery,
        "query-finds-itself": asks and bool(again),
        "outer-space": row["label"].strip() != row["label"] or row["category"].strip() != row["category"],
    }
    return [code for code, wrong in rules.items() if wrong]


def one_label(rows: list[dict[str, str]]) -> set[str]:
    """Codes of a side of the table that has one label."""
    trained = {row["label"] for row in rows if row["split"] == "train"}
    asked, offered = (
        {row["label"] for row in rows if judged(row) and FLAGS.get(row[flag]) is True}
        for flag in ("is_query", "is_gallery")
    )
    rules = {
        "one-train-label": len(trained) == 1,
        "one-label-gallery": len(offered) == 1 and offered <= asked,
    }
    return {code for code, wrong in rules.items() if wrong}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(row, min_size=1, max_size=14))
def test_findings_are_those_of_a_loop_over_rows(
    table: Callable[..., Table], rows: list[dict[str, str]]
) -> None:
    expected: dict[str, list[int]] = {}
    for i, cells in enumerate(rows):
        found = [*cell_rules(cells), *earlier_rules(cells, rows[:i]), *table_rules(cells, rows)]
        for code in found:
            expected.setdefault(code, []).append(i + 1)
    lines = [",".join(cells.values()) for cells in rows]
    found: dict[str, tuple[int, list[int]]] = {}
    findings = check_table(table(*lines, header=",".join(HEADER)), files=False)
    assert OF_ONE_LABEL.intersection(finding.code for finding in findings) == one_label(rows)
    for finding in findings:
        if finding.code not in OF_THE_TABLE | OF_ONE_LABEL:
            count, places = found.get(finding.code, (0, []))  # each flag has a `bad-flag` of its own
            found[finding.code] = (count + finding.count, sorted(places + finding.rows)[:10])
    assert found == {code: (_count(code, places, rows), places[:10]) for code, places in expected.items()}


def _count(code: str, places: list[int], rows: list[dict[str, str]]) -> int:
    return len({rows[place - 1]["label"] for place in places}) if code in OF_LABELS else len(places)
