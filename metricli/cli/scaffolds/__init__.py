"""The texts of new packages: what all share, and for each kind the door, the component and a test."""

from __future__ import annotations

from metricli.cli.scaffolds.batches import LOSSES, MINERS, SAMPLERS
from metricli.cli.scaffolds.images import EXTRACTORS, POSTPROCESSORS, TRANSFORMS
from metricli.cli.scaffolds.parts import Parts
from metricli.cli.scaffolds.steps import LOGGERS, OPTIMIZERS, SCHEDULERS

__all__ = ["PARTS"]

PARTS: dict[str, Parts] = {
    "extractors": EXTRACTORS,
    "transforms": TRANSFORMS,
    "samplers": SAMPLERS,
    "losses": LOSSES,
    "miners": MINERS,
    "optimizers": OPTIMIZERS,
    "schedulers": SCHEDULERS,
    "postprocessors": POSTPROCESSORS,
    "loggers": LOGGERS,
}
