"""The doors to image transforms: uint8 (3, H, W) in, normalised float (3, size, size) out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from metricli.errors import Problem
from metricli.specs.base import show, spec_error
from metricli.specs.kinds import TransformSpec

if TYPE_CHECKING:
    from torch import Tensor

    from metricli.data.facts import TableFacts

IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


def _size(value: Any) -> Any:
    pair = [value, value] if isinstance(value, int) and not isinstance(value, bool) else value
    if not (isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n >= 1 for n in pair)):
        raise spec_error(f"expected a side in pixels or [height, width], got {show(value)}")
    return pair


_SIDE = {"type": "integer", "minimum": 1}
_SIDES = {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2}
Size = Annotated[list[int], BeforeValidator(_size), WithJsonSchema({"anyOf": [_SIDE, _SIDES]})]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class ResizeNormalize(TransformSpec):
    """Resize and normalise; the usual transform of evaluation."""

    name: Literal["resize_normalize"] = "resize_normalize"
    size: Size = Field([224, 224], description="side in pixels, or [height, width]")
    fit: Literal["stretch", "crop", "pad"] = Field(
        "stretch", description="how an image of another aspect fits: squeezed, centre-cropped, or padded"
    )
    mean: Channels = Field(IMAGENET_MEAN, description="mean of each channel, of values in [0, 1]")
    std: Channels = Field(IMAGENET_STD, description="standard deviation of each channel")

    def build(self) -> Callable[[Tensor], Tensor]:
        """A `ResizeNormalize`."""
        from metricli.components import transforms

        return transforms.ResizeNormalize(size=self.size, fit=self.fit, mean=self.mean, std=self.std)


class Augment(TransformSpec):
    """Random crop, flip, rotation, colour jitter and erasing; the usual transform of training."""

    name: Literal["augment"] = "augment"
    size: Size = Field([224, 224], description="side in pixels, or [height, width]")
    scale: Pair = Field([0.5, 1.0], description="share of the area that a random crop keeps: [least, most]")
    ratio: Pair = Field([0.75, 1.3333], description="width / height of a random crop: [least, most]")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    rotate: float = Field(0.0, ge=0, le=180, description="rotate by up to so many degrees")
    color_jitter: float = Field(
        0.2, ge=0, description="strength of brightness, contrast and saturation jitter"
    )
    hue: float = Field(0.0, ge=0, le=0.5, description="strength of hue jitter")
    erase: float = Field(0.0, ge=0, le=1, description="probability of random erasing (Zhong et al. 2020)")
    mean: Channels = Field(IMAGENET_MEAN, description="mean of each channel, of values in [0, 1]")
    std: Channels = Field(IMAGENET_STD, description="standard deviation of each channel")

    def build(self) -> Callable[[Tensor], Tensor]:
        """An `Augment`; its randomness is torch's global generator, seeded for each image."""
        from metricli.components import transforms

        return transforms.Augment(**self.model_dump(exclude={"name"}))

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """Training and evaluation at two sizes is doubtful."""
        problems = super().check(spec, table)
        for field in ("scale", "ratio"):
            least, most = getattr(self, field)
            if not 0 < least <= most:
                problems.append(
                    Problem(field, f"must be [least, most] with 0 < least <= most, got {[least, most]}")
                )
        if self.scale[1] > 1:
            problems.append(
                Problem("scale", f"a crop cannot keep more than the whole image, got {self.scale}")
            )
        evaluated = getattr(spec.transforms.eval, "size", self.size)
        if spec.transforms.train is self and evaluated != self.size:
            what = f"training sees {_by(self.size)} pixels and evaluation {_by(evaluated)}; was it meant?"
            problems.append(Problem("size", what, severity="warning"))
        return problems


def _by(size: list[int]) -> str:
    return "x".join(map(str, size))


class TimmTransform(TransformSpec):
    """The evaluation transform that a timm model was published with."""

    name: Literal["timm"] = "timm"
    model: str = Field(description="timm model name whose own input size, crop, mean and std are used")
    size: Size | None = Field(None, description="input size instead of the model's own")
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="centre crop share instead of the model's own"
    )
    crop_mode: Literal["center", "squash", "border"] | None = Field(
        None, description="how another aspect fits, instead of the model's own: cut, squeezed, or padded"
    )
    interpolation: Literal["bilinear", "bicubic", "nearest", "nearest-exact"] | None = Field(
        None, description="interpolation instead of the model's own"
    )
    mean: Channels | None = Field(None, description="mean instead of the model's own")
    std: Channels | None = Field(None, description="standard deviation instead of the model's own")

    def build(self) -> Callable[[Tensor], Tensor]:
        """A `TimmTransform`; its `resolved` holds the model's own values for a checkpoint."""
        from metricli.components import transforms

        return transforms.TimmTransform(**self.model_dump(exclude={"name"}))
