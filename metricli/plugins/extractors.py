"""The doors to image models: timm and torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from metricli.errors import Problem
from metricli.specs.base import SpecPath
from metricli.specs.kinds import ExtractorSpec

if TYPE_CHECKING:
    from torch import nn

    from metricli.data.facts import TableFacts


class _Pooled(ExtractorSpec):
    """What both doors share: weights, pooling and the head behind it."""

    pretrained: bool = Field(False, description="start from the library's published weights (a download)")
    weights: SpecPath | None = Field(
        None,
        description="start from a local .safetensors, .pth, checkpoint or run directory; excludes pretrained",
    )
    pooling: Literal["avg", "gem", "cls"] = Field(
        "avg", description="avg as the model does it; gem: generalised mean; cls: the class token"
    )
    dim: int | None = Field(None, ge=1, description="project to so many dimensions; null: the backbone's own")
    bnneck: bool = Field(False, description="batch normalisation after the projection (Luo et al. 2019)")

    def check(self, spec: Any, table: TableFacts | None) -> list[Problem]:
        """One source of weights."""
        problems = super().check(spec, table)
        if self.pretrained and self.weights:
            problems.append(Problem("weights", "pretrained and weights exclude each other; remove one"))
        return problems


class Timm(_Pooled):
    """Any timm model, by name or as `hf_hub:owner/model`."""

    name: Literal["timm"] = "timm"
    model: str = Field(
        description="timm model name such as resnet50 or vit_small_patch16_224, or hf_hub:owner/model"
    )
    model_args: dict[str, Any] = Field(
        {}, description="further arguments of timm.create_model, such as {drop_path_rate: 0.1, img_size: 224}"
    )

    def build(self, *, load_weights: bool) -> nn.Module:
        """An `Extractor` over the timm model."""
        from metricli.components.extractors import timm_extractor

        return timm_extractor(
            self.model,
            pretrained=self.pretrained and load_weights,
            weights=self.weights if load_weights else None,
            model_args=self.model_args,
            pooling=self.pooling,
            dim=self.dim,
            bnneck=self.bnneck,
            normalize=self.normalize,
            offline=not load_weights,
        )


class Torchvision(_Pooled):
    """Any torchvision classification model."""

    name: Literal["torchvision"] = "torchvision"
    model: str = Field(description="torchvision model name such as resnet50 or vit_b_16")

    def build(self, *, load_weights: bool) -> nn.Module:
        """An `Extractor` over the torchvision model."""
        from metricli.components.extractors import torchvision_extractor

        return torchvision_extractor(
            self.model,
            pretrained=self.pretrained and load_weights,
            weights=self.weights if load_weights else None,
            pooling=self.pooling,
            dim=self.dim,
            bnneck=self.bnneck,
            normalize=self.normalize,
        )
