"""`load_extractor`: the model and transform of a checkpoint in two lines, with the bits of `predict`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from metricli import load_extractor, predict
from metricli.errors import CheckpointError, DataError
from tests.conftest import FIGURES


def features(extractor: Any, images: list[torch.Tensor]) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = extractor(torch.stack(images)).numpy()
    return found


def test_its_features_are_those_of_predict_to_the_bit(trained: Any, tmp_path: Path) -> None:
    report = predict(ckpt=trained.best_ckpt, split="validation", out=tmp_path / "features.npy")
    table = pd.read_csv(FIGURES)
    rows = table[table["split"] == "validation"]
    boxes = rows[["x_1", "y_1", "x_2", "y_2"]]
    assert 0 < boxes.notna().all(axis=1).sum() < len(rows)
    extractor, transform = load_extractor(trained.best_ckpt)
    given = []
    for i, (path, box) in enumerate(zip(rows["path"], boxes.to_numpy(), strict=True)):
        place = FIGURES.parent / path
        with Image.open(place) as image:
            asked: Any = [place, str(place), image][i % 3]
            given.append(transform(asked, box=None if np.isnan(box).any() else box.astype(int).tolist()))
    assert extractor.dim == report.dim == 16
    np.testing.assert_array_equal(features(extractor, given), np.load(report.out))


def test_the_model_is_ready_for_use(trained: Any) -> None:
    extractor, transform = load_extractor(trained.best_ckpt)
    assert not any(module.training for module in extractor.modules())
    assert {parameter.device.type for parameter in extractor.parameters()} == {"cpu"}
    assert transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


def test_a_turned_and_transparent_image_is_read_as_predict_reads_it(trained: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    file = tmp_path / "turned.png"
    Image.fromarray(pixels).save(file, exif=exif)
    _, transform = load_extractor(trained.best_ckpt)
    plain = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_270)
    white = Image.new("RGB", plain.size, "white")
    white.paste(plain.convert("RGB"), mask=plain.getchannel("A"))
    assert torch.equal(transform(file), transform(white))
    with Image.open(file) as image:
        assert torch.equal(transform(image), transform(white))


def test_a_run_directory_and_a_step_directory_are_taken(trained: Any, tmp_path: Path) -> None:
    best, _ = load_extractor(trained.run_dir)
    one, _ = load_extractor(trained.best_ckpt)
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), one.parameters(), strict=True))
    step = tmp_path / "step-4"
    step.mkdir()
    shutil.copy(trained.last_ckpt, step / "last.ckpt")
    last, _ = load_extractor(step)
    assert last.dim == 16


def test_what_is_wrong_is_said(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoints/best\.ckpt"):
        load_extractor(tmp_path)
    _, transform = load_extractor(trained.best_ckpt)
    with pytest.raises(DataError, match=r"none\.png"):
        transform(tmp_path / "none.png")
    with pytest.raises(DataError, match="reaches outside its image of 8 x 8 pixels"):
        transform(Image.new("RGB", (8, 8)), box=(0, 0, 9, 8))


def test_asking_for_the_name_imports_no_torch() -> None:
    code = "import sys, metricli; metricli.load_extractor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
