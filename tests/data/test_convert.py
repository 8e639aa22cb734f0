"""Converters, on small trees in the layout that each data set is published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metricli.data.converting import DATA_SETS, convert
from metricli.data.converting.annotations import first_half
from metricli.data.inspection import inspect_table
from metricli.data.table import read_table
from metricli.errors import DataError, UsageError

SIZE = (60, 40)


def draw(root: Path, *paths: str, size: tuple[int, int] = SIZE) -> None:
    """An image at each of some relative paths."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (sum(path.encode()) % 256, 40, 90)).save(root / path)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def labels_of(table: Path) -> dict[str, set[str]]:
    """Split -> labels."""
    found = read_table(table)
    return {split: set(found.split(split).labels) for split in ("train", "validation")}


def sound(table: Path, root: Path | None = None) -> None:
    """`inspect-dataset` exits with 0."""
    errors = [each for each in inspect_table(table, root=root).findings if each.severity == "error"]
    assert errors == []


# CARS196: 4 labels, of each 2 train and 1 test image of the classification task

CARS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van 2012", "smart fortwo 2012"]
BOXES = [(1, 1, 60, 40), (11, 6, 30, 20), (50, 30, 75, 60)]
"""As published: from 1, the last pixel inside; the third reaches outside its image of 60 x 40."""


def mat(path: Path, **variables: Any) -> None:
    """A .mat file as MATLAB writes it: structs and cells of 1 x N."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, do_compression=True)


def structs(rows: list[dict[str, Any]]) -> Any:
    made = np.zeros((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        made[0, place] = tuple(row.values())
    return made


def cells(words: list[str]) -> Any:
    made = np.empty((1, len(words)), dtype=object)
    made[0] = words
    return made


def boxed(number: int) -> dict[str, Any]:
    return dict(zip(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), BOXES[number], strict=True))


@pytest.fixture
def cars_in_one(tmp_path: Path) -> Path:
    """car_ims/ and cars_annos.mat."""
    root, rows = tmp_path / "cars", []
    for label in range(1, 5):
        for number in range(3):
            path = f"car_ims/{3 * (label - 1) + number + 1:06d}.jpg"
            draw(root, path)
            rows.append({"relative_im_path": path, **boxed(number), "class": label, "test": int(number == 2)})
    mat(root / "cars_annos.mat", annotations=structs(rows), class_names=cells(CARS))
    return root


@pytest.fixture
def cars_in_two(tmp_path: Path) -> Path:
    """cars_train/, cars_test/ and the devkit."""
    root = tmp_path / "cars"
    rows: dict[str, list[dict[str, Any]]] = {"cars_train": [], "cars_test": []}
    for label in range(1, 5):
        for number in range(3):
            folder = "cars_test" if number == 2 else "cars_train"
            name = f"{len(rows[folder]) + 1:05d}.jpg"
            draw(root, f"{folder}/{name}")
            rows[folder].append({**boxed(number), "class": label, "fname": name})
    mat(root / "devkit/cars_train_annos.mat", annotations=structs(rows["cars_train"]))
    mat(root / "cars_test_annos_withlabels.mat", annotations=structs(rows["cars_test"]))
    mat(root / "devkit/cars_meta.mat", class_names=cells(CARS))
    return root


@pytest.mark.parametrize("layout", ["cars_in_one", "cars_in_two"])
def test_cars_by_the_paper_and_by_oml(layout, request, tmp_path):
    root = request.getfixturevalue(layout)
    report = convert("cars196", root, tmp_path / "paper.csv")
    assert labels_of(tmp_path / "paper.csv") == {"train": set(CARS[:2]), "validation": set(CARS[2:])}
    assert list(report.counts.values()) == [6, 2, 6, 2, 6, 6]
    report = convert("cars196", root, tmp_path / "oml.csv", split="oml")
    assert labels_of(tmp_path / "oml.csv") == {"train": set(CARS), "validation": set(CARS)}
    assert list(report.counts.values()) == [8, 4, 4, 4, 4, 4]
    for name in ("paper.csv", "oml.csv"):
        sound(tmp_path / name)
        assert read_table(tmp_path / name).header == ("label", "path", "split", "is_query", "is_gallery")


@pytest.mark.parametrize("layout", ["cars_in_one", "cars_in_two"])
def test_boxes_of_cars_count_from_one_and_are_cut_at_the_edges(layout, request, tmp_path):
    report = convert("cars196", request.getfixturevalue(layout), tmp_path / "t.csv", boxes=True)
    table = read_table(tmp_path / "t.csv")
    assert table.header[-4:] == ("x_1", "x_2", "y_1", "y_2")
    found = {tuple(map(int, box)) for box in table.boxes.values}
    assert found == {(0, 0, 60, 40), (10, 5, 30, 20), (49, 29, 60, 40)}
    assert report.notes == ["4 boxes reached outside the image and were cut"]
    sound(tmp_path / "t.csv")


def test_a_car_test_file_without_labels_is_not_enough(cars_in_two, tmp_path):
    mat(
        cars_in_two / "cars_test_annos_withlabels.mat",
        annotations=structs([{**boxed(0), "fname": "00001.jpg"}] * 2),
    )
    with pytest.raises(DataError, match=r"lacks its class or its box: .* it is the file with labels"):
        convert("cars196", cars_in_two, tmp_path / "t.csv")
    (cars_in_two / "cars_test_annos_withlabels.mat").write_bytes(b"nothing of the kind" * 99)
    with pytest.raises(DataError, match=r"is no .mat file that scipy can read: "):
        convert("cars196", cars_in_two, tmp_path / "t.csv")


def test_cars_need_scipy(cars_in_one, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(UsageError, match=r"needs scipy; pip install 'metricli\[cars196\]'"):
        convert("cars196", cars_in_one, tmp_path / "t.csv")


# CUB-200-2011: 4 species of 3 images

BIRDS = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani"]


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    root = tmp_path / "CUB_200_2011"
    paths = [f"{bird}/{bird[4:]}_{n}.jpg" for bird in BIRDS for n in range(3)]
    draw(root, *(f"images/{path}" for path in paths))
    write(root / "images.txt", *(f"{n} {path}" for n, path in enumerate(paths, 1)))
    write(root / "classes.txt", *(f"{n} {bird}" for n, bird in enumerate(BIRDS, 1)))
    write(root / "image_class_labels.txt", *(f"{n} {(n + 2) // 3}" for n in range(1, 13)))
    write(root / "train_test_split.txt", *(f"{n} {int(n % 3 != 0)}" for n in range(1, 13)))
    boxes = ["0.0 0.0 60.0 40.0", "10.0 5.5 20.0 14.2", "50.0 30.0 11.0 15.0"]
    write(root / "bounding_boxes.txt", *(f"{n} {boxes[(n - 1) % 3]}" for n in range(1, 13)))
    return root


def test_birds_by_the_paper_and_by_oml(birds, tmp_path):
    report = convert("cub200", birds, tmp_path / "paper.csv")
    assert labels_of(tmp_path / "paper.csv") == {"train": set(BIRDS[:2]), "validation": set(BIRDS[2:])}
    assert list(report.counts.values()) == [6, 2, 6, 2, 6, 6]
    report = convert("cub200", birds, tmp_path / "oml.csv", split="oml")
    assert labels_of(tmp_path / "oml.csv") == {"train": set(BIRDS), "validation": set(BIRDS)}
    assert list(report.counts.values()) == [8, 4, 4, 4, 4, 4]
    for name in ("paper.csv", "oml.csv"):
        sound(tmp_path / name)


def test_boxes_of_birds_are_corner_and_size(birds, tmp_path):
    report = convert("cub200", birds, tmp_path / "t.csv", boxes=True)
    assert read_table(tmp_path / "t.csv").boxes.values[:3].tolist() == [
        [0, 0, 60, 40],
        [10, 5, 30, 20],
        [50, 30, 60, 40],
    ]
    assert report.notes == ["4 boxes reached outside the image and were cut"]
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "label,path,split,is_query,is_gallery,x_1,x_2,y_1,y_2"
    assert lines[2].endswith(",train,,,10,30,5,20"), "left, right, top, bottom"
    sound(tmp_path / "t.csv")


def test_boxes_turn_with_their_image(birds, tmp_path):
    """EXIF 6 turns an image of 60 x 40 to one of 40 x 60; a box is of the upright one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = f"images/{BIRDS[0]}/{BIRDS[0][4:]}_0.jpg"
    Image.new("RGB", SIZE).save(birds / path, exif=exif)
    convert("cub200", birds, tmp_path / "t.csv", boxes=True)
    assert read_table(tmp_path / "t.csv").boxes.values[0].tolist() == [0, 0, 40, 40]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("images.txt", "1\n", "images.txt' line 1 is '1', expected 2 words; unpack it again"),
        ("images.txt", "x y\n", "images.txt' line 1: expected a whole number, got 'x'"),
        ("images.txt", "1 ../secret.jpg\n", "1 of 1 images are not there, the first 'images/../secret.jpg'"),
        ("images.txt", "\n", "name no image; unpack them again"),
        ("images.txt", "13 a.jpg\n", "image 13, 'a.jpg', has no label"),
        (
            "image_class_labels.txt",
            "1 x\n",
            "image 1 of image_class_labels.txt: expected a whole number, got 'x'",
        ),
        ("bounding_boxes.txt", "1 1 1 5 5\n", "Black_footed_Albatross_1.jpg', has no box"),
        ("bounding_boxes.txt", "1 1 1 5\n", "bounding_boxes.txt' line 1 is '1 1 1 5', expected 5 words"),
        ("bounding_boxes.txt", "1 1 1 5 z\n", "expected four numbers, got "),
        ("classes.txt", b"1 \xff\n", "classes.txt': not UTF-8"),
    ],
)
def test_damaged_annotations_are_one_sentence(birds, tmp_path, file, text, message):
    (birds / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        convert("cub200", birds, tmp_path / "t.csv", boxes=True)
    assert message in str(caught.value)
    assert not (tmp_path / "t.csv").exists()


def test_a_box_that_is_no_number_is_said(birds, tmp_path):
    lines = (birds / "bounding_boxes.txt").read_text().replace("1 0.0 0.0 60.0", "1 nan 0.0 60.0", 1)
    (birds / "bounding_boxes.txt").write_text(lines)
    with pytest.raises(DataError, match=r"the box of '.*_0.jpg' is \(nan, "):
        convert("cub200", birds, tmp_path / "t.csv", boxes=True)


def test_an_image_without_a_usable_box_has_none(birds, tmp_path):
    lines = (birds / "bounding_boxes.txt").read_text().replace("1 0.0 0.0 60.0", "1 70.0 0.0 60.0", 1)
    (birds / "bounding_boxes.txt").write_text(lines)
    report = convert("cub200", birds, tmp_path / "t.csv", boxes=True)
    assert report.notes[1] == "1 image without a box, for theirs lies outside or is empty"
    assert read_table(tmp_path / "t.csv").boxes.values[0].tolist() == [-1] * 4
    sound(tmp_path / "t.csv")


def test_missing_images_are_counted(birds, tmp_path):
    for path in sorted((birds / "images").rglob("*.jpg"))[:3]:
        path.unlink()
    with pytest.raises(DataError, match="3 of 12 images are not there, the first 'images/001"):
        convert("cub200", birds, tmp_path / "t.csv")


def test_labels_of_one_name_stay_two(birds, tmp_path):
    (birds / "classes.txt").write_text("1 same\n2 same\n3 c\n4 d\n")
    convert("cub200", birds, tmp_path / "t.csv")
    assert labels_of(tmp_path / "t.csv") == {"train": {"1 same", "2 same"}, "validation": {"3 c", "4 d"}}


# Stanford Online Products


@pytest.fixture
def sop(tmp_path: Path) -> Path:
    root, number = tmp_path / "Stanford_Online_Products", 0
    for name, labels in (("Ebay_train.txt", (1, 2, 3)), ("Ebay_test.txt", (4, 5))):
        lines = ["image_id class_id super_class_id path"]
        for label in labels:
            kind = ("bicycle", "coffee_maker")[label % 2]
            for view in range(2):
                number += 1
                path = f"{kind}_final/11108512287{label}_{view}.JPG"
                draw(root, path)
                lines.append(f"{number} {label} {label % 2 + 1} {path}")
        write(root / name, *lines)
    return root


def test_products_have_their_super_class_as_category(sop, tmp_path):
    report = convert("sop", sop, tmp_path / "t.csv")
    assert labels_of(tmp_path / "t.csv") == {"train": {"1", "2", "3"}, "validation": {"4", "5"}}
    found = read_table(tmp_path / "t.csv")
    pairs = set(zip(found.strings("label"), found.strings("category"), strict=True))
    assert pairs == {(str(n), ("bicycle", "coffee_maker")[n % 2]) for n in range(1, 6)}
    assert list(report.counts.values()) == [6, 3, 4, 2, 4, 4]
    sound(tmp_path / "t.csv")


# DeepFashion, In-shop


@pytest.fixture
def inshop(tmp_path: Path) -> Path:
    root, lines, boxes = tmp_path / "inshop", [], []
    for item, statuses in {1: ["train"] * 2, 2: ["query", "gallery", "gallery"], 3: ["train"] * 2}.items():
        for view, status in enumerate(statuses):
            path = f"img/{'MEN/Denim' if item == 3 else 'WOMEN/Dresses'}/id_{item:08d}/02_{view}_front.jpg"
            draw(root, path)
            lines.append(f"{path}   id_{item:08d} {status}")
            boxes.append(f"{path} 3 1 010 005 0{30 + view} 040")
    write(root / "Eval/list_eval_partition.txt", "7", "image_name item_id evaluation_status", *lines)
    write(
        root / "Anno/list_bbox_inshop.txt", "7", "image_name clothes_type pose_type x_1 y_1 x_2 y_2", *boxes
    )
    return root


def test_inshop_queries_do_not_answer(inshop, tmp_path):
    report = convert("inshop", inshop, tmp_path / "t.csv")
    assert labels_of(tmp_path / "t.csv") == {
        "train": {"id_00000001", "id_00000003"},
        "validation": {"id_00000002"},
    }
    judged = read_table(tmp_path / "t.csv").split("validation")
    assert judged.is_query.tolist() == [True, False, False]
    assert judged.is_gallery.tolist() == [False, True, True]
    assert set(judged.categories) == {"WOMEN/Dresses"}
    assert list(report.counts.values()) == [4, 2, 3, 1, 1, 2]
    sound(tmp_path / "t.csv")


def test_inshop_boxes_belong_to_the_small_images(inshop, tmp_path):
    for place in ("", "Img/"):
        if place:
            (inshop / "Img").mkdir()
            (inshop / "img").rename(inshop / "Img/img")
        convert("inshop", inshop, tmp_path / "t.csv", boxes=True)
        found = read_table(tmp_path / "t.csv")
        assert found.boxes.values[0].tolist() == [10, 5, 30, 40]
        assert str(found.strings("path")[0]).startswith(f"inshop/{place}img/WOMEN/")
        sound(tmp_path / "t.csv")
        (tmp_path / "t.csv").unlink()
    (inshop / "Img/img").rename(inshop / "Img/img_highres")
    with pytest.raises(
        DataError, match=r"boxes belong to the images of 256 pixels in img/, .* leave --boxes away"
    ):
        convert("inshop", inshop, tmp_path / "t.csv", boxes=True)
    convert("inshop", inshop, tmp_path / "t.csv")
    assert str(read_table(tmp_path / "t.csv").strings("path")[0]).startswith("inshop/Img/img_highres/WOMEN/")


def test_an_unknown_status_is_said(inshop, tmp_path):
    path = inshop / "Eval/list_eval_partition.txt"
    path.write_text(path.read_text().replace(" query", " qery"))
    with pytest.raises(
        DataError, match=r"line 5 has 'img/.*' and 'qery', expected img/... and train, query or"
    ):
        convert("inshop", inshop, tmp_path / "t.csv")


# What all share


def test_counts_are_held_against_the_published_ones(sop, tmp_path):
    report = convert("sop", sop, tmp_path / "t.csv")
    assert report.differences == [
        "train images: 6, published 59,551",
        "train labels: 3, published 11,318",
        "validation images: 4, published 60,502",
        "validation labels: 2, published 11,316",
        "queries: 4, published 60,502",
        "gallery: 4, published 60,502",
    ]


def test_the_published_counts_of_both_splits_add_up():
    totals = {
        (name, split): counts["train images"] + counts["validation images"]
        for name, data_set in DATA_SETS.items()
        for split, counts in data_set.published.items()
    }
    assert totals == {
        ("cars196", "paper"): 16185,
        ("cars196", "oml"): 16185,
        ("cub200", "paper"): 11788,
        ("cub200", "oml"): 11788,
        ("sop", "paper"): 120053,
        ("inshop", "paper"): 52712,
    }
    assert (len(first_half(range(1, 197))), max(first_half(range(1, 201)))) == (98, 100)


def test_paths_start_at_the_table_if_they_can(birds, tmp_path):
    (tmp_path / "else").mkdir()
    inside = convert("cub200", birds, birds / "t.csv")
    beside = convert("cub200", birds, tmp_path / "t.csv")
    apart = convert("cub200", birds, tmp_path / "else/t.csv")
    first = [str(read_table(Path(each.table)).strings("path")[0]) for each in (inside, beside, apart)]
    start = "images/001.Black_footed_Albatross/"
    assert [path.partition("Black_footed_Albatross_0")[0] for path in first] == [
        start,
        f"CUB_200_2011/{start}",
        start,
    ]
    assert [each.root for each in (inside, beside, apart)] == [None, None, str(birds)]
    sound(tmp_path / "else/t.csv", root=birds)


def test_the_command_says_what_it_found(cli, birds, tmp_path):
    done = cli("convert", "cub200", "CUB_200_2011", "--out", "cub200.csv")
    assert done.code == 0
    assert done.out.splitlines() == [
        "wrote cub200.csv: cub200, split paper",
        "                   here  published",
        "train images          6      5,864",
        "train labels          2        100",
        "validation images     6      5,924",
        "validation labels     2        100",
        "queries               6      5,924",
        "gallery               6      5,924",
        "next: metricli inspect-dataset cub200.csv",
        "      metricli init cub200.csv --out spec.yaml",
    ]
    assert "warning: train images: 6, published 5,864\n" in done.err
    assert cli("inspect-dataset", "cub200.csv").code == 0
    (tmp_path / "x").mkdir()
    done = cli("convert", "cub200", "CUB_200_2011", "--split", "oml", "--out", "x/t.csv", "--json")
    assert json.loads(done.out)["counts"]["train images"] == 8
    assert (json.loads(done.out)["root"], json.loads(done.out)["split"]) == ("CUB_200_2011", "oml")


def test_the_command_refuses_what_it_does_not_know(cli, birds, sop, tmp_path):
    (tmp_path / "there.csv").touch()
    (tmp_path / "archive").mkdir()
    (tmp_path / "empty").mkdir()
    birds.rename(tmp_path / "archive/CUB_200_2011")
    for words, code, message in [
        (
            ["cub", "archive"],
            2,
            "no converter for 'cub'; data sets: cars196, cub200, sop, inshop; did you mean 'cub200'?",
        ),
        (["faces", "archive"], 2, "no converter for 'faces'; data sets: cars196, cub200, sop, inshop\n"),
        (
            ["sop", sop.name, "--split", "oml"],
            2,
            "sop has no split 'oml'; known: paper\n",
        ),
        (["sop", sop.name, "--boxes"], 2, "sop has no boxes; leave --boxes away"),
        (["sop", sop.name, "--out", "there.csv"], 2, "'there.csv' exists already; give another --out"),
        (["sop", sop.name, "--out", "no/t.csv"], 2, "--out 'no/t.csv': the folder 'no' does not exist"),
        (["sop", "nowhere"], 3, "no folder 'nowhere'; give the folder of the unpacked archive"),
        (["cub200", "archive"], 3, "no 'images.txt' in 'archive'; did you mean 'archive/CUB_200_2011'?"),
        (
            ["cars196", "archive"],
            3,
            "no 'cars_train_annos.mat' in 'archive'; expected cars_annos.mat and car_ims/, or devkit/",
        ),
        (["cub200", "empty"], 3, "no 'images.txt' in 'empty'; expected images/, images.txt and image_cl"),
        (["sop", "empty"], 3, "no 'Ebay_train.txt' in 'empty'; expected Ebay_train.txt, Ebay_test.txt "),
        (["inshop", "empty"], 3, "no 'list_eval_partition.txt' in 'empty'; expected list_eval_partition."),
    ]:
        done = cli("convert", *words, *([] if "--out" in words else ["--out", "t.csv"]))
        assert (done.code, done.out) == (code, "")
        assert done.err.startswith(f"error: {message}"), done.err
        assert not (tmp_path / "t.csv").exists()
