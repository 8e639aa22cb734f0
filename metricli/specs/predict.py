"""The `prediction` block, and the spec of `metricli predict`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from metricli.specs.base import SpecModel
from metricli.specs.data import Workers
from metricli.specs.validate import InferenceSpec


class PredictionSpec(SpecModel):
    """How to write features."""

    batch_size: int = Field(256, ge=1, description="images in a forward pass, per process")
    num_workers: Workers = None
    dtype: Literal["float32", "float16"] = Field("float32", description="type of the saved features")


class PredictSpec(InferenceSpec):
    """The spec of `metricli predict`."""

    validation: Any = Field(None, description="not used here")
    prediction: PredictionSpec = Field(default_factory=PredictionSpec, description="how to write features")
