"""Every built-in plugin, from the entry points, with settings where it has required ones."""

from __future__ import annotations

from importlib.metadata import distribution
from typing import Any

REQUIRED: dict[tuple[str, str], dict[str, Any]] = {
    ("extractors", "timm"): {"model": "resnet18", "model_args": {"drop_path_rate": 0.1}, "dim": 16},
    ("extractors", "torchvision"): {"model": "resnet18", "pooling": "gem"},
    ("transforms", "timm"): {"model": "resnet18"},
    ("samplers", "balanced"): {"n_labels": 6, "n_instances": 2},
    ("samplers", "category_balanced"): {"n_labels": 2, "n_categories": 3, "n_instances": 2},
    ("samplers", "distinct_category_balanced"): {"n_labels": 2, "n_categories": 3, "n_instances": 2},
    ("losses", "pml"): {
        "loss": "NTXentLoss",
        "miner": {"name": "MultiSimilarityMiner", "args": {"epsilon": 0.2}},
    },
    ("miners", "pml"): {"miner": "TripletMarginMiner", "args": {"type_of_triplets": "semihard"}},
    ("postprocessors", "adaptive_threshold"): {"n_std": 3.0},
    ("postprocessors", "constant_threshold"): {"max_distance": 0.4},
    ("postprocessors", "pairwise"): {"program": "/reranker.pt", "inputs": "images"},
    ("schedulers", "step"): {"step_epochs": 3},
    ("schedulers", "multistep"): {"milestones": [2, 5]},
    ("schedulers", "exponential"): {"gamma": 0.9},
}

BUILT_IN = sorted(
    (entry.group.removeprefix("metricli."), entry.name)
    for entry in distribution("metricli").entry_points
    if entry.group.startswith("metricli.")
)
"""(kind, name) of each."""


def settings_of(kind: str, name: str) -> dict[str, Any]:
    """A mapping that a spec may hold for this plugin."""
    return {"name": name, **REQUIRED.get((kind, name), {})}


def installed(kind: str, *more: str) -> str:
    """The names of a kind as an error lists them, with those of a fake package."""
    return ", ".join(sorted([*(name for group, name in BUILT_IN if group == kind), *more]))
