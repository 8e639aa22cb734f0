"""The `prediction` block, the spec of `metricli predict`, and the words of its `--shard`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from metricli.errors import UsageError
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


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`2/8`, the second of eight parts of the rows, as (2, 8).

    Raises:
        UsageError: it is no such pair.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    shard = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= shard[0] <= shard[1]:
        raise UsageError(
            f"--shard {text!r}: expected I/N with 1 <= I <= N, such as 2/8",
            hint="array jobs count from 1 with --array=1-N" if found else "",
        )
    return shard
