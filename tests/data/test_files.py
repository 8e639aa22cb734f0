import os

import pytest

from metricli.data import files, strings
from metricli.data.checks import check_table
from metricli.data.table import folder_table, read_table

WAYS = {"listing": {"_LISTING_PAYS": 1}, "asking": {}, "forgetting": {"_LISTING_PAYS": 1, "_FOLDERS": 1}}
WAYS["full"] = {"_LISTING_PAYS": 1, "_KEPT": 1}


@pytest.fixture(params=WAYS)
def root(tmp_path, image, monkeypatch, request):
    """A root with 1.png and sub/2.png, and an image beside the root; files looked for in each way."""
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(files, name, value)
    image(tmp_path / "root" / "1.png")
    image(tmp_path / "root" / "sub" / "2.png")
    image(tmp_path / "beside" / "3.png")
    return tmp_path / "root"


def findings(root, *paths, **options):
    file = root.parent / "t.csv"
    file.write_text("path\n" + "\n".join(paths) + "\n")
    table = read_table(file, root=root, need="predict")
    return {f.code: f for f in check_table(table, need="predict", **options)}


def test_files_that_are_there(root):
    assert findings(root, "1.png", "sub/2.png", "sub/../1.png", f"{root}/sub/2.png") == {}


def test_missing_files(root):
    found = findings(root, "1.png", "2.png", "none/3.png", "sub")
    assert list(found) == ["missing-file"]
    finding = found["missing-file"]
    assert (finding.severity, finding.count, finding.rows) == ("error", 3, [2, 3, 4])
    assert finding.message == (
        f"3 rows name a file that does not exist below {str(root)!r}: "
        "'2.png' (row 2), 'none/3.png' (row 3), 'sub' (row 4); check the paths and the root"
    )
    assert findings(root, "2.png", files=False) == {}


def test_links_out_of_the_root(root):
    (root / "inside.png").symlink_to(root / "1.png")
    (root / "file.png").symlink_to(root.parent / "beside" / "3.png")
    (root / "folder").symlink_to(root.parent / "beside")
    paths = ["inside.png", "file.png", "folder/3.png"]
    found = findings(root, *paths)
    assert list(found) == ["path-outside-root"]
    finding = found["path-outside-root"]
    assert (finding.severity, finding.count, finding.rows) == ("error", 2, [2, 3])
    assert finding.message == (
        f"2 paths lead by a link out of the root {str(root)!r}: "
        "'file.png' (row 2), 'folder/3.png' (row 3); name a root that holds all images"
    )
    assert findings(root, *paths, allow_outside_root=True) == {}


def test_a_root_that_is_a_link_itself(root):
    link = root.parent / "link"
    link.symlink_to(root)
    assert findings(link, "1.png", "sub/2.png") == {}


def test_a_path_outside_by_its_words_is_said_once_and_still_looked_for(root):
    found = findings(root, "../beside/3.png", "../beside/4.png")
    assert [(f.code, f.rows) for f in found.values()] == [
        ("missing-file", [2]),
        ("path-outside-root", [1, 2]),
    ]
    assert findings(root, "../beside/3.png", allow_outside_root=True) == {}


@pytest.fixture
def pieces(monkeypatch):
    """Pieces of two rows."""
    monkeypatch.setattr(strings, "_PIECE", 2)


def test_files_are_looked_for_piece_by_piece(root, pieces):
    (root / "file.png").symlink_to(root.parent / "beside" / "3.png")
    names = ["1.png", "sub/2.png", "2.png", "file.png", "sub/3.png", "1.png", "../x/y.png", "none/1.png"]
    done = []
    found = findings(root, *names, on_progress=done.append)
    assert {code: (f.count, f.rows) for code, f in found.items() if f.code == "missing-file"} == {
        "missing-file": (4, [3, 5, 7, 8])
    }
    assert done == [2, 2, 2, 2]
    assert findings(root, "1.png", "sub/2.png", "file.png")["path-outside-root"].rows == [3]


def test_findings_of_many_pieces_are_counted_and_the_first_named(root, pieces):
    found = findings(root, *[f"{i}.png" for i in range(100, 130)])["missing-file"]
    assert (found.count, found.rows) == (30, list(range(1, 11)))
    assert found.message.endswith("'109.png' (row 10) and 20 more rows; check the paths and the root")
    outside = findings(root, *[f"../{i}.png" for i in range(30)], files=False)["path-outside-root"]
    assert (outside.count, outside.rows) == (30, list(range(1, 11)))
    again = findings(root, *["1.png"] * 30)["duplicate-row"]
    assert (again.count, again.rows) == (29, list(range(2, 12)))


def test_a_folder_is_listed_once_and_no_more_is_kept_than_allowed(root, pieces, monkeypatch):
    listed = []
    plain_files = files._plain_files
    monkeypatch.setattr(files, "_plain_files", lambda folder: listed.append(folder) or plain_files(folder))
    monkeypatch.setattr(files, "_LISTING_PAYS", 2)
    monkeypatch.setattr(files, "_KEPT", 1 << 18)
    monkeypatch.setattr(files, "_FOLDERS", 1 << 17)
    assert list(findings(root, *["1.png", "sub/2.png"] * 8)) == ["duplicate-row"]
    assert [os.path.basename(folder) for folder in listed] == ["root", "sub"]


def test_the_files_of_a_listed_folder_are_not_looked_for_again(root, monkeypatch):
    made, _ = folder_table(root)
    asked = []
    monkeypatch.setattr(files.os, "lstat", lambda file: asked.append(file))
    monkeypatch.setattr(files, "_plain_files", lambda folder: asked.append(folder))
    assert check_table(made, need="predict") == []
    assert asked == []


def test_links_in_a_folder_are_followed(root):
    (root / "file.png").symlink_to(root.parent / "beside" / "3.png")
    (root / "lost.png").symlink_to(root / "none.png")
    made, _ = folder_table(root)
    assert made.text["path"].to_pylist() == ["1.png", "file.png", "lost.png", "sub/2.png"]
    found = check_table(made, need="predict")
    assert [(f.code, f.rows) for f in found] == [("missing-file", [3]), ("path-outside-root", [2])]
