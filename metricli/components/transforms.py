"""Image transforms by torchvision v2: uint8 (3, H, W) in, normalised float32 (3, height, width) out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
from timm.data.config import resolve_data_config
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

__all__ = ["Augment", "ResizeNormalize", "TimmTransform"]

BICUBIC = InterpolationMode.BICUBIC


class _ToFloat:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean).view(3, 1, 1) * 255
        self.inverse_std = 1 / (torch.tensor(std).view(3, 1, 1) * 255)

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean).mul_(self.inverse_std)


class ResizeNormalize:
    """Resize to `size` = [height, width] and normalise.

    `fit`: "stretch" squeezes to the size, "crop" covers it and cuts the centre, "pad" fits inside and fills
    with the mean colour.
    """

    def __init__(
        self,
        *,
        size: Sequence[int],
        fit: Literal["stretch", "crop", "pad"] = "stretch",
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.size = (size[0], size[1])
        self.fit = fit
        self.fill = [round(255 * m) for m in mean]
        self.to_float = _ToFloat(mean, std)

    def __call__(self, image: Tensor) -> Tensor:
        """Uint8 (3, H, W) -> float32 (3, height, width)."""
        height, width = self.size
        if self.fit != "stretch":
            pick = max if self.fit == "crop" else min
            scale = pick(height / image.shape[1], width / image.shape[2])
            inner = [max(1, round(image.shape[1] * scale)), max(1, round(image.shape[2] * scale))]
        else:
            inner = [height, width]
        image = TF.resize(image, inner, interpolation=BICUBIC, antialias=True)
        if self.fit == "crop":
            image = TF.center_crop(image, [height, width])
        elif self.fit == "pad":
            top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
            borders = [left, top, width - inner[1] - left, height - inner[0] - top]
            image = TF.pad(image, borders, fill=self.fill)
        return self.to_float(image)


class Augment:
    """Random crop, flip, rotation, colour jitter and erasing, from torch's global generator.

    The data set seeds that generator for each image, so an augmentation depends on (seed, epoch, position).
    """

    def __init__(
        self,
        *,
        size: Sequence[int],
        scale: Sequence[float],
        ratio: Sequence[float],
        flip: float,
        rotate: float,
        color_jitter: float,
        hue: float,
        erase: float,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        fill = [round(255 * m) for m in mean]
        steps: list[Any] = []
        if rotate:
            steps.append(v2.RandomRotation(rotate, interpolation=InterpolationMode.BILINEAR, fill=fill))
        steps.append(
            v2.RandomResizedCrop(
                list(size), scale=tuple(scale), ratio=tuple(ratio), interpolation=BICUBIC, antialias=True
            )
        )
        if flip:
            steps.append(v2.RandomHorizontalFlip(flip))
        if color_jitter or hue:
            steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter, hue))
        steps.append(_ToFloat(mean, std))
        if erase:
            steps.append(v2.RandomErasing(erase))
        self.steps = steps

    def __call__(self, image: Tensor) -> Tensor:
        """Uint8 (3, H, W) -> float32 (3, height, width)."""
        for step in self.steps:
            image = step(image)
        return image


class TimmTransform:
    """The evaluation transform of a timm model: resize the short side, centre-crop, normalise.

    What is not given is looked up in the model's published configuration; `resolved` holds all of it.

    Raises:
        ValueError: timm has no such model.
    """

    def __init__(
        self,
        *,
        model: str,
        size: Sequence[int] | None = None,
        crop_pct: float | None = None,
        interpolation: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "size": size,
            "crop_pct": crop_pct,
            "interpolation": interpolation,
            "mean": mean,
            "std": std,
        }
        if None in given.values():
            given = _published(model) | {key: value for key, value in given.items() if value is not None}
        self.resolved: dict[str, Any] = given
        self.size = (int(given["size"][0]), int(given["size"][1]))
        self.crop_pct = float(given["crop_pct"])
        self.mode = InterpolationMode(given["interpolation"])
        self.to_float = _ToFloat(given["mean"], given["std"])

    def __call__(self, image: Tensor) -> Tensor:
        """Uint8 (3, H, W) -> float32 (3, height, width)."""
        height, width = self.size
        scale = max(height / self.crop_pct / image.shape[1], width / self.crop_pct / image.shape[2])
        inner = [max(height, int(image.shape[1] * scale)), max(width, int(image.shape[2] * scale))]
        image = TF.resize(image, inner, interpolation=self.mode, antialias=True)
        return self.to_float(TF.center_crop(image, [height, width]))


def _published(model: str) -> dict[str, Any]:
    if model.startswith(("hf_hub:", "hf-hub:")):
        from timm.models import load_model_config_from_hf

        config = load_model_config_from_hf(model.split(":", 1)[1])[0]
    elif timm.is_model(model):
        found = timm.models.get_pretrained_cfg(model)
        config = dataclasses.asdict(found) if found else {}
    else:
        raise ValueError(f"no timm model named {model!r}")
    data = resolve_data_config(pretrained_cfg=config)
    return {
        "size": list(data["input_size"][1:]),
        "crop_pct": data["crop_pct"],
        "interpolation": data["interpolation"],
        "mean": list(data["mean"]),
        "std": list(data["std"]),
    }
