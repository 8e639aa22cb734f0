import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricli.data.checks import check_table, require_sound
from metricli.data.relations import unmatched
from metricli.data.strings import groups, hash_text
from metricli.data.table import folder_table
from metricli.errors import DataError
from metricli.reports import Finding
from tests.conftest import ROOT

CATEGORY = "label,path,split,is_query,is_gallery,category"
SEQUENCE = "label,path,split,is_query,is_gallery,sequence"
BOX = "label,path,split,is_query,is_gallery,x_1,x_2,y_1,y_2"
SOUND = ["a,1.jpg,train,,", "a,2.jpg,train,,", "v,3.jpg,validation,1,1", "v,4.jpg,validation,True,TRUE"]


def with_more(lines, more):
    return [line + more for line in lines]


def test_a_sound_table_has_no_findings(check):
    assert check(*SOUND) == {}
    assert check(*SOUND, need="evaluate") == {}
    assert check(*SOUND, need="predict") == {}


def expect(found, severity, count, rows, message):
    assert (found.severity, found.count, found.rows, found.message) == (severity, count, rows, message)


def test_bad_split(check):
    found = check(*SOUND, "a,5.jpg,tset,,", "a,6.jpg,Train,,", "a,7.jpg,tset,,", "a,8.jpg,,,")
    message = (
        "4 rows have a split that is neither 'train' nor 'validation': "
        "'tset' (row 5, 7), 'Train' (row 6), '' (row 8)"
        "; 'Train' may be meant as 'train'"
    )
    assert list(found) == ["bad-split"]
    expect(found["bad-split"], "error", 4, [5, 6, 7, 8], message)


def test_bad_split_without_a_guess(check):
    message = (
        "1 row has a split that is neither 'train' nor 'validation': 'test' (row 5)"
        "; rename them, or leave these rows out"
    )
    expect(check(*SOUND, "a,5.jpg,test,,")["bad-split"], "error", 1, [5], message)
    assert check(*SOUND, "a,5.jpg,test,,", need="evaluate") == {}


def test_val_is_validation(check):
    assert check(*SOUND, "a,5.jpg,val,,")["bad-split"].message.endswith(
        "; 'val' may be meant as 'validation'"
    )


def test_a_row_without_a_split_cannot_be_evaluated(check):
    message = "1 row has no split (row 5): fill in or remove"
    expect(check(*SOUND, "a,5.jpg,,,", need="evaluate")["bad-split"], "error", 1, [5], message)


def test_a_split_that_is_not_there(check):
    found = check(*SOUND, need="evaluate", split="test")
    message = "no row has the split 'test'; found 'train', 'validation'"
    assert list(found) == ["no-such-split"]
    expect(found["no-such-split"], "error", 1, [], message)


def test_no_train_rows(check):
    found = check(*SOUND[2:])
    assert list(found) == ["no-train-rows"]
    expect(found["no-train-rows"], "error", 1, [], "no row has the split 'train': nothing to train on")


def test_no_validation_rows(check):
    found = check(*SOUND[:2])
    assert list(found) == ["no-validation-rows"]
    message = "no row has the split 'validation': the last epoch will be taken as the best, unjudged"
    expect(found["no-validation-rows"], "warning", 1, [], message)


def test_empty_cells(check):
    found = check(*SOUND, "a,,train,,", "a,,train,,", ",5.jpg,train,,", ",6.jpg,train,,")
    expect(found["empty-path"], "error", 2, [5, 6], "2 rows have no path (row 5, 6): fill in or remove")
    expect(found["empty-label"], "error", 2, [7, 8], "2 rows have no label (row 7, 8): fill in or remove")
    assert set(found) == {"empty-path", "empty-label", "duplicate-row"}


@pytest.mark.parametrize("word", ["true", "TRUE", "True", "1", "1.0", "false", "FALSE", "False", "0", "0.0"])
def test_good_flags(check, table, word):
    line = f"v,5.jpg,validation,{word},1"
    assert check(*SOUND, line) == {}
    assert table(*SOUND, line).split("all").is_query[4] == (word.lower() in ("true", "1", "1.0"))


@pytest.mark.parametrize("word", ["yes", "2", "1.5", "1.00", "tRue", " true", "trueish", "t", "None"])
def test_bad_flags(check, word):
    found = check(*SOUND, f"v,5.jpg,validation,{word},1", "v,6.jpg,validation,1,0")
    assert list(found) == ["bad-flag"]
    message = (
        f"1 row has an is_query that is neither true nor false: {word!r} (row 5); "
        "write true, false, 1, 0 or nothing"
    )
    expect(found["bad-flag"], "error", 1, [5], message)


def test_flags_missing(check):
    found = check(*SOUND, "v,5.jpg,validation,,", "v,6.jpg,validation,,1")
    message = (
        "1 validation row has neither is_query nor is_gallery (row 5): set both true for one-versus-rest"
    )
    assert list(found) == ["flags-missing"]
    expect(found["flags-missing"], "error", 1, [5], message)


def test_an_unused_row(check):
    found = check(*SOUND, "v,5.jpg,validation,0,0", "v,6.jpg,validation,,false")
    message = "2 validation rows are neither query nor gallery (row 5, 6): nothing will be asked of them"
    assert list(found) == ["unused-row"]
    expect(found["unused-row"], "warning", 2, [5, 6], message)


def test_flags_on_train_rows(check):
    found = check(*SOUND, "a,5.jpg,train,0,", "a,6.jpg,train,,1")
    assert list(found) == ["flags-on-train"]
    message = "2 train rows have is_query or is_gallery set (row 5, 6): they are not used there"
    expect(found["flags-on-train"], "warning", 2, [5, 6], message)


def test_ignored_rows(check, table):
    header = "label,path,split,is_query,is_gallery,ignore"
    lines = [*with_more(SOUND, ","), "v,5.jpg,validation,1,1,true", "w,6.jpg,validation,,,1"]
    found = check(*lines, "a,7.jpg,train,,,1", header=header)
    assert set(found) == {"ignored-row", "flags-on-train"}
    message = "2 validation rows are ignored (row 5, 6): neither asked for nor found"
    expect(found["ignored-row"], "warning", 2, [5, 6], message)
    message = (
        "1 train row has ignore set (row 7): it concerns evaluation alone, and they are trained on; "
        "take them out if they are bad"
    )
    expect(found["flags-on-train"], "warning", 1, [7], message)
    rows = table(*lines, header=header).split("validation")
    assert rows.ignored.tolist() == [False, False, True, True]
    assert rows.is_query.tolist()[2:] == rows.is_gallery.tolist()[2:] == [False, False]


def test_a_table_without_flag_columns_misses_them(check):
    found = check("a,1.jpg,train", "a,2.jpg,train", "v,3.jpg,validation", header="label,path,split")
    assert [(f.code, f.severity, f.rows) for f in found.values()] == [
        ("empty-gallery", "error", []),
        ("flags-missing", "error", [3]),
        ("no-queries", "error", []),
    ]
    assert found["empty-gallery"].message == (
        "no row of validation is in the gallery: there would be no metrics; set is_gallery"
    )
    assert (
        found["no-queries"].message
        == "no row of validation is a query: there would be no metrics; set is_query"
    )


@pytest.mark.parametrize("need", ["train", "evaluate"])
@pytest.mark.parametrize(("flags", "code"), [("0,1", "no-queries"), ("1,0", "empty-gallery")])
def test_rows_to_judge_without_queries_or_gallery_are_refused(check, need, flags, code):
    lines = [*SOUND[:2], f"v,3.jpg,validation,{flags}", f"v,4.jpg,validation,{flags}"]
    assert check(*lines, need=need)[code].severity == "error"
    assert check(*lines, need="predict") == {}


def test_query_without_a_match(check):
    found = check(*SOUND, "w,5.jpg,validation,1,1", "x,6.jpg,validation,1,0", "y,7.jpg,validation,0,1")
    message = (
        "2 queries have no match in the gallery (row 5, 6), see validation.unmatched: "
        "put another image of the label there"
    )
    assert list(found) == ["query-without-match"]
    expect(found["query-without-match"], "warning", 2, [5, 6], message)


def test_query_whose_only_matches_are_of_its_sequence(check):
    lines = [
        "w,5.jpg,validation,1,0,s",
        "w,6.jpg,validation,0,1,s",
        "x,7.jpg,validation,1,0,s",
        "x,8.jpg,validation,0,1,",
    ]
    found = check(*with_more(SOUND, ","), *lines, header=SEQUENCE)
    message = (
        "1 query has no match in the gallery (row 5), see validation.unmatched: "
        "put another image of the label from another sequence there"
    )
    assert list(found) == ["query-without-match"]
    expect(found["query-without-match"], "warning", 1, [5], message)


def test_the_gallery_of_another_split_does_not_count(check):
    lines = [*SOUND, "w,5.jpg,validation,1,0", "w,6.jpg,test,0,1"]
    assert check(*lines, need="evaluate")["query-without-match"].rows == [5]
    assert check(*lines, need="evaluate", split="all").keys() == {"flags-missing"}


row = st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans(), st.sampled_from(["", "", "s", "t"]))


@given(st.lists(row, min_size=1, max_size=12), st.booleans())
def test_unmatched_is_the_naive_double_loop(rows, with_sequences):
    labels, queries, gallery, sequences = (list(column) for column in zip(*rows, strict=True))
    naive = []
    for i in range(len(rows)):
        relevant = 0
        for j in range(len(rows)):
            same_sequence = with_sequences and sequences[i] != "" and sequences[i] == sequences[j]
            if gallery[j] and labels[i] == labels[j] and i != j and not same_sequence:
                relevant += 1
        if queries[i] and not relevant:
            naive.append(i)
    hashes = hash_text(pa.chunked_array([sequences])) if with_sequences else None
    numbers = groups(hash_text(pa.chunked_array([labels])))
    assert unmatched(*numbers, np.flatnonzero(queries), np.array(gallery), hashes).tolist() == naive


def test_a_query_that_finds_its_own_image(check):
    lines = [*SOUND, "v,5.jpg,validation,1,0", "v,5.jpg,validation,0,1", "v,5.jpg,train,,"]
    found = check(*lines)["query-finds-itself"]
    message = "1 query finds its own image in the gallery (row 5): use one row with both flags true"
    expect(found, "warning", 1, [5], message)
    both = [*SOUND, "v,5.jpg,validation,1,1", "v,5.jpg,validation,1,1"]
    assert list(check(*both)) == ["duplicate-row"]


def test_the_box_and_the_sequence_tell_a_query_from_its_image(check):
    lines = ["v,5.jpg,validation,1,0,", "v,5.jpg,validation,0,1,"]
    sound = with_more(SOUND, ",")
    assert "query-finds-itself" in check(*sound, *lines, header=SEQUENCE)
    assert "query-finds-itself" not in check(*sound, *with_more(lines, "s"), header=SEQUENCE)
    boxes = [f"{line}{box}" for line, box in zip(lines, ("0,4,0,4", "0,5,0,4"), strict=True)]
    assert "query-finds-itself" not in check(*with_more(SOUND, ",,,,"), *boxes, header=BOX)


def test_outer_spaces(check):
    lines = [*with_more(SOUND, ",food"), "a ,5.jpg,train,,, food", "a,6.jpg,train,,,\tfood"]
    message = (
        "2 rows have a label or category with outer spaces: label 'a ' (row 5); "
        "category ' food' (row 5), '\\tfood' (row 6); with and without them are two names: remove them"
    )
    expect(check(*lines, header=CATEGORY)["outer-space"], "warning", 2, [5, 6], message)
    assert check(*lines, header=CATEGORY, need="predict") == {}


def test_labels_in_two_splits(check):
    found = check(*SOUND, "a,5.jpg,validation,1,1", "a,6.jpg,validation,1,1")
    message = (
        "1 label is in both train and validation: 'a' (row 5, 6); "
        "a closed-set protocol, which does not judge unseen labels"
    )
    assert list(found) == ["label-in-two-splits"]
    expect(found["label-in-two-splits"], "warning", 1, [5, 6], message)


def test_labels_with_one_instance(check):
    found = check(*SOUND, "c,5.jpg,train,,", "b,6.jpg,train,,")
    message = "2 train labels have one image and can form no positive pair: 'c' (row 5), 'b' (row 6)"
    assert list(found) == ["single-instance-label"]
    expect(found["single-instance-label"], "warning", 2, [5, 6], message)


def test_labels_in_two_categories(check):
    lines = [
        *with_more(SOUND, ",food"),
        "a,5.jpg,train,,,drink",
        "a,6.jpg,train,,,food",
        "a,7.jpg,train,,,toys",
    ]
    found = check(*lines, header=CATEGORY)
    message = (
        "1 label is in more than one category: 'a' (row 5, 7); "
        "give every row of a label the category of its first row"
    )
    assert list(found) == ["label-in-two-categories"]
    expect(found["label-in-two-categories"], "warning", 1, [5, 7], message)


def test_missing_and_reserved_categories(check):
    lines = [
        *with_more(SOUND, ",food"),
        "a,5.jpg,train,,,",
        "b,6.jpg,train,,,OVERALL",
        "b,7.jpg,train,,,OVERALL",
    ]
    found = check(*lines, header=CATEGORY)
    assert list(found) == ["reserved-category", "no-category"]
    expect(found["no-category"], "warning", 1, [5], "1 row has no category (row 5), others have")
    message = "2 rows have the category 'OVERALL', which is the name of the whole (row 6, 7): rename it"
    expect(found["reserved-category"], "error", 2, [6, 7], message)


def test_a_category_column_without_values_is_no_finding(check):
    assert check(*with_more(SOUND, ","), header=CATEGORY) == {}


def test_boxes(check):
    cells = [
        "1,,2,3",
        ",,,3",
        "5,5,0,9",
        "-1,4,0,9",
        "0,1.5,0,9",
        "0,x,0,9",
        "0,4,9,2",
        "0,4,2,9.0",
        "0,9999999999,0,1",
    ]
    lines = [*with_more(SOUND, ",,,,"), *(f"a,b{i}.jpg,train,,,{cell}" for i, cell in enumerate(cells))]
    found = check(*lines, header=BOX)
    assert list(found) == ["bad-box", "partial-box"]
    message = "2 rows have a part of a box (row 5, 6): give x_1, x_2, y_1 and y_2, or none of them"
    expect(found["partial-box"], "error", 2, [5, 6], message)
    message = (
        "6 rows have a box that is none: "
        "'5, 0, 5, 9' (row 7), '-1, 0, 4, 9' (row 8), '0, 0, 1.5, 9' (row 9), "
        "'0, 0, x, 9' (row 10), '0, 9, 4, 2' (row 11), '0, 0, 9999999999, 1' (row 13); "
        "expected whole pixels x_1, y_1, x_2, y_2 with 0 <= x_1 < x_2 and 0 <= y_1 < y_2"
    )
    expect(found["bad-box"], "error", 6, [7, 8, 9, 10, 11, 13], message)


def test_a_missing_box_column_leaves_boxes_partial(check):
    found = check(*with_more(SOUND, ",1,2,3"), header=BOX.removesuffix(",y_2"))
    assert found["partial-box"].rows == [1, 2, 3, 4]


def test_repeated_paths(check):
    lines = ["a,1.jpg,train,,", "b,2.jpg,train,,", "b,5.jpg,train,,", "v,1.jpg,validation,1,1"]
    found = check(*SOUND, *lines)
    assert list(found) == ["duplicate-row", "path-in-two-splits", "path-with-two-labels"]
    expect(found["duplicate-row"], "warning", 1, [5], "1 row repeats an earlier row (row 5): remove")
    message = "1 row gives the image of an earlier row another split: '1.jpg' (row 8)"
    expect(found["path-in-two-splits"], "warning", 1, [8], message)
    message = "2 rows give the image of an earlier row another label: '2.jpg' (row 6), '1.jpg' (row 8)"
    expect(found["path-with-two-labels"], "warning", 2, [6, 8], message)


def test_objects_of_one_image_are_no_duplicates(check):
    lines = [
        *with_more(SOUND, ",,,,"),
        "a,5.jpg,train,,,0,4,0,4",
        "b,5.jpg,train,,,4,8,0,4",
        "b,5.jpg,train,,,4,8,4,8",
    ]
    assert check(*lines, header=BOX) == {}


def test_unknown_columns(check):
    found = check(*with_more(SOUND, ",x,y"), header="label,path,split,is_query,is_gallery,brand,categroy")
    assert list(found) == ["unknown-column"]
    message = "2 columns are not used: 'brand', 'categroy' (did you mean 'category'?)"
    expect(found["unknown-column"], "warning", 2, [], message)


def test_paths_outside_the_root(check):
    lines = [
        "a,../5.jpg,train,,",
        "a,/etc/6.jpg,train,,",
        "a,b/../7.jpg,train,,",
        "a,b..c.jpg,train,,",
        "a,b/../../8.jpg,train,,",
    ]
    found = check(*SOUND, *lines)
    assert list(found) == ["path-outside-root"]
    finding = found["path-outside-root"]
    assert (finding.severity, finding.count, finding.rows) == ("error", 3, [5, 6, 9])
    assert finding.message.startswith("3 paths leave the root '/")
    assert finding.message.endswith(
        "': '../5.jpg' (row 5), '/etc/6.jpg' (row 6), 'b/../../8.jpg' (row 9); "
        "name a root that holds all images"
    )
    assert check(*SOUND, *lines, allow_outside_root=True) == {}


def test_an_absolute_path_below_the_root_is_inside(check, tmp_path):
    assert check(*SOUND, f"a,{tmp_path}/5.jpg,train,,") == {}


def test_only_ten_rows_are_shown_and_all_are_counted(check):
    found = check(*SOUND, *(f"a,{i}.png,dev,," for i in range(12)))["bad-split"]
    assert found.count == 12
    assert found.rows == list(range(5, 15))
    assert found.message == (
        "12 rows have a split that is neither 'train' nor 'validation': "
        "'dev' (row 5, 6, 7, 8, 9, 10, 11, 12, 13, 14) and 2 more rows; 'dev' may be meant as 'validation'"
    )


def test_control_characters_are_shown_by_repr(check):
    found = check(*SOUND, '"b\nc\x1b[31m",5.jpg,train,,')["single-instance-label"]
    assert (
        found.message == r"1 train label has one image and can form no positive pair: 'b\nc\x1b[31m' (row 5)"
    )


def test_predicting_asks_only_for_paths(tmp_path):
    (tmp_path / "1.jpg").touch()
    made, _ = folder_table(tmp_path)
    assert check_table(made, need="predict") == []


def test_errors_come_first(check):
    found = check(*SOUND, "b,5.jpg,train,,", "a,6.jpg,tset,,", "v,7.jpg,validation,x,1", "b2,8.jpg,train,1,")
    assert [(f.severity, f.code) for f in found.values()] == [
        ("error", "bad-flag"),
        ("error", "bad-split"),
        ("warning", "flags-on-train"),
        ("warning", "single-instance-label"),
    ]


def test_require_sound():
    warning = Finding("w", "warning", 1, [1], "a warning")
    first, second = Finding("e", "error", 1, [1], "one is bad"), Finding("f", "error", 2, [2], "two are bad")
    assert require_sound([warning], "t.csv") == [warning]
    with pytest.raises(DataError) as caught:
        require_sound([first, warning], "t.csv")
    assert str(caught.value) == "t.csv: one is bad; run `metricli inspect-dataset t.csv` for all rows"
    with pytest.raises(DataError) as caught:
        require_sound([first, second, warning], "t.csv")
    assert caught.value.message == "2 errors in t.csv\n  one is bad\n  two are bad"
    assert caught.value.hint == "run `metricli inspect-dataset t.csv` for all rows"


def test_train_rows_of_one_label_are_refused(check):
    found = check(*SOUND, one_label=True)["one-train-label"]
    expect(found, "error", 1, [], "all train rows have one label, 'a': training needs two")
    assert "one-train-label" not in check(*SOUND, "b,5.jpg,train,,", one_label=True)
    assert "one-train-label" not in check(*SOUND[2:], one_label=True)
    assert "one-train-label" not in check(*SOUND, need="evaluate", one_label=True)


@pytest.mark.parametrize("need", ["train", "evaluate"])
def test_a_gallery_of_one_label_is_doubtful(check, need):
    found = check(*SOUND, "w,5.jpg,validation,1,0", need=need, one_label=True)["one-label-gallery"]
    message = (
        "the whole gallery of validation has one label, 'v', so that no ranking can be wrong: "
        "put images of other labels there"
    )
    expect(found, "warning", 1, [], message)
    wrong = "w,5.jpg,validation,0,1"
    assert "one-label-gallery" not in check(*SOUND, wrong, need=need, one_label=True)
    unasked = "w,3.jpg,validation,0,1", "v,4.jpg,validation,1,0"  # no query finds a match: said otherwise
    assert "one-label-gallery" not in check(*SOUND[:2], *unasked, need=need, one_label=True)


@pytest.mark.parametrize("need", ["train", "evaluate"])
def test_queries_of_a_gallery_elsewhere_need_none_of_their_own(check, need):
    queries = [*SOUND[:2], "v,3.jpg,validation,1,0", "w,4.jpg,validation,1,0"]
    assert check(*queries, need=need, own_gallery=False) == {}
    assert list(check(*queries, need=need)) == ["empty-gallery"]
    assert list(check(*SOUND[:2], "v,3.jpg,validation,0,1", own_gallery=False)) == ["no-queries"]
    assert check(*SOUND, "w,5.jpg,validation,1,0", need=need, own_gallery=False, one_label=True).keys() <= {
        "one-train-label"
    }


def test_the_smallest_table_of_the_docs_has_no_finding(check):
    page = (ROOT / "docs/table.md").read_text()
    header, *lines = page.partition("```csv\n")[2].partition("```")[0].splitlines()
    assert len(lines) == 8
    assert check(*lines, header=header, one_label=True) == {}
    assert "one-label-gallery" in check(*lines[:-2], header=header, one_label=True)
