"""Local weights for an extractor: a .safetensors, a .pth without code, or the best.ckpt of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from metricli.components.tensorfile import read_tensor_file
from metricli.errors import CheckpointError

__all__ = ["load_weights", "read_weights"]


def load_weights(extractor: nn.Module, backbone: nn.Module, path: str) -> None:
    """Load local weights into an extractor: all of it from a best.ckpt, else the backbone.

    Classifier layers that the backbone does not have are left aside; every weight that it has must be there.

    Raises:
        CheckpointError: the file cannot be read, or it lacks a weight of the model or has another shape.
    """
    state, whole = read_weights(Path(path))
    target: nn.Module = extractor if whole else backbone
    own = target.state_dict()
    state = _without_prefix(state, own)
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    shapes = [name for name in own if name in state and state[name].shape != own[name].shape]
    if missing or shapes:
        names = ", ".join((missing + shapes)[:3]) + (", ..." if len(missing + shapes) > 3 else "")
        what = f"lacks {len(missing)} and misshapes {len(shapes)} of the model's {len(own)} weights"
        raise CheckpointError(f"{path!r} {what}: {names}", hint="is it of the same model?")
    target.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def read_weights(path: Path) -> tuple[dict[str, Tensor], bool]:
    """A state dict from a .safetensors, .pth or best.ckpt, and whether it is a whole extractor's.

    Raises:
        CheckpointError: the file cannot be read without running code of its own.
    """
    if path.suffix == ".ckpt":
        tensors, _, _ = read_tensor_file(path)
        own = {n.removeprefix("extractor."): t for n, t in tensors.items() if n.startswith("extractor.")}
        return own, True
    if not path.is_file():
        raise CheckpointError(f"the weights {str(path)!r} do not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path), False
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read the weights {str(path)!r}: {error}") from None
    except Exception as error:  # pickle's own errors, one of which is a refused class
        what = str(error).splitlines()[0]
        raise CheckpointError(f"the weights {str(path)!r} are more than tensors, refused: {what}") from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise CheckpointError(f"the weights {str(path)!r} hold no tensors by name")
    return tensors, False


def _without_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def hits(prefix: str) -> int:
        return sum(prefix + name in state for name in own)

    best = max(("", "module.", "backbone.", "model.", "encoder."), key=hits)
    return {name.removeprefix(best): tensor for name, tensor in state.items()}
