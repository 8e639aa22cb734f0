"""Image transforms by torchvision v2: uint8 (3, H, W) in, normalised float32 (3, height, width) out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from metricli.components.timm_alone import load_model_config_from_hf, resolve_data_config, timm
from metricli.errors import UsageError

__all__ = ["Augment", "ResizeNormalize", "TimmTransform"]

CropMode = Literal["center", "squash", "border"]
BICUBIC = InterpolationMode.BICUBIC
_TENSOR_MODES = (
    InterpolationMode.BILINEAR,
    InterpolationMode.BICUBIC,
    InterpolationMode.NEAREST,
    InterpolationMode.NEAREST_EXACT,
)


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
    """The evaluation transform of a timm model: resize, centre-crop, normalise, as timm itself does.

    What is not given is looked up in the model's published configuration; `resolved` holds all of it.
    `crop_mode` "center" covers `size / crop_pct` and cuts the middle, "squash" squeezes to it and cuts the
    middle, "border" fits inside it and fills up with the mean colour.

    Raises:
        UsageError: timm has no such model or interpolation, or the hub cannot be reached.
    """

    def __init__(
        self,
        *,
        model: str,
        size: Sequence[int] | None = None,
        crop_pct: float | None = None,
        crop_mode: CropMode | None = None,
        interpolation: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "size": size,
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
            "interpolation": interpolation,
            "mean": mean,
            "std": std,
        }
        if None in given.values():
            given = _published(model) | {key: value for key, value in given.items() if value is not None}
        self.resolved: dict[str, Any] = given
        self.size = (int(given["size"][0]), int(given["size"][1]))
        self.crop_pct = float(given["crop_pct"])
        self.crop_mode = given["crop_mode"]
        known = {mode.value: mode for mode in _TENSOR_MODES}
        if given["interpolation"] not in known:
            names = ", ".join(known)
            raise UsageError(f"no interpolation named {given['interpolation']!r} for tensors; known: {names}")
        self.mode = known[given["interpolation"]]
        self.fill = [round(255 * m) for m in given["mean"]]
        self.to_float = _ToFloat(given["mean"], given["std"])

    def __call__(self, image: Tensor) -> Tensor:
        """Uint8 (3, H, W) -> float32 (3, height, width)."""
        image = TF.resize(image, self._inner(*image.shape[1:]), interpolation=self.mode, antialias=True)
        height, width = self.size
        down, right = max(0, height - image.shape[1]), max(0, width - image.shape[2])
        if self.crop_mode == "border" and (down or right):
            borders = [right // 2, down // 2, right - right // 2, down - down // 2]
            image = TF.pad(image, borders, fill=self.fill)
        return self.to_float(TF.center_crop(image, [height, width]))

    def _inner(self, height: int, width: int) -> list[int]:
        """Height and width to resize to; the roundings are timm's own."""
        target = [math.floor(side / self.crop_pct) for side in self.size]
        if self.crop_mode == "squash":
            return target
        if self.crop_mode == "center" and target[0] == target[1]:
            short = min(height, width)
            return [int(target[0] * height / short), int(target[0] * width / short)]
        ratios = (height / target[0], width / target[1])
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return [max(1, round(height / ratio)), max(1, round(width / ratio))]


def _published(model: str) -> dict[str, Any]:
    if model.startswith(("hf_hub:", "hf-hub:")):
        try:
            config = load_model_config_from_hf(model.split(":", 1)[1])[0]
        except Exception as error:  # whatever the hub's client raises
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"cannot look up the transform of {model!r}: {what}") from None
    elif timm.is_model(model):
        found = timm.models.get_pretrained_cfg(model)
        config = dataclasses.asdict(found) if found else {}
    else:
        near = get_close_matches(model.lower(), timm.list_models(), n=1)
        raise UsageError(f"no timm model named {model!r}" + (f", did you mean {near[0]!r}?" if near else ""))
    data = resolve_data_config(pretrained_cfg=config)
    return {
        "size": list(data["input_size"][1:]),
        "crop_pct": data["crop_pct"],
        "crop_mode": data["crop_mode"],
        "interpolation": data["interpolation"],
        "mean": list(data["mean"]),
        "std": list(data["std"]),
    }
