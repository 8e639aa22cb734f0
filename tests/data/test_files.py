import pytest

from metricli.data import files
from metricli.data.checks import check_table
from metricli.data.table import read_table


@pytest.fixture(params=[1, 1000], ids=["listing", "asking"])
def root(tmp_path, image, monkeypatch, request):
    """A root with 1.png and sub/2.png, and an image beside the root; folders listed or files asked for."""
    monkeypatch.setattr(files, "_LISTING_PAYS", request.param)
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
