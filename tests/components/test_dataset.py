from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metricli.components.dataset import Batch, ImageDataset, Place, seeded
from metricli.components.loading import image_loader
from metricli.errors import WorkerError
from metricli.runs.context import translated_errors

SIDE = 6


def as_float(image: Tensor) -> Tensor:
    return image.float()


def noisy(image: Tensor) -> Tensor:
    """A transform of every generator that an augmentation may use."""
    return image.float() + torch.rand(1) + random.random() + np.random.rand()


def deadly(image: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return image


def pixels(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (SIDE, SIDE + 2, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in range(8):
        Image.fromarray(pixels(row)).save(tmp_path / f"{row}.png")
    return tmp_path


def dataset(folder: Path, **settings: Any) -> ImageDataset:
    defaults: dict[str, Any] = {
        "paths": np.array([f"{row}.png" for row in range(8)]),
        "transform": as_float,
        "labels": np.array([0, 0, 0, 1, 1, 1, 1, 2]),
        "seed": 5,
    }
    return ImageDataset(root=folder, **defaults | settings)


def chw(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def test_an_item_is_image_label_and_row(folder: Path) -> None:
    found = dataset(folder)
    assert len(found) == 8
    for row, label in enumerate([0, 0, 0, 1, 1, 1, 1, 2]):
        for key in (row, Place(row, 3, 17)):
            image, got, index, bad = found[key]
            assert image is not None
            assert torch.equal(image, chw(pixels(row)).float())
            assert (got, index, bad) == (label, row, [])
    assert dataset(folder, labels=None)[4].label == 0


def test_the_transform_is_given_bytes(folder: Path) -> None:
    seen: list[Tensor] = []

    def keep(image: Tensor) -> Tensor:
        seen.append(image)
        return image.float()

    dataset(folder, transform=keep)[2]
    assert seen[0].dtype == torch.uint8
    assert seen[0].shape == (3, SIDE, SIDE + 2)


def test_boxes_are_cropped_to_the_pixel(folder: Path) -> None:
    boxes = np.full((8, 4), -1)
    boxes[1], boxes[2] = (2, 1, 5, 6), (0, 0, SIDE + 2, SIDE)
    found = dataset(folder, boxes=boxes)
    assert torch.equal(found.read(0), chw(pixels(0)))
    assert torch.equal(found.read(1), chw(pixels(1)[1:6, 2:5]))
    assert torch.equal(found.read(2), chw(pixels(2)))


def test_an_augmentation_is_a_function_of_seed_epoch_and_position(folder: Path) -> None:
    found = dataset(folder, transform=noisy)
    key = Place(2, 4, 9)
    image: Any = found[key].image
    for entropy in range(3):
        torch.manual_seed(entropy)
        random.seed(entropy)
        np.random.seed(entropy)
        assert torch.equal(found[key].image, image)  # type: ignore[arg-type]
    others = [found[Place(2, 4, 10)], found[Place(2, 5, 9)], dataset(folder, transform=noisy, seed=6)[key]]
    shifts = {float((other.image - image).flatten()[0]) for other in others}  # type: ignore[operator]
    assert len(shifts) == 3
    assert 0.0 not in shifts


def test_an_image_that_comes_twice_differs_from_itself(folder: Path) -> None:
    batches = [[Place(2, 0, 0), Place(2, 0, 1)]]
    batch: Batch = next(iter(image_loader(dataset(folder, transform=noisy), batches, num_workers=0)))
    assert batch.rows.tolist() == [2, 2]
    assert not torch.equal(batch.images[0], batch.images[1])


def test_the_generators_of_the_process_are_left_as_they_were(folder: Path) -> None:
    def state() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]

    before = state()
    dataset(folder, transform=noisy)[Place(1, 0, 0)]
    assert state() == before
    with contextlib.suppress(RuntimeError), seeded(1):
        noisy(torch.rand(1))
        raise RuntimeError
    assert state() == before


def test_seeds_of_neighbours_are_unrelated() -> None:
    drawn = []
    for epoch in range(20):
        for position in range(50):
            with seeded(0, epoch, position):
                drawn.append(float(torch.rand(1)))
    assert len(set(drawn)) > 990
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.03)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.1


def test_two_workers_give_the_batches_of_none_in_their_order(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"no image")
    rng = np.random.default_rng(0)
    batches = [
        [Place(int(row), 1, 4 * number + i) for i, row in enumerate(rng.permutation(8)[:4])]
        for number in range(6)
    ]
    found = dataset(folder, transform=noisy, replace_bad=True)
    plain: list[Batch] = list(image_loader(found, batches, num_workers=0))
    with_workers: list[Batch] = list(image_loader(found, batches, num_workers=2))
    assert len(plain) == len(with_workers) == 6
    for here, there, asked in zip(plain, with_workers, batches, strict=True):
        if not any(place.row == 3 for place in asked):
            assert here.rows.tolist() == [place.row for place in asked]
        assert torch.equal(here.images, there.images)
        assert here.rows.tolist() == there.rows.tolist()
        assert here.labels.tolist() == there.labels.tolist()
        assert here.bad == there.bad
    assert any(batch.bad for batch in plain)


def test_a_worker_that_is_killed_is_a_worker_error(folder: Path) -> None:
    loader = image_loader(dataset(folder, transform=deadly), [[Place(0, 0, 0)]], num_workers=1)
    with pytest.raises(WorkerError) as caught, translated_errors():
        list(loader)
    assert caught.value.message.startswith("a process that decodes images died: DataLoader worker (pid")
    assert caught.value.exit_code == 6


SCRIPT = """
import os
import sys
import time
from pathlib import Path
import numpy as np
from metricli.components.dataset import ImageDataset
from metricli.components.loading import image_loader
{transform}
print("ran", os.getpid(), flush=True)
data = ImageDataset(root=Path({folder!r}), paths=np.array([f"{{i}}.png" for i in range(4)]), transform=change)
{body}
"""


def script(folder: Path, transform: str, body: str) -> list[str]:
    (folder / "script.py").write_text(SCRIPT.format(folder=str(folder), transform=transform, body=body))
    return [sys.executable, str(folder / "script.py")]


def test_a_script_without_a_guard_runs_once(folder: Path) -> None:
    body = """
loader = image_loader(data, [[0, 1], [2, 3]], num_workers=1)
print([batch.rows.tolist() for batch in loader], [batch.rows.tolist() for batch in loader])
import __main__
print(__main__.__file__)
"""
    words = script(folder, "from torchvision.transforms.v2.functional import to_dtype as change", body)
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    ran, *rest = done.stdout.splitlines()
    assert ran.startswith("ran ")
    assert rest == [f"{[[0, 1], [2, 3]]} {[[0, 1], [2, 3]]}", words[1]]


def test_a_transform_of_the_script_itself_reaches_the_workers(folder: Path) -> None:
    transform = """
from functools import partial
def inner(image, by): return image.float() * by
change = partial(inner, by=0)
"""
    body = """
if __name__ == "__main__":
    print([float(b.images.sum()) for b in image_loader(data, [[0, 1]], num_workers=1)])
"""
    done = subprocess.run(script(folder, transform, body), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0.0]"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks for the worker in /proc")
def test_workers_do_not_outlive_a_killed_trainer(folder: Path) -> None:
    body = """
loader = iter(image_loader(data, [[0], [1], [2], [3]] * 9, num_workers=1))
next(loader)
print(loader._workers[0].pid, flush=True)
time.sleep(100)
"""
    words = script(folder, "from torchvision.transforms.v2.functional import to_dtype as change", body)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        trainer.stdout.readline()
        worker = Path("/proc") / trainer.stdout.readline().strip()
        assert worker.name.isdigit()
        assert worker.is_dir()
        trainer.kill()
        patience = time.monotonic() + 10
        while is_alive(worker) and time.monotonic() < patience:
            time.sleep(0.05)
        assert not is_alive(worker)


def is_alive(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_bad_image_comes_as_a_reason_without_replacement(folder: Path) -> None:
    (folder / "4.png").write_bytes(b"")
    found = dataset(folder)
    for key in (4, Place(4, 0, 0)):
        item = found[key]
        assert item.image is None
        assert (item.label, item.row) == (1, 4)
        assert item.bad == [(4, f"cannot read image {str(folder / '4.png')!r}: the file is empty")]
    assert dataset(folder, replace_bad=True)[4].image is None, "evaluation never judges another image"


def test_a_bad_image_is_replaced_by_another_of_its_label(folder: Path) -> None:
    (folder / "4.png").unlink()
    found = dataset(folder, replace_bad=True)
    items = [found[Place(4, epoch, 7)] for epoch in range(40)]
    assert {item.row for item in items} == {3, 5, 6}
    assert [item.row for item in items] == [found[Place(4, epoch, 7)].row for epoch in range(40)]
    for item in items:
        assert torch.equal(item.image, chw(pixels(item.row)).float())  # type: ignore[arg-type]
        assert item.label == 1
        assert item.bad == [(4, f"cannot read image {str(folder / '4.png')!r}: no such file")]
    assert len({found[Place(4, 0, position)].row for position in range(40)}) == 3
    other_seed = dataset(folder, replace_bad=True, seed=6)
    assert [item.row for item in items] != [other_seed[Place(4, epoch, 7)].row for epoch in range(40)]


def test_the_replacement_may_be_bad_too(folder: Path) -> None:
    (folder / "3.png").unlink()
    (folder / "4.png").unlink()
    found = dataset(folder, replace_bad=True)
    for position in range(20):
        item = found[Place(4, 0, position)]
        assert item.row in (5, 6)
        assert [row for row, _ in item.bad] in ([4], [4, 3])
    assert found[Place(7, 0, 0)].row == 7


def test_a_label_without_a_readable_image_gives_its_place_to_another(folder: Path) -> None:
    for row in (0, 1, 2, 4):
        (folder / f"{row}.png").write_bytes(b"no image")
    found = dataset(folder, replace_bad=True)
    items = [found[Place(1, epoch, 7)] for epoch in range(60)]
    assert {item.row for item in items} == {3, 5, 6, 7}
    for item in items:
        assert torch.equal(item.image, chw(pixels(item.row)).float())  # type: ignore[arg-type]
        assert item.label == (2 if item.row == 7 else 1), "its own label, not that of the place"
        tried = [row for row, _ in item.bad]
        assert tried[0] == 1
        assert sorted(tried[:3]) == [0, 1, 2], "its own label comes first"
        assert tried[3:] in ([], [4])
    assert [item.row for item in items] == [found[Place(1, epoch, 7)].row for epoch in range(60)]
    assert len({found[Place(1, 0, position)].row for position in range(40)}) == 4
    batches = [[Place(1, 0, 4 * i), Place(3, 0, 4 * i + 1), Place(0, 0, 4 * i + 2)] for i in range(9)]
    for batch in image_loader(found, batches, num_workers=0):
        assert len(batch.images) == 3
        assert batch.missing == 0


def test_a_place_is_given_up_after_a_hundred_failures(folder: Path) -> None:
    paths = np.array([f"{row}.png" if row == 170 else "none.png" for row in range(171)])
    labels = np.array([0] * 5 + [1] * 165 + [2])
    found = dataset(folder, paths=paths, labels=labels, replace_bad=True)
    for position in range(20):
        item = found[Place(2, 0, position)]
        assert (item.label, item.row) == (0, 2)
        assert len(item.bad) == len({row for row, _ in item.bad}) == 100
        assert item.image is None
    few = dataset(folder, paths=paths[:8], labels=labels[:8], replace_bad=True)
    assert sorted(row for row, _ in few[Place(2, 0, 0)].bad) == list(range(8))
    (batch,) = image_loader(few, [[Place(2, 0, 0), Place(7, 0, 1)]], num_workers=0)
    assert (len(batch.images), batch.missing) == (0, 2)


@pytest.mark.parametrize("replace_bad", [False, True])
def test_workers_are_told_of_their_images_without_the_table(folder: Path, replace_bad: bool) -> None:
    boxes = np.full((8, 4), -1)
    boxes[2] = (2, 1, 5, 6)
    found = dataset(folder, boxes=boxes, replace_bad=replace_bad)
    batches: Any = [[Place(2, 0, 0)], [Place(7, 0, 2), Place(1, 0, 3)], [Place(0, 0, 1)]]
    loader = image_loader(found, batches, num_workers=1)
    assert len(loader) == 3
    assert len(loader.dataset) == (8 if replace_bad else 0)  # type: ignore[arg-type]
    for asked, batch in zip(batches, loader, strict=True):
        for place, image, label, row in zip(asked, batch.images, batch.labels, batch.rows, strict=True):
            assert (int(row), int(label)) == (place.row, found[place].label)
            assert torch.equal(image, found[place].image)  # type: ignore[arg-type]


def test_a_box_outside_its_image_and_too_many_pixels_are_bad(folder: Path) -> None:
    boxes = np.full((8, 4), -1)
    boxes[0] = (0, 0, SIDE + 3, 2)
    assert dataset(folder, boxes=boxes)[0].bad == [
        (
            0,
            f"{str(folder / '0.png')!r} (row 0 of the split): "
            f"box (0, 0, {SIDE + 3}, 2) reaches outside its image of {SIDE + 2} x {SIDE} pixels",
        )
    ]
    assert "more than the 10 pixels allowed" in dataset(folder, max_pixels=10)[0].bad[0][1]


def test_bad_images_leave_the_batch_shorter_and_their_reasons_in_it(folder: Path) -> None:
    for row in (0, 7):
        (folder / f"{row}.png").unlink()
    load = functools.partial(image_loader, dataset(folder), num_workers=0)
    batch: Batch = next(iter(load([[7, 1, 0, 3]])))
    assert batch.rows.tolist() == [1, 3]
    assert batch.labels.tolist() == [0, 1]
    assert batch.labels.dtype == batch.rows.dtype == torch.int64
    assert [row for row, _ in batch.bad] == [7, 0]
    empty: Batch = next(iter(load([[7, 0]])))
    assert len(empty.rows) == len(empty.labels) == len(empty.images) == 0
