from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from metricli.components.dataset import seeded
from metricli.components.transforms import Augment, ResizeNormalize, TimmTransform
from metricli.errors import UsageError

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
GIVEN: dict[str, Any] = {"crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"}


def photo(height: int, width: int) -> Tensor:
    """A smooth colour picture with an edge, uint8 (3, H, W)."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    planes = [np.sin(3 * x + y) * 100 + 128, (x * y) * 255, 90 + 100 * (x + y > 0.7)]
    return torch.from_numpy(np.stack(planes).clip(0, 255).astype(np.uint8))


def by_pillow(image: Tensor, height: int, width: int) -> np.ndarray:
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    return np.asarray(pil.resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def normalized(pixels: np.ndarray) -> np.ndarray:
    mean, std = np.array(MEAN)[:, None, None], np.array(STD)[:, None, None]
    found: np.ndarray = (pixels / 255 - mean) / std
    return found


def assert_near(found: Tensor, expected: np.ndarray, levels: float) -> None:
    """Within so many of 255 levels."""
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    apart = np.abs(found.numpy() - expected) * np.array(STD)[:, None, None] * 255
    assert apart.max() <= levels + 1e-3


def resize(size: list[int], fit: Any) -> ResizeNormalize:
    return ResizeNormalize(size=size, fit=fit, mean=MEAN, std=STD)


def test_an_image_of_the_size_is_only_normalised() -> None:
    image = photo(32, 48)
    assert_near(resize([32, 48], "stretch")(image), normalized(image.numpy()), 1e-4)
    assert image.dtype == torch.uint8
    assert torch.equal(image, photo(32, 48)), "the image given stays as it is"


@pytest.mark.parametrize("size", [[32, 32], [24, 48], [100, 60]])
def test_stretch_is_one_resize(size: list[int]) -> None:
    image = photo(75, 100)
    assert_near(resize(size, "stretch")(image), normalized(by_pillow(image, *size)), 1)


def test_crop_covers_and_cuts_the_centre() -> None:
    image = photo(75, 100)
    wide = by_pillow(image, 30, 40)
    assert_near(resize([30, 30], "crop")(image), normalized(wide[:, :, 5:35]), 1)
    tall = by_pillow(photo(100, 75), 40, 30)
    assert_near(resize([30, 30], "crop")(photo(100, 75)), normalized(tall[:, 5:35]), 1)


def test_pad_fits_inside_and_fills_with_the_mean() -> None:
    image = photo(75, 100)
    expected = np.zeros((3, 40, 40))
    expected[:] = np.array([round(255 * m) for m in MEAN])[:, None, None]
    expected[:, 5:35] = by_pillow(image, 30, 40)
    found = resize([40, 40], "pad")(image)
    assert_near(found, normalized(expected), 1)
    assert found[:, 0].abs().max() < 0.01


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1, 1), (223, 224), (333, 77)])
def test_every_shape_gives_the_size(fit: str, shape: tuple[int, int]) -> None:
    found = resize([17, 23], fit)(photo(*shape))
    assert found.shape == (3, 17, 23)
    assert torch.isfinite(found).all()


def timm_transform(**settings: Any) -> TimmTransform:
    return TimmTransform(model="test_resnet", mean=MEAN, std=STD, **GIVEN | settings)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("size", "crop_pct"), [([224, 224], 0.875), ([224, 224], 0.95), ([128, 256], 0.9), ([64, 64], 1.0)]
)
@pytest.mark.parametrize("shape", [(300, 401), (401, 300), (97, 64), (240, 240)])
def test_the_timm_transform_is_timms_own(
    crop_mode: Any, size: list[int], crop_pct: float, shape: tuple[int, int]
) -> None:
    image = photo(*shape)
    ours = timm_transform(size=size, crop_pct=crop_pct, crop_mode=crop_mode)
    theirs = create_transform(
        (3, *size),
        is_training=False,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )
    expected = theirs(Image.fromarray(image.permute(1, 2, 0).numpy()))
    assert_near(ours(image), expected.numpy(), 2)


def test_what_is_not_given_is_the_models_own() -> None:
    config = timm.get_pretrained_cfg("test_vit")
    found = TimmTransform(model="test_vit")
    assert found.resolved == {
        "size": [160, 160],
        "crop_pct": config.crop_pct,
        "crop_mode": "center",
        "interpolation": config.interpolation,
        "mean": list(config.mean),
        "std": list(config.std),
    }
    given = TimmTransform(model="test_vit", size=[96, 64], crop_pct=1.0)
    assert given.resolved == found.resolved | {"size": [96, 64], "crop_pct": 1.0}
    assert given(photo(50, 70)).shape == (3, 96, 64)


def test_a_tag_chooses_its_own_configuration() -> None:
    tags = ["vit_base_patch16_224.augreg_in21k", "vit_base_patch16_clip_224.openai"]
    means = [TimmTransform(model=tag).resolved["mean"] for tag in tags]
    assert means == [list(timm.get_pretrained_cfg(tag).mean) for tag in tags]
    assert means[0] != means[1]


def test_a_squashing_model_is_not_cropped() -> None:
    assert TimmTransform(model="convnext_base.fb_in22k_ft_in1k_384").resolved["crop_mode"] == "squash"


def test_with_everything_given_nothing_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metricli.components.transforms._published", None)
    resolved = timm_transform(size=[32, 32]).resolved
    again = TimmTransform(model="test_resnet", **resolved)
    assert torch.equal(again(photo(50, 60)), timm_transform(size=[32, 32])(photo(50, 60)))


def test_a_model_on_the_hub_brings_its_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "input_size": (3, 48, 48),
        "crop_pct": 0.8,
        "interpolation": "bilinear",
        "mean": MEAN,
        "std": STD,
    }
    monkeypatch.setattr(
        "metricli.components.transforms.load_model_config_from_hf", lambda name: (config, name, {})
    )
    resolved = TimmTransform(model="hf_hub:me/model").resolved
    assert resolved["size"] == [48, 48]
    assert (resolved["crop_pct"], resolved["mean"]) == (0.8, MEAN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "restnet50"}, "no timm model named 'restnet50', did you mean 'resnet50'?"),
        (
            {"model": "resnet50", "interpolation": "lanczos"},
            "no interpolation named 'lanczos' for tensors; known: bilinear, bicubic, nearest, nearest-exact",
        ),
    ],
)
def test_what_timm_does_not_know(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        TimmTransform(**settings)
    assert caught.value.message == message


def test_an_unreachable_hub_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str) -> None:
        raise OSError("offline")

    monkeypatch.setattr("metricli.components.transforms.load_model_config_from_hf", refuse)
    with pytest.raises(UsageError) as caught:
        TimmTransform(model="hf_hub:me/model")
    assert caught.value.message == "cannot look up the transform of 'hf_hub:me/model': offline"


PLAIN: dict[str, Any] = {
    "size": [24, 40],
    "scale": [1.0, 1.0],
    "ratio": [1.0, 1.0],
    "flip": 0.0,
    "rotate": 0.0,
    "color_jitter": 0.0,
    "hue": 0.0,
    "erase": 0.0,
    "mean": MEAN,
    "std": STD,
}


def augmented(seed: int, image: Tensor | None = None, **settings: Any) -> Tensor:
    with seeded(seed):
        found: Tensor = Augment(**PLAIN | settings)(photo(60, 60) if image is None else image)
    return found


def test_augment_with_all_off_is_a_resize() -> None:
    assert_near(augmented(0), normalized(by_pillow(photo(60, 60), 24, 40)), 1)


def test_augment_flips() -> None:
    assert torch.equal(augmented(0, flip=1.0), augmented(0, photo(60, 60).flip(2))) or torch.allclose(
        augmented(0, flip=1.0), augmented(0).flip(2), atol=1e-6
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": [0.3, 0.6]},
        {"flip": 0.5},
        {"rotate": 40.0},
        {"color_jitter": 0.4},
        {"hue": 0.3},
        {"erase": 1.0},
    ],
)
def test_every_augmentation_follows_the_seed(settings: dict[str, Any]) -> None:
    found = [augmented(seed, **settings) for seed in range(8)]
    assert all(f.shape == (3, 24, 40) and f.dtype == torch.float32 for f in found)
    assert all(torch.isfinite(f).all() for f in found)
    assert torch.equal(found[3], augmented(3, **settings))
    different = {f.numpy().tobytes() for f in found}
    assert len(different) == (2 if "flip" in settings else 8)


def test_turned_corners_and_erased_parts_have_the_mean_colour() -> None:
    white = torch.full((3, 60, 60), 255, dtype=torch.uint8)
    turned = augmented(1, white, rotate=45.0)
    assert turned.amin() > -0.5, "black would be -2.5, ringing at an edge is -0.1"
    assert (turned.abs().amax(0) < 0.02).any()
    assert (augmented(1, white, erase=1.0).abs().amax(0) == 0).any()
    assert (augmented(1, white).amin(0) > 1).all()
