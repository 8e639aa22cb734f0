"""Parameter groups: backbone and head apart, no weight decay on norms and biases, rates by layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from metricli.components.stages import layer_depths


def parameter_groups(
    extractor: nn.Module,
    loss: nn.Module,
    *,
    lr: float,
    head_lr: float | None = None,
    loss_lr: float | None = None,
    layer_decay: float | None = None,
    weight_decay: float = 0.0,
    decay_norms_and_biases: bool = False,
) -> list[dict[str, Any]]:
    """Optimizer groups over the trainable parameters of a model and its loss, empty ones left out.

    The head is all that does not lie in `extractor.backbone` (everything is backbone where there is no such
    submodule), the loss's parameters included unless they have a rate of their own (`loss_lr`). Vectors and
    scalars (norm weights, biases, GeM's power, class tokens excluded: they have more dimensions) get no
    weight decay unless `decay_norms_and_biases`. With `layer_decay` the last layer of the backbone has `lr`,
    and each one before it that of the next times `layer_decay` (Clark et al., ELECTRA, 2020); the last
    layer's groups come first. Each group has `params`, `name`, `lr` and `weight_decay`.

    Raises:
        ValueError: `layer_decay` for a backbone that does not name its layers.
    """
    backbone = getattr(extractor, "backbone", extractor)
    backbone_ids = {id(p) for p in backbone.parameters()}
    depths = layer_depths(backbone) if layer_decay is not None else {}
    deepest = max(depths.values(), default=0)
    rates = {"head": lr if head_lr is None else head_lr}
    rates["loss"] = rates["head"] if loss_lr is None else loss_lr
    found: dict[tuple[int, str, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for module in (extractor, loss):
        for parameter in module.parameters():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if id(parameter) in backbone_ids:
                below, part = deepest - depths.get(id(parameter), deepest), "backbone"
            else:
                below, part = 0, "loss" if module is loss and loss_lr is not None else "head"
            decays = parameter.ndim > 1 or decay_norms_and_biases
            found.setdefault((below, part, decays), []).append(parameter)
    if depths:
        found = dict(sorted(found.items(), key=lambda item: item[0][0]))
    return [
        {
            "params": parameters,
            "name": _name(part, deepest - below if depths and part == "backbone" else None, decays),
            "lr": rates.get(part, lr) * (layer_decay or 1.0) ** below,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (below, part, decays), parameters in found.items()
    ]


def _name(part: str, layer: int | None, decays: bool) -> str:
    return part + ("" if layer is None else f" layer {layer}") + ("" if decays else ", no decay")
