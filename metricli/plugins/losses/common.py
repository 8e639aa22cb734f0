"""What the doors to losses have in common."""

from __future__ import annotations

from typing import Any

from metricli.errors import Problem


def judged_by_another(path: str, distance: str, spec: Any) -> list[Problem]:
    """Of normalised embeddings both distances give the same ranking; of others they do not."""
    judged = spec.validation.distance
    if spec.extractor.normalize or judged == distance:
        return []
    what = (
        f"the loss learns {distance} distances and validation.distance is {judged}, which rank embeddings "
        f"that are not normalised differently; set validation.distance: {distance}"
    )
    return [Problem(path, what, severity="warning")]
