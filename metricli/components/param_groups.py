"""Parameter groups: backbone and head apart, no weight decay on norms and biases."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    extractor: nn.Module,
    loss: nn.Module,
    *,
    lr: float,
    head_lr: float | None = None,
    weight_decay: float = 0.0,
    decay_norms_and_biases: bool = False,
) -> list[dict[str, Any]]:
    """Optimizer groups over the trainable parameters of a model and its loss, empty ones left out.

    The head is all that does not lie in `extractor.backbone` (everything is backbone where there is no such
    submodule), the loss's parameters included. Vectors and scalars (norm weights, biases, GeM's power, class
    tokens excluded: they have more dimensions) get no weight decay unless `decay_norms_and_biases`. Each
    group has `params`, `name`, `lr` and `weight_decay`.
    """
    backbone = getattr(extractor, "backbone", extractor)
    backbone_ids = {id(p) for p in backbone.parameters()}
    found: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for parameter in [*extractor.parameters(), *loss.parameters()]:
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        part = "backbone" if id(parameter) in backbone_ids else "head"
        decays = parameter.ndim > 1 or decay_norms_and_biases
        found.setdefault(part if decays else f"{part}, no decay", []).append(parameter)
    return [
        {
            "params": parameters,
            "name": name,
            "lr": head_lr if head_lr is not None and name.startswith("head") else lr,
            "weight_decay": 0.0 if name.endswith("no decay") else weight_decay,
        }
        for name, parameters in found.items()
    ]
