"""A trained extractor and its transform, for a program of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from metricli.data.images import DEFAULT_MAX_PIXELS, crop_box, open_image, upright_rgb
from metricli.runs.checkpoints import read_best, spec_of
from metricli.runs.directory import find_checkpoint
from metricli.runs.fitting import refuse_lookups
from metricli.runs.parts import built_extractor
from metricli.specs.predict import PredictSpec

__all__ = ["ImageTransform", "load_extractor"]


@dataclass(frozen=True)
class ImageTransform:
    """From an image, or the path of one, to what the extractor takes: a tensor (3, height, width).

    Images are read as `predict` reads them: upright, as RGB, transparent pixels over white.
    """

    transform: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __call__(self, image: str | Path | Image.Image, box: Sequence[int] | None = None) -> Tensor:
        """The tensor, of `box` (left, top, right, bottom) alone if it is given.

        Raises:
            DataError: the file cannot be read, or the box reaches outside the image.
        """
        if isinstance(image, Image.Image):
            upright = upright_rgb(image)
        else:
            upright = open_image(Path(image), max_pixels=self.max_pixels)
        if box is not None:
            upright = crop_box(upright, box)
        return self.transform(pil_to_tensor(upright)).to(self.dtype)


def load_extractor(ckpt: str | Path | None) -> tuple[nn.Module, ImageTransform]:
    """The extractor of a checkpoint in eval mode on the CPU, and its transform.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or its weights do not fit.
        SpecError: it names an extractor or transform that is not installed.
    """
    path = find_checkpoint(ckpt)
    best = read_best(path)
    spec = spec_of(best, None, PredictSpec, {}, ()).spec
    refuse_lookups(spec, path)
    assert spec.extractor is not None
    extractor = built_extractor(spec.extractor, best=best, dtype=best.dtype)
    best.load_into(extractor)
    limit = DEFAULT_MAX_PIXELS if spec.data is None else spec.data.max_pixels
    return extractor.eval(), ImageTransform(spec.transforms.eval.build(), best.dtype, limit)
