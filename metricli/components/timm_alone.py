"""timm, without wandb: timm.utils imports that where it is installed, which takes a third of a second and
leaves folders in /tmp when the process is killed. All modules take timm from here."""

from __future__ import annotations

import sys

if "wandb" in sys.modules:
    import timm
else:
    sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        import timm
    finally:
        del sys.modules["wandb"]

from timm.data.config import resolve_data_config
from timm.layers.norm_act import BatchNormAct2d
from timm.models import group_parameters, load_model_config_from_hf
from timm.utils.model_ema import ModelEmaV3

__all__ = [
    "BatchNormAct2d",
    "ModelEmaV3",
    "group_parameters",
    "load_model_config_from_hf",
    "resolve_data_config",
    "timm",
]
