"""New extractors, transforms and postprocessors."""

from __future__ import annotations

from metricli.cli.scaffolds.parts import Parts

__all__ = ["EXTRACTORS", "POSTPROCESSORS", "TRANSFORMS"]

EXTRACTORS = Parts(
    door='''\
"""The door: what a spec may say. No torch until `build` is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from metricli.specs.kinds import ExtractorSpec
from pydantic import Field

if TYPE_CHECKING:
    from torch import nn


class $Class(ExtractorSpec):
    """A small convolutional network, trained from scratch."""

    name: Literal["$name"] = "$name"
    dim: int = Field(64, ge=1, description="length of the embedding")

    def build(self, *, load_weights: bool) -> nn.Module:
        """The module; without `load_weights` it may read no file, for a checkpoint will fill it."""
        from $package import components

        del load_weights
        return components.$Class(dim=self.dim, normalize=self.normalize)
''',
    component='''\
"""The extractor: a plain module with flat arguments that knows nothing of specs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class $Class(nn.Module):
    """Images (B, 3, H, W) to embeddings (B, dim)."""

    def __init__(self, *, dim: int = 64, normalize: bool = True) -> None:
        super().__init__()
        self.dim, self.normalize = dim, normalize
        self.backbone = nn.Sequential(  # what training.freeze_epochs freezes
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(32, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings, of unit length if `normalize`."""
        embeddings = self.head(self.backbone(images))
        return F.normalize(embeddings) if self.normalize else embeddings
''',
    test="""\
def test_the_shape_and_length_of_embeddings() -> None:
    import pytest
    import torch
    from $package.plugins import $Class

    extractor = $Class(dim=8).build(load_weights=False).eval()
    embeddings = extractor(torch.rand(2, 3, 32, 48))
    assert (extractor.dim, tuple(embeddings.shape)) == (8, (2, 8))
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1, 1], rel=1e-5)
""",
    usage="extractor: {name: $name, dim: 128}",
)

TRANSFORMS = Parts(
    door='''\
"""The door: what a spec may say. No torch until `build` is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from metricli.specs.kinds import TransformSpec
from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor


class $Class(TransformSpec):
    """Resizes, takes the colours away and normalises."""

    name: Literal["$name"] = "$name"
    size: list[int] = Field([224, 224], min_length=2, max_length=2, description="[height, width] in pixels")
    mean: float = Field(0.45, description="of the grey values in [0, 1]")
    std: float = Field(0.225, gt=0, description="standard deviation of the grey values")

    def build(self) -> Callable[[Tensor], Tensor]:
        """The callable."""
        from $package import components

        return components.$Class(size=self.size, mean=self.mean, std=self.std)
''',
    component='''\
"""The transform: a plain callable with flat arguments that knows nothing of specs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchvision.transforms.v2 import functional


class $Class:
    """A uint8 image (3, H, W) to a float image (3, *size) of equal channels."""

    def __init__(self, *, size: Sequence[int], mean: float = 0.45, std: float = 0.225) -> None:
        self.size, self.mean, self.std = list(size), mean, std

    def __call__(self, image: Tensor) -> Tensor:
        """The image for the model; chance, if there were any, would be torch's global generator."""
        resized = functional.resize(image, self.size, antialias=True)
        grey = functional.rgb_to_grayscale(resized, num_output_channels=3)
        normalised: Tensor = (grey.float() / 255 - self.mean) / self.std
        return normalised
''',
    test="""\
def test_white_becomes_a_value_by_hand() -> None:
    import pytest
    import torch
    from $package.components import $Class

    white = torch.full((3, 10, 20), 255, dtype=torch.uint8)
    image = $Class(size=[4, 6], mean=0.5, std=0.25)(white)
    assert tuple(image.shape) == (3, 4, 6)
    assert image.flatten().tolist() == pytest.approx([2.0] * 72, abs=0.02)
""",
    usage="transforms: {eval: {name: $name, size: [224, 224]}}",
    needs=("torch", "torchvision"),
)

POSTPROCESSORS = Parts(
    door='''\
"""The door: what a spec may say. No torch until `build` is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from metricli.specs.kinds import PostprocessorSpec
from pydantic import Field

if TYPE_CHECKING:
    from metricli.core.rankings import Rankings


class $Class(PostprocessorSpec):
    """Takes the mean of the gallery from all embeddings before they are compared."""

    name: Literal["$name"] = "$name"
    share: float = Field(1.0, ge=0, le=1, description="how much of the mean is taken away")

    def build(self) -> Callable[[Rankings], Rankings]:
        """The callable."""
        from $package import components

        return components.$Class(share=self.share)
''',
    component='''\
"""The postprocessor: a plain callable with flat arguments that knows nothing of specs."""

from __future__ import annotations

import torch.nn.functional as F
from metricli.core.rankings import Rankings


class $Class:
    """Embeddings less the gallery's mean, at unit length again; the search is done anew with them."""

    def __init__(self, *, share: float = 1.0) -> None:
        self.share = share
        self.notes: list[str] = []

    def __call__(self, given: Rankings) -> Rankings:
        """Other rankings; what stands in `notes` after is said."""
        mean = self.share * given.gallery.mean(dim=0)
        self.notes = [f"the mean that was taken away has the length {float(mean.norm()):.3f}"]
        gallery = F.normalize(given.gallery - mean)
        if given.queries is given.gallery:  # one-versus-rest: one tensor, and it should stay one
            return given.moved(queries=gallery, gallery=gallery)
        return given.moved(queries=F.normalize(given.queries - mean), gallery=gallery)
''',
    test="""\
def test_the_mean_is_gone() -> None:
    import torch
    from metricli.core.exclusion import Exclusion
    from metricli.core.rankings import Rankings
    from $package.components import $Class

    rows = torch.tensor([[1.0, 0.2], [1.0, -0.2], [1.0, 0.3], [1.0, -0.3]])
    ids = torch.arange(4)
    given = Rankings(rows, rows, "cosine", Exclusion(ids, ids), k=1)
    found = $Class()(given)
    assert found.result.indices.flatten().tolist() == [2, 3, 0, 1]  # those on the same side of the mean
    assert found.queries is found.gallery
""",
    usage="validation: {postprocessors: [$name]}",
)
