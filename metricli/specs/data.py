"""The `data` and `compute` blocks, shared by every verb."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from metricli.specs.base import SpecModel, SpecPath

Device = Literal["auto", "cpu", "cuda", "mps"]
Workers = Annotated[
    int | None,
    Field(
        ge=0,
        description="processes that decode images; null: up to 4 for over 2,000 images, else none",
    ),
]


class ComputeSpec(SpecModel):
    """Where to compute."""

    gpus: int = Field(1, ge=1, description="processes, one for each GPU; the results do not depend on it")
    device: Device = Field("auto", description="auto takes cuda, then mps, then cpu")


class DataSpec(SpecModel):
    """The table of images and how to read them."""

    table: SpecPath = Field(description="CSV or parquet with label, path, split, is_query, is_gallery, ...")
    root: SpecPath | None = Field(
        None, description="folder the paths start from; null: the table's own folder"
    )
    max_pixels: int = Field(100_000_000, ge=1, description="refuse to decode an image with more pixels")
    on_bad_image: Literal["raise", "skip"] = Field(
        "raise",
        description="stop at an image that cannot be read, or go on without it: training takes another image "
        "of its label (of any, if none can be read), evaluation leaves the row out; skipped rows are counted "
        "and listed",
    )
    check: Literal["files", "deep"] = Field(
        "files",
        description="before any work: see that the files exist, or decode each image as well, which finds "
        "all bad ones at once; what it finds is remembered, so that the next time only new files are decoded",
    )
    allow_outside_root: bool = Field(False, description="accept paths that leave the root")
