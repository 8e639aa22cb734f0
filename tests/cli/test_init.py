"""`init`: a first spec for a table, and for a folder of images a table before it."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from metricli.data.table import read_table
from metricli.specs.load import check_spec, load_spec
from metricli.specs.train import TrainSpec
from tests.cli.conftest import error_of, unbroken


def draw(folder: Path, *paths: str, size: tuple[int, int] = (48, 40)) -> None:
    """A small image at each of some relative paths."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (sum(path.encode()) % 256, 40, 90)).save(folder / path)


def products(folder: Path, labels: str = "abcdef", images: int = 3) -> Path:
    """`products/LABEL/N.png`."""
    draw(folder, *(f"products/{label}/{n}.png" for label in labels for n in range(images)))
    return folder / "products"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def sides(path: Path) -> dict[str, set[str]]:
    """Split -> labels."""
    found: dict[str, set[str]] = {}
    for row in rows_of(path):
        found.setdefault(row["split"], set()).add(row["label"])
    return found


@pytest.fixture
def sound(cli):
    """Nothing that `inspect-dataset` calls an error is in a table."""

    def check(*words: str) -> dict:
        done = cli("inspect-dataset", *words, "--json")
        assert done.code == 0, done.json["findings"]
        return done.json

    return check


def test_a_folder_becomes_a_table_with_an_open_set_split_and_a_spec(cli, sound, tmp_path):
    products(tmp_path)
    done = cli("init", "products", "--out", "spec.yaml")
    assert (done.code, done.out) == (0, "wrote spec.yaml; next: metricli train spec.yaml --dry-run\n")
    assert done.err == (
        "open-set split by labels, share 0.5, seed 0: "
        "train 3 labels, 9 images; validation 3 labels, 9 images\n"
        "wrote products.csv (18 rows)\n"
    )
    splits = sides(tmp_path / "products.csv")
    assert splits["train"] | splits["validation"] == set("abcdef")
    assert not splits["train"] & splits["validation"]
    for row in rows_of(tmp_path / "products.csv"):
        flags = "true" if row["split"] == "validation" else ""
        assert (row["is_query"], row["is_gallery"]) == (flags, flags)
        assert row["path"].startswith(f"products/{row['label']}/")
    assert sound("products.csv")["findings"] == []
    loaded = load_spec(tmp_path / "spec.yaml", TrainSpec)
    assert check_spec(loaded, read_table(tmp_path / "products.csv").facts()) == []
    assert loaded.spec.name == "products"
    said = "  # 9 queries, each searches all others; the median one has 2 to find\n"
    assert said in (tmp_path / "spec.yaml").read_text()


def test_the_spec_for_a_folder_trains_and_is_printed_without_out(cli, tmp_path):
    products(tmp_path)
    done = cli("init", "products")
    assert done.code == 0
    (tmp_path / "spec.yaml").write_text(done.out)
    model = ["extractor.model=test_resnet", "extractor.pretrained=false"]
    tried = cli("train", "spec.yaml", *model, "--dry-run", "--json")
    assert tried.code == 0, tried.err
    assert tried.json["train_batch"]["images"] == 9


def test_share_and_seed_decide_the_split(cli, tmp_path):
    products(tmp_path, "abcdefghij", 2)
    draw(tmp_path, "products/lone/1.png", "products/alone/1.png")

    def split(*words: str) -> set[str]:
        assert cli("init", "products", "--table", "t.csv", *words).code == 0
        judged = sides(tmp_path / "t.csv").get("validation", set())
        (tmp_path / "t.csv").unlink()
        return judged

    first = split()
    assert split("--seed", "0", "--validation-share", "0.5") == first
    assert len(first) == 6
    assert len(first & {"lone", "alone"}) == 1
    assert len({frozenset(split("--seed", str(seed))) for seed in range(6)}) > 3
    assert [len(split("--validation-share", share)) for share in ("0", "0.01", "0.3", "1")] == [0, 2, 4, 10]
    products(tmp_path, "k", 2)
    assert len(split() ^ first) <= 2, "one label more moves few others"


def test_a_label_of_one_image_is_found_and_does_not_ask(cli, sound, tmp_path):
    products(tmp_path, "abcdef", 2)
    draw(tmp_path, "products/lone/1.png", "products/alone/1.png")
    done = cli("init", "products", "--out", "spec.yaml")
    assert "warning: 1 train label has one image, which forms no positive pair\n" in done.err
    what = "1 validation label has one image, which has no match: it may be found, and does not ask"
    assert f"warning: {what}\n" in done.err
    single = [row for row in rows_of(tmp_path / "products.csv") if "lone" in row["label"]]
    judged = [row for row in single if row["split"] == "validation"]
    assert [(row["is_query"], row["is_gallery"]) for row in judged] == [("false", "true")]
    assert {finding["code"] for finding in sound("products.csv")["findings"]} == {"single-instance-label"}


HOSTILE = [
    "a,b",
    'quo"te',
    "new\nline",
    "carriage\rreturn",
    "both\r\n",
    "=1+1",
    "@cmd",
    "+x",
    " lead",
    "trail ",
    "\ttab",
    "#hash",
    "- item",
    "key: value",
    "'single'",
    "007",
    "NA",
    "OVERALL",
    "ünï",
    "\u2028line",
    "%s{0}",
    "\ufeffbom",
]


def test_hostile_names_survive(cli, sound, tmp_path):
    draw(tmp_path, *(f"=pro,\n'd/{label}/im{n},\n.png" for label in HOSTILE for n in range(2)))
    done = cli("init", "=pro,\n'd", "--table", "t.csv", "--out", "s: \n#.yaml")
    assert done.code == 0, done.err
    rows = rows_of(tmp_path / "t.csv")
    assert sorted({row["label"] for row in rows}) == sorted(HOSTILE)
    assert sorted(read_table(tmp_path / "t.csv").strings("label")) == sorted(HOSTILE * 2)
    assert all((tmp_path / row["path"]).is_file() for row in rows)
    assert {finding["code"] for finding in sound("t.csv")["findings"]} <= {"outer-space"}
    assert load_spec(tmp_path / "s: \n#.yaml", TrainSpec).spec.data.table == str(tmp_path / "t.csv")


def test_the_table_may_lie_elsewhere(cli, sound, tmp_path):
    products(tmp_path)
    (tmp_path / "tables").mkdir()
    done = cli("init", "products", "--table", "tables/x.csv", "--out", "tables/spec.yaml")
    assert done.code == 0
    assert rows_of(tmp_path / "tables/x.csv")[0]["path"].count("/") == 1
    text = (tmp_path / "tables/spec.yaml").read_text()
    assert "\n  table: x.csv" in text
    assert "\n  root: ../products " in text
    assert "#   metricli schema train > tables/train.schema.json\n" in text
    assert "#   metricli train tables/spec.yaml --dry-run\n" in text
    assert sound("tables/spec.yaml")["findings"] == []


@pytest.mark.parametrize("source", ["products", "products/", "./products", ".", "../products", "link"])
def test_the_folder_is_found_however_it_is_named(cli, sound, tmp_path, monkeypatch, source):
    folder = products(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    if source.startswith(".") and source != "./products":
        monkeypatch.chdir(folder)
    done = cli("init", source, "--out", "spec.yaml")
    assert done.code == 0, done.err
    table = tmp_path / ("link.csv" if source == "link" else "products.csv")
    assert sound("spec.yaml")["findings"] == []
    assert sound(str(table))["findings"] == []


SPLIT = [
    f"{side}/{label}/{n}.png"
    for side, labels in {"train": "abc", "val": "def"}.items()
    for label in labels
    for n in "12"
]


def test_folders_of_splits_are_kept(cli, sound, tmp_path):
    draw(tmp_path / "set", *SPLIT, "val/lone/1.png")
    done = cli("init", "set", "--out", "spec.yaml")
    what = "train 3 labels, 6 images; validation 4 labels, 7 images; no label in both: an open set"
    assert f"splits are as the folders say: {what}\n" in done.err
    assert sides(tmp_path / "set.csv") == {"train": set("abc"), "validation": {*"def", "lone"}}
    flags = {row["label"]: (row["is_query"], row["is_gallery"]) for row in rows_of(tmp_path / "set.csv")}
    assert (flags["a"], flags["d"], flags["lone"]) == (("", ""), ("true", "true"), ("false", "true"))
    assert sound("set.csv")["findings"] == []


def test_a_test_folder_is_judged_where_there_is_no_other(cli, sound, tmp_path):
    draw(tmp_path / "set", *(path.replace("val/", "Test/").replace("/d/", "/a/") for path in SPLIT))
    done = cli("init", "set", "--out", "spec.yaml")
    assert "the folder test is used as validation, as there is no other\n" in done.err
    assert "; 1 of them in both: a closed set\n" in done.err
    assert sides(tmp_path / "set.csv") == {"train": set("abc"), "validation": set("aef")}
    assert [finding["code"] for finding in sound("set.csv")["findings"]] == ["label-in-two-splits"]
    assert "  # 1 labels are trained on too" in (tmp_path / "spec.yaml").read_text()


def test_a_test_folder_beside_validation_has_a_table_of_its_own(cli, sound, tmp_path, trained):
    draw(tmp_path / "set", *SPLIT, *(f"test/{label}/{n}.png" for label in "xy" for n in "12"))
    done = cli("init", "set", "--out", "spec.yaml")
    assert "test: 4 images of 2 labels, in a table of their own, to be judged at the end\n" in done.err
    assert sides(tmp_path / "set.csv") == {"train": set("abc"), "validation": set("def")}
    assert sides(tmp_path / "set_test.csv") == {"test": set("xy")}
    assert sound("set.csv")["findings"] == []
    said = next(
        line for line in done.err.splitlines() if line.startswith("wrote set_test.csv (4 rows); in the end: ")
    )
    words = shlex.split(
        said.partition("in the end: metricli ")[2].replace("best.ckpt", str(trained.best_ckpt))
    )
    judged = cli(*words, "--json")
    assert judged.code == 0, judged.err
    assert (judged.json["queries"], judged.json["gallery"]) == (4, 4)


def test_what_is_left_out_is_said(cli, tmp_path):
    folder = products(tmp_path)
    draw(folder, "loose.png", ".cache/1.png", "a/._1.png", "__MACOSX/a/1.png", "b/deep/er/1.png")
    (folder / "notes.txt").touch()
    (folder / "a/README").touch()
    (folder / "empty").mkdir()
    (folder / "linked").symlink_to(folder / "a")
    done = cli("init", "products", "--out", "spec.yaml")
    assert done.code == 0
    assert [line for line in done.err.splitlines() if "open-set" not in line] == [
        "2 files of other kinds left out (no suffix 1, .txt 1)",
        "labels are the folders right below 'products'; 1 image lies deeper and takes that label",
        "warning: 3 images are left out: hidden, or in a hidden folder "
        "('.cache/1.png', '__MACOSX/a/1.png', 'a/._1.png')",
        "warning: 1 image is left out: right in 'products', in no folder of a label ('loose.png')",
        "warning: 1 folder is a link and not entered ('linked')",
        "warning: 1 folder holds no image and gives no label ('empty')",
        "wrote products.csv (19 rows)",
    ]
    deep = [row["label"] for row in rows_of(tmp_path / "products.csv") if "deep" in row["path"]]
    assert deep == ["b"]


def test_links_out_of_the_folder_are_allowed_in_the_spec(cli, sound, tmp_path):
    folder = products(tmp_path)
    draw(tmp_path, "elsewhere/1.png")
    (folder / "a/linked.png").symlink_to(tmp_path / "elsewhere/1.png")
    (tmp_path / "in").mkdir()
    folder.rename(tmp_path / "in/products")
    assert cli("init", "in/products", "--out", "spec.yaml").code == 0
    assert "\n  allow_outside_root: true" in (tmp_path / "spec.yaml").read_text()
    assert sound("spec.yaml")["findings"] == []


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "'products' holds no image; expected FOLDER/label/image.jpg, or "),
        (["1.png", "2.png"], "the images in 'products' lie in no folder of a label; expected FOLDER/label/"),
        (["a/1.png", "a/2.png"], "'products' has one label, 'a', and training needs two; expected "),
        (
            ["in/a/1.png", "in/b/2.png"],
            "'products' has one folder, 'in', which would be the only label; did you",
        ),
        (
            ["train/a/1.png", "train/b/1.png"],
            "'products' has one folder, 'train', which would be the only label; did you mean 'products/",
        ),
        (["train/a/1.png", "val/b/1.png"], "'products' has one train label, 'a', and training needs two; "),
        (["train/1.png", "val/2.png"], "'products' has no train label, and training needs two; expected "),
        (
            ["train/a/1.png", "val/b/1.png", "extra/c/1.png"],
            "'products' has folders of splits, 'train', 'val', beside 'extra'; move the others elsewhere, ",
        ),
    ],
)
def test_folders_that_give_no_table(refused, tmp_path, paths, message):
    (tmp_path / "products").mkdir()
    draw(tmp_path / "products", *paths)
    done = refused("init", "products", "--out", "spec.yaml")
    assert done.code == 3
    assert error_of(done).startswith(message)


@pytest.mark.parametrize("inner", ["", "images/"])
def test_a_folder_with_a_table_in_it_is_not_one_of_labels(refused, tmp_path, inner):
    draw(tmp_path / "set", f"{inner}1.png", f"{inner}2.png")
    (tmp_path / "set/df.csv").touch()
    done = refused("init", "set")
    assert (done.code, error_of(done).partition("; ")[2]) == (3, "did you mean the table 'set/df.csv'?")


def test_train_alone_may_be_a_label(cli, tmp_path):
    products(tmp_path, ["bus", "train", "car", "tram"], 2)
    assert cli("init", "products").code == 0
    assert set.union(*sides(tmp_path / "products.csv").values()) == {"bus", "train", "car", "tram"}


def test_two_labels_leave_none_to_judge(cli, sound, tmp_path):
    products(tmp_path, "ab")
    done = cli("init", "products", "--out", "spec.yaml")
    why = "fewer than 4 labels have two images"
    assert f"warning: no label is set apart for validation, {why}: train 2 labels, 6 images" in done.err
    assert "\n# validation: no row asks or answers" in (tmp_path / "spec.yaml").read_text()
    assert sides(tmp_path / "products.csv") == {"train": {"a", "b"}}
    assert [finding["code"] for finding in sound("products.csv")["findings"]] == ["no-validation-rows"]


@pytest.mark.parametrize("taken", ["products.csv", "spec.yaml", "products_test.csv"])
def test_nothing_is_overwritten(refused, tmp_path, taken):
    draw(tmp_path / "products", *SPLIT, "test/x/1.png", "test/x/2.png")
    (tmp_path / taken).symlink_to("nowhere") if taken == "spec.yaml" else (tmp_path / taken).touch()
    done = refused("init", "products", "--out", "spec.yaml")
    assert done.code == 2
    assert f"'{taken}' exists already; give another --" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["products", "--validation-share", "1.5"], "--validation-share must be from 0 to 1, got 1.5"),
        (["products", "--validation-share", "nan"], "--validation-share must be from 0 to 1, got nan"),
        (["products", "--table", "t.txt"], "--table 't.txt' is no .csv file"),
        (["products", "--table", "no/t.csv"], "--table 'no/t.csv': the folder 'no' does not exist"),
        (["products", "--out", "no/s.yaml"], "--out 'no/s.yaml': the folder 'no' does not exist"),
        (
            ["products", "--table", "x.csv", "--out", "./x.csv"],
            "--out is the spec and --table the table, and both",
        ),
        (["products", "--root", "."], "--root belongs to a table; of a folder of images it is the folder"),
        (["t.csv", "--seed", "1"], "--seed belongs to a folder of images, and 't.csv' is none"),
    ],
)
def test_options_that_do_not_fit(refused, tmp_path, words, message):
    products(tmp_path)
    (tmp_path / "t.csv").touch()
    done = refused("init", *words)
    assert done.code == 2
    assert error_of(done).startswith(message)


def test_a_place_that_cannot_be_written(refused, tmp_path):
    products(tmp_path)
    table = f"{'t' * 255}.csv"
    done = refused("init", "products", "--table", table)
    assert done.code == 7
    why = "File name too long; check the space and the rights there"
    assert unbroken(done.err).endswith(f"\nerror: cannot write {table!r}: {why}\n")


def write_table(
    path: Path, rows: list[str], header: str = "label,path,split,is_query,is_gallery,category"
) -> None:
    path.write_text("\n".join([header, *rows]) + "\n")


def test_categories_are_used_where_each_label_has_one(cli, tmp_path):
    labels = {f"l{n}": f"c{n % 3}" for n in range(24)}
    rows = [
        f"{label},{label}_{n}.jpg,train,,,{category}" for label, category in labels.items() for n in range(4)
    ]
    write_table(tmp_path / "t.csv", rows)
    text = cli("init", "t.csv").out
    assert "\n  name: category_balanced # or balanced" in text
    assert "\n  n_categories: 3         # of 3: negatives of one category are the harder ones\n" in text
    assert "\n  n_labels: 5             # of each category\n  n_instances: 4\n" in text
    write_table(tmp_path / "t.csv", [*rows, "l0,x.jpg,train,,,c1"])
    assert "\n  name: balanced\n" in cli("init", "t.csv").out


def test_metrics_ask_for_what_can_be_had(cli, tmp_path):
    train = [f"{label},{label}{n}.jpg,train,,," for label in "ab" for n in range(9)]
    query = [f"{label},q{label}.jpg,validation,true,false," for label in "cd"]
    gallery = [f"{label},{label}{n}.jpg,validation,false,true," for label in "cd" for n in range(2)]
    write_table(tmp_path / "t.csv", [*train, *query, *gallery])
    done = cli("init", "t.csv")
    assert "  # 2 queries, in a gallery of 4; the median one has 2 to find\n" in done.out
    assert "  metrics: {cmc: [1], precision: [2], map: [2], map_r: true}\n" in done.out


def test_the_size_is_that_of_the_images(cli, tmp_path):
    for label in "ab":
        draw(tmp_path, f"{label}.png", size=(64, 130))
    write_table(tmp_path / "t.csv", ["a,a.png,train,,,", "b,b.png,train,,,"])
    text = cli("init", "t.csv").out
    what = "the median image is 64 x 130; [height, width] such as [256, 128] keeps the shape"
    assert f"transforms:\n  # {what}\n  train: {{name: augment, size: 128}}\n" in text


def test_a_table_with_its_images_elsewhere(cli, tmp_path):
    draw(tmp_path / "here", "a.png", "b.png")
    (tmp_path / "tables").mkdir()
    write_table(tmp_path / "tables/t.csv", ["a,a.png,train,,,", "b,b.png,train,,,"])
    done = cli("init", "tables/t.csv")
    assert "warning: training will refuse 'tables/t.csv': 2 rows name a file that does not exist" in done.err
    done = cli("init", "tables/t.csv", "--root", "here", "--out", "tables/spec.yaml")
    assert (done.code, "will refuse" in done.err) == (0, False)
    assert load_spec(tmp_path / "tables/spec.yaml", TrainSpec).spec.data.root == str(tmp_path / "here")


def test_the_schema_of_the_header_fits_the_spec(cli, tmp_path):
    import jsonschema
    import yaml

    products(tmp_path)
    text = cli("init", "products").out
    assert text.startswith("# yaml-language-server: $schema=train.schema.json\n")
    assert "\n#   metricli schema train > train.schema.json\n" in text
    schema = json.loads(cli("schema", "train").out)
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(text))


def test_doubts_about_a_table_are_passed_on(cli, tmp_path):
    rows = [f"{label},{label}.png,train,,," for label in "ab"] + ["c,c.png,validation,1,1,"]
    draw(tmp_path, "a.png", "b.png", "c.png")
    write_table(tmp_path / "t.csv", rows)
    done = cli("init", "t.csv", "--out", "spec.yaml")
    assert done.code == 0
    assert [line for line in unbroken(done.err).splitlines() if line.startswith("warning: ")] == [
        "warning: the whole gallery of validation has one label, 'c', so that no ranking can be wrong: "
        "put images of other labels there",
        "warning: 1 query has no match in the gallery (row 3), see validation.unmatched: "
        "put another image of the label there",
        "warning: 2 train labels have one image and can form no positive pair: 'a' (row 1), 'b' (row 2)",
    ]


def test_a_folder_s_doubts_are_said_once(cli, tmp_path):
    products(tmp_path, "abcdef", 2)
    draw(tmp_path, "products/lone/1.png", "products/alone/1.png")
    done = cli("init", "products", "--out", "spec.yaml")
    assert done.err.count("one image") == 2, done.err


@pytest.mark.parametrize(
    ("share", "doubt"),
    [
        (
            "1",
            "a share of 1 is 5 of 5 labels with two images, and 3 are set apart: KEPT are kept, for "
            "training needs two",
        ),
        (
            "0.1",
            "a share of 0.1 is 0 of 5 labels with two images, and 2 are set apart, the fewest that can judge",
        ),
        ("0.4", None),
        ("0.6", None),
    ],
)
def test_a_share_that_cannot_be_had_is_said(cli, tmp_path, share, doubt):
    products(tmp_path, "abcde", 2)
    done = cli("init", "products", "--validation-share", share, "--out", "spec.yaml")
    assert done.code == 0
    said = [line for line in unbroken(done.err).splitlines() if "a share of" in line]
    if doubt is not None and share == "1":
        kept = ", ".join(map(repr, sorted(sides(tmp_path / "products.csv")["train"])))
        doubt = doubt.replace("KEPT", kept)
    assert said == ([] if doubt is None else [f"warning: {doubt}"])


def test_a_spec_is_no_table(refused, tmp_path):
    (tmp_path / "s.yaml").write_text("data: {table: t.csv}\nloss: {name: triplet, margin: 0.2}\n")
    done = refused("init", "s.yaml")
    assert done.code == 3
    assert error_of(done).endswith("s.yaml is a spec, not a table; give the table of its data block")
