"""The page of a validation: whole, closed, escaped, bounded, and of the numbers of the report."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import metricli
from metricli import MetricliError
from metricli.pages.model import Pictures
from metricli.pages.thumbnails import Budget, Thumbnails, small_image
from metricli.pages.validation_page import write_validation_page
from metricli.plugins.postprocessors import KReciprocal
from metricli.tables import printable, shortened
from tests.report.conftest import CATEGORIES, EACH, LABELS, Seen, rows_of, spec, write_table
from tests.report.pages import Page


@pytest.fixture(scope="module")
def page(hostile: Seen) -> Page:
    return Page(hostile.html)


def visible(text: str) -> str:
    return shortened(printable(text), 200)


def test_nothing_is_loaded_and_only_its_own_script_may_run(page: Page) -> None:
    assert {"img", "link", "iframe", "object", "embed", "base", "form"}.isdisjoint(page.tags)
    links = [value for _, name, value in page.attributes if name in ("href", "src", "action", "xlink:href")]
    assert all(value.startswith("#") for value in links), links
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert all(
        f'id="{value[1:]}"' in "".join(f'id="{v}"' for _, n, v in page.attributes if n == "id")
        for value in links
    )
    policy = next(
        value for tag, name, value in page.attributes if name == "content" and "default-src" in value
    )
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    running = [text for found, text in page.scripts if "type" not in found]
    for text in (*running, *page.styles):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert (len(running), len(page.styles), len(page.scripts)) == (1, 1, 2)
    addresses = re.findall(r"url\(.{0,30}", page.styles[0])
    assert addresses
    assert all(each.startswith('url("data:image/webp;base64,') for each in addresses)


def test_hostile_words_are_text_and_all_there(hostile: Seen, page: Page) -> None:
    shown = page.tables["t-labels"].rows
    assert sorted(row[0] for row in shown) == sorted(map(visible, LABELS))
    assert {row[1] for row in shown} == set(map(visible, CATEGORIES))
    assert not re.search(
        r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200e\u200f\u2028\u2029]", hostile.html
    )
    assert "49" not in {row[0] for row in shown}
    assert page.data["metrics"].keys() == {"OVERALL", *CATEGORIES}


def test_the_numbers_are_those_of_the_report(hostile: Seen, page: Page) -> None:
    table, metrics = page.tables["t-metrics"], hostile.report.metrics
    names = list(metrics["OVERALL"])
    assert table.head == ["group", *names]
    assert [row[0] for row in table.rows] == [visible(group) for group in metrics]
    for numbers, row in zip(table.numbers, metrics.values(), strict=True):
        assert [float(value) for value in numbers[1:] if value] == list(row.values())
    low, high = hostile.report.intervals["OVERALL"]["map@r"]
    value = metrics["OVERALL"]["map@r"]
    assert f"{value:.4f}{low:.3f}–{high:.3f}" in table.rows[0]
    assert page.data == json.loads(json.dumps(hostile.report.to_dict()))


def naive(hostile: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rankings (40, 39), distances (40, 40) and labels by numpy."""
    x = hostile.embeddings.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    apart = 1 - x @ x.T
    np.fill_diagonal(apart, np.inf)
    return apart.argsort(1, kind="stable")[:, :-1], apart, np.repeat(np.arange(len(LABELS)), EACH)


def test_worst_queries_and_labels_are_those_of_a_loop(hostile: Seen, page: Page) -> None:
    order, apart, labels = naive(hostile)
    scores = np.zeros(40)
    for query in range(40):
        hits = labels[order[query, :3]] == labels[query]
        scores[query] = sum(hits[: k + 1].mean() for k in range(3) if hits[k]) / 3
    table = page.tables["t-queries"]
    assert table.head[:3] == ["query", "label", "map@r"]
    found = [float(numbers[2] or "nan") for numbers in table.numbers]
    assert found == pytest.approx(sorted(scores))
    assert len(found) == 40
    paths = [row[0] for row in table.rows]
    for row, numbers in zip(table.rows, table.numbers, strict=True):
        query = int(row[0].removeprefix("images/").split()[0])
        nearest = int(row[-3].removeprefix("images/").split()[0])
        assert scores[query] == pytest.approx(float(numbers[2] or "nan"))
        assert nearest == order[query, 0]
        assert row[-2].endswith("✓" if labels[nearest] == labels[query] else "✗")
        assert float(numbers[-1] or "nan") == pytest.approx(apart[query, nearest], abs=1e-6)
    assert len(set(paths)) == 40
    near = [f"{value:.4f}" for value in np.sort(apart, axis=None)[::2] if np.isfinite(value)]
    shown = re.findall(r"[✓✗] \d+ ([\d.]+)", page.text)
    assert shown
    assert set(shown) <= set(near), "with four decimals, as elsewhere"
    rows = {
        row[0]: numbers
        for row, numbers in zip(page.tables["t-labels"].rows, page.tables["t-labels"].numbers, strict=True)
    }
    for place, label in enumerate(LABELS):
        assert float(rows[visible(label)][3] or "nan") == pytest.approx(scores[labels == place].mean())


def test_the_pictures_are_those_of_a_loop(hostile: Seen) -> None:
    order, apart, labels = naive(hostile)
    found = Pictures.read(hostile.folder)
    assert found is not None
    assert found.distances is not None
    assert (sum(found.distances.genuine), sum(found.distances.impostor)) == (40 * 3, 40 * 36)
    assert found.distances.edges[0] == pytest.approx(apart.min(), abs=1e-6)
    times = Counter(order[:, :5].ravel().tolist())
    assert found.hubs is not None
    for hub in found.hubs.found:
        row = found.items[hub.item].row - 1
        assert hub.times == times[row]
        assert hub.wrong == sum(row in order[q, :5] and labels[q] != labels[row] for q in range(40))
    assert [hub.times for hub in found.hubs.found] == sorted(times.values(), reverse=True)[:10]
    assert found.hubs.never == 40 - len(times)
    worst = [panel for panel in found.panels if (panel.group, panel.kind) == ("OVERALL", "worst")]
    assert len(worst) == 5
    assert len({found.items[panel.query].label for panel in worst}) == 5
    for panel in found.panels:
        assert len(panel.results) == 8  # deeper than the metrics look
        query = found.items[panel.query].row - 1
        rows = [found.items[one.item].row - 1 for one in panel.results]
        assert rows == order[query, : len(rows)].tolist()
        assert [one.is_match for one in panel.results] == [bool(labels[row] == labels[query]) for row in rows]
        assert [one.distance for one in panel.results] == pytest.approx(apart[query, rows], abs=1e-6)
        lost = [row for row in order[query] if labels[row] == labels[query] and row not in rows]
        assert [found.items[one.item].row - 1 for one in panel.missed] == lost[:4]
        assert (panel.relevant, panel.missed_in_all) == (3, len(lost))
        if panel.group != "OVERALL":
            assert found.items[panel.query].category == panel.group
    assert {panel.group for panel in found.panels} == {"OVERALL", *CATEGORIES}


def test_thumbnails_are_small_have_their_boxes_and_bad_files_are_said(hostile: Seen, page: Page) -> None:
    uris = re.findall(r'data:image/webp;base64,([^"]+)', page.styles[0])
    for uri in uris:
        with Image.open(io.BytesIO(base64.b64decode(uri))) as image:
            assert max(image.size) <= 128
    assert "1 image could not be read" in page.text
    rows = write_table(hostile.folder / "again")
    path = next((rows.parent / "images").glob("0 *"))
    drawn = small_image(path, (10, 5, 30, 25))
    assert drawn.size == (30, 30)  # a quarter of 20 x 20 more on each side
    assert drawn.getpixel((5, 5)) == drawn.getpixel((24, 24)) == (255, 196, 0)
    assert drawn.getpixel((3, 3)) != (255, 196, 0)
    assert small_image(path).size == (40, 30)


def test_a_large_photograph_is_shrunk_as_it_is_decoded_and_turned_upright(tmp_path: Path) -> None:
    photo = Image.new("RGB", (3000, 2000), (10, 20, 30))
    photo.paste((250, 240, 10), (0, 0, 1500, 1000))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    photo.save(tmp_path / "photo.jpg", exif=exif)
    found = small_image(tmp_path / "photo.jpg")
    assert found.size == (85, 128)
    assert found.getpixel((80, 5))[0] > 200  # the corner that was top left
    assert found.getpixel((5, 5))[0] < 60
    boxed = small_image(tmp_path / "photo.jpg", (1000, 1500, 2000, 3000))  # of the upright 2000 x 3000
    assert boxed.size == (85, 128)  # 750 to 2000 and 1125 to 3000: the margin ends where the image does


def test_a_page_keeps_to_its_budget_and_says_so(hostile: Seen, tmp_path: Path) -> None:
    for name in ("metrics.json", "pictures.json"):
        (tmp_path / name).write_bytes((hostile.folder / name).read_bytes())
    write_validation_page(tmp_path, budget=Budget(images=7))
    few = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert few.styles[0].count("data:image") == 7
    assert re.search(r"\d+ images not shown: a page has at most 7 images", few.text)
    write_validation_page(tmp_path, budget=Budget(size=5_000))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 0 < sum(len(uri) * 3 / 4 for uri in re.findall(r"base64,([^\"]+)", html)) <= 5_000
    slow = Thumbnails(budget=Budget(seconds=0))
    assert slow.place(hostile.table.parent / "images") is None
    assert "0 s of thumbnails" in slow.notes[0]


def test_images_that_are_gone_are_no_error(hostile: Seen, tmp_path: Path) -> None:
    text = (hostile.folder / "pictures.json").read_text(encoding="utf-8")
    root = json.dumps(str(hostile.table.parent))
    assert root in text
    (tmp_path / "pictures.json").write_text(text.replace(root, json.dumps(str(tmp_path / "gone"))))
    (tmp_path / "metrics.json").write_bytes((hostile.folder / "metrics.json").read_bytes())
    made = metricli.report(tmp_path)
    assert made == tmp_path / "report.html"
    assert "data:image/webp" not in made.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pictures.json", "{}", "is damaged, or of another version"),
        ("pictures.json", "[", "is damaged, or of another version"),
        ("metrics.json", "[]", "holds no JSON object"),
        ("metrics.json", None, "neither a run directory nor a folder of `metricli validate --out`"),
        ("pictures.json", None, "neither a run directory nor a folder of `metricli validate --out`"),
    ],
)
def test_a_folder_that_is_not_whole_is_a_clear_error(
    hostile: Seen, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    for each in ("metrics.json", "pictures.json"):
        (tmp_path / each).write_bytes((hostile.folder / each).read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(MetricliError, match=re.escape(message)) as caught:
        metricli.report(tmp_path)
    assert caught.value.exit_code == 3


def test_a_place_that_is_not_there_is_refused(hostile: Seen, tmp_path: Path) -> None:
    for each in ("metrics.json", "pictures.json"):
        (tmp_path / each).write_bytes((hostile.folder / each).read_bytes())
    document = json.loads((tmp_path / "pictures.json").read_text())
    document["worst"][0]["query"] = 10_000
    (tmp_path / "pictures.json").write_text(json.dumps(document))
    with pytest.raises(MetricliError, match="names an item that it does not hold"):
        metricli.report(tmp_path)


def test_metrics_without_values_of_queries_have_a_page_too(tmp_path: Path) -> None:
    table = write_table(tmp_path)
    from metricli import MetricsSpec, ValidationSpec

    nothing = {"cmc": [], "precision": [], "map": [], "map_r": False}
    validation = ValidationSpec(metrics=MetricsSpec(**nothing, eer=True), monitor="eer")
    metricli.evaluate(rows_of(), table, validation=validation).save(tmp_path / "out")
    page = Page(metricli.report(tmp_path / "out").read_text(encoding="utf-8"))
    assert "t-queries" not in page.tables
    assert page.tables["t-metrics"].head == ["group", "eer"]
    assert "Queries drawn at random" in page.text
    assert "The worst queries" not in page.text


def test_a_page_says_whose_order_and_whose_distances(hostile: Seen, page: Page, tmp_path: Path) -> None:
    changed = spec(postprocessors=[KReciprocal(k1=5, k2=3)])
    metricli.evaluate(hostile.embeddings, hostile.table, validation=changed).save(tmp_path)
    metricli.report(tmp_path)
    told = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    for words in (
        "The order is the one that k_reciprocal made",
        "between the embeddings, before k_reciprocal",
    ):
        assert words in told
        assert words not in page.text
