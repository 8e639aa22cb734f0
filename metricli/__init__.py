"""metricli: one YAML spec in, a trained, judged and shipped image embedding model out.

The public names load on first use, so that `import metricli` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from metricli.api import (
        check_processes,
        dry_run,
        evaluate,
        inspect_dataset,
        load_extractor,
        merge,
        predict,
        train,
        validate,
    )
    from metricli.errors import MetricliError, Problem
    from metricli.plugins.extractors import Timm, Torchvision
    from metricli.plugins.losses.classification import (
        AdaCos,
        ArcFace,
        CosFace,
        NormalizedSoftmax,
        SubCenterArcFace,
    )
    from metricli.plugins.losses.memory import MemorySpec
    from metricli.plugins.losses.pair_softmax import NPairs, NTXent, SupCon
    from metricli.plugins.losses.pairs import Circle, Contrastive, LiftedStructure, MultiSimilarity
    from metricli.plugins.losses.proxies import ProxyAnchor, ProxyNCA, SoftTriple
    from metricli.plugins.losses.rankings import FastAP, RecallAtK, SmoothAP, SurrogatePrecision
    from metricli.plugins.losses.triplet import Triplet
    from metricli.plugins.miners import (
        AllTriplets,
        DistanceWeighted,
        EasyPositive,
        HardCluster,
        HardTriplets,
        NHard,
        SemiHard,
    )
    from metricli.plugins.samplers import Balanced, CategoryBalanced, DistinctCategoryBalanced
    from metricli.plugins.transforms import Augment, ResizeNormalize, TimmTransform
    from metricli.reports import TrainReport, ValidateReport
    from metricli.specs.data import ComputeSpec, DataSpec
    from metricli.specs.predict import PredictionSpec
    from metricli.specs.train import TrainingSpec, TrainSpec, WeightedLossSpec
    from metricli.specs.validate import MetricsSpec, TransformsSpec, ValidationSpec

_HOMES = {
    "api": (
        "check_processes",
        "dry_run",
        "evaluate",
        "inspect_dataset",
        "load_extractor",
        "merge",
        "predict",
        "report",
        "train",
        "validate",
    ),
    "errors": ("MetricliError", "Problem"),
    "plugins.extractors": ("Timm", "Torchvision"),
    "plugins.losses.classification": (
        "AdaCos",
        "ArcFace",
        "CosFace",
        "NormalizedSoftmax",
        "SubCenterArcFace",
    ),
    "plugins.losses.memory": ("MemorySpec",),
    "plugins.losses.pair_softmax": (
        "NPairs",
        "NTXent",
        "SupCon",
    ),
    "plugins.losses.pairs": (
        "Circle",
        "Contrastive",
        "LiftedStructure",
        "MultiSimilarity",
    ),
    "plugins.losses.proxies": (
        "ProxyAnchor",
        "ProxyNCA",
        "SoftTriple",
    ),
    "plugins.losses.rankings": (
        "FastAP",
        "RecallAtK",
        "SmoothAP",
        "SurrogatePrecision",
    ),
    "plugins.losses.triplet": ("Triplet",),
    "plugins.miners": (
        "AllTriplets",
        "DistanceWeighted",
        "EasyPositive",
        "HardCluster",
        "HardTriplets",
        "NHard",
        "SemiHard",
    ),
    "plugins.samplers": ("Balanced", "CategoryBalanced", "DistinctCategoryBalanced"),
    "plugins.transforms": ("Augment", "ResizeNormalize", "TimmTransform"),
    "reports": ("TrainReport", "ValidateReport"),
    "specs.data": ("ComputeSpec", "DataSpec"),
    "specs.predict": ("PredictionSpec",),
    "specs.train": ("TrainSpec", "TrainingSpec", "WeightedLossSpec"),
    "specs.validate": ("MetricsSpec", "TransformsSpec", "ValidationSpec"),
}
_HOME_OF = {name: f"metricli.{home}" for home, found in _HOMES.items() for name in found}

__all__ = [
    "AdaCos",
    "AllTriplets",
    "ArcFace",
    "Augment",
    "Balanced",
    "CategoryBalanced",
    "Circle",
    "ComputeSpec",
    "Contrastive",
    "CosFace",
    "DataSpec",
    "DistanceWeighted",
    "DistinctCategoryBalanced",
    "EasyPositive",
    "FastAP",
    "HardCluster",
    "HardTriplets",
    "LiftedStructure",
    "MemorySpec",
    "MetricliError",
    "MetricsSpec",
    "MultiSimilarity",
    "NHard",
    "NormalizedSoftmax",
    "NPairs",
    "NTXent",
    "PredictionSpec",
    "Problem",
    "ProxyAnchor",
    "ProxyNCA",
    "RecallAtK",
    "ResizeNormalize",
    "SemiHard",
    "SmoothAP",
    "SoftTriple",
    "SubCenterArcFace",
    "SupCon",
    "SurrogatePrecision",
    "Timm",
    "TimmTransform",
    "Torchvision",
    "TrainingSpec",
    "TrainReport",
    "TrainSpec",
    "TransformsSpec",
    "Triplet",
    "ValidateReport",
    "ValidationSpec",
    "WeightedLossSpec",
    "__version__",
    "check_processes",
    "dry_run",
    "evaluate",
    "inspect_dataset",
    "load_extractor",
    "merge",
    "predict",
    "report",
    "train",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'metricli' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
