"""What a first hour meets: pages of tables, reports of parts of runs, galleries in another table."""

import numpy as np
import pytest

from tests.cli.conftest import FIGURES, unbroken


def test_inspect_dataset_writes_a_page_and_says_where(cli, tmp_path):
    done = cli("inspect-dataset", FIGURES, "--html", "page.html", "--json")
    assert (done.code, done.err) == (0, "report page.html\n")
    assert done.json["findings"] == []
    first = (tmp_path / "page.html").read_bytes()
    assert first.lower().startswith(b"<!doctype html>")
    (tmp_path / "page.html").write_text("<!DOCTYPE HTML>\n<p>an older page")
    assert cli("inspect-dataset", FIGURES, "--html", "page.html", "-q").code == 0
    assert b"an older page" not in (tmp_path / "page.html").read_bytes()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("figures/df.csv", "is no name of a page, which ends in .html; such as 'df.html'"),
        ("page", "is no name of a page, which ends in .html; such as 'page.html'"),
        (".", "is no name of a page, which ends in .html"),
        ("table.html", "is another file, not a page; give another --html"),
        ("link.html", "is another file, not a page; give another --html"),
        ("nowhere.html", "is another file, not a page; give another --html"),
        ("folder.html", "is a folder; give another --html"),
        ("no/page.html", ": the folder 'no' does not exist"),
    ],
)
def test_a_page_of_a_table_replaces_nothing_but_a_page(refused, figures, tmp_path, target, message):
    (tmp_path / "table.html").write_bytes((figures / "df.csv").read_bytes())
    (tmp_path / "link.html").symlink_to(figures / "df.csv")
    (tmp_path / "nowhere.html").symlink_to(tmp_path / "lost.csv")
    (tmp_path / "folder.html").mkdir()
    source = target if target == "table.html" else "figures/df.csv"
    done = refused("inspect-dataset", source, "--root", "figures", "--html", target)
    assert done.code == 2
    between = "" if message.startswith(":") else " "
    assert unbroken(done.err) == f"error: --html {target!r}{between}{message}\n"
    assert (tmp_path / "table.html").read_bytes() == (figures / "df.csv").read_bytes()


def test_a_page_is_refused_before_the_table_is_read(refused):
    assert "the folder 'no' does not exist" in refused("inspect-dataset", "no.csv", "--html", "no/p.html").err


def test_report_of_a_part_of_a_run_names_the_run(cli, trained):
    for part in (trained.run_dir / "checkpoints", trained.last_ckpt):
        done = cli("report", part)
        assert (done.code, done.out) == (3, "")
        assert unbroken(done.err).endswith(f"; did you mean {str(trained.run_dir)!r}?\n")


def test_queries_may_search_the_gallery_of_another_table(cli, tmp_path):
    """By hand: a and b lie at the ends of a line, and the third query of a lies beside b."""
    points = {"photos": [("a", 0.0), ("a", 0.1), ("a", 0.9)], "shop": [("a", 0.0), ("b", 1.0)]}
    for name, rows in points.items():
        flags = "1,0" if name == "photos" else "0,1"
        lines = [f"{label},{name}{n}.jpg,validation,{flags}" for n, (label, _) in enumerate(rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["label,path,split,is_query,is_gallery", *lines]))
        np.save(tmp_path / f"{name}.npy", np.array([[place] for _, place in rows]))
    words = ["validate", "--features", "photos.npy", "--data", "photos.csv", "validation.distance=euclidean"]
    words.append("validation.metrics={cmc: [1], precision: [], map: []}")
    elsewhere = ["validation.gallery_features=shop.npy", "validation.gallery_table=shop.csv"]
    done = cli(*words, *elsewhere, "--json")
    assert done.code == 0, done.err
    assert done.json["metrics"]["OVERALL"]["cmc@1"] == pytest.approx(2 / 3)
    assert (done.json["queries"], done.json["gallery"], done.json["warnings"]) == (3, 2, [])
    assert cli(*words).code == 3, "the table alone has no gallery"
    for name in ("photos0.jpg", "photos1.jpg", "photos2.jpg", "train.jpg"):
        (tmp_path / name).write_bytes((FIGURES.parent / "images/arc_plain_8.png").read_bytes())
    with (tmp_path / "photos.csv").open("a") as file:
        file.write("\nc,train.jpg,train,,\nd,train.jpg,train,,\n")
    (tmp_path / "v.yaml").write_text(
        "data: {table: photos.csv}\nextractor: {name: timm, model: test_resnet, pretrained: false}\n"
        "validation: {gallery_features: shop.npy, gallery_table: shop.csv}\n"
    )
    codes = {finding["code"] for finding in cli("inspect-dataset", "v.yaml", "--json").json["findings"]}
    assert "empty-gallery" not in codes
    there = {finding["code"] for finding in cli("inspect-dataset", "photos.csv", "--json").json["findings"]}
    assert there - codes == {"empty-gallery"}
