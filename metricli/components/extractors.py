"""Extractors: a timm or torchvision backbone, pooling, and a head of projection, BNNeck and normalisation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from metricli.components.timm_alone import timm
from metricli.components.weights import load_weights, tensors_only
from metricli.errors import CheckpointError, UsageError

Pooling = Literal["avg", "gem", "cls"]

_FILES = ("cache_dir", "checkpoint_path")
"""Arguments by which timm.create_model reads files, pretrained or not."""

__all__ = ["Extractor", "GeM", "timm_extractor", "torchvision_extractor"]


class GeM(nn.Module):
    """Generalised mean over positions with a learned power (Radenovic et al. 2018), in float32 at least."""

    def __init__(self, power: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, C) -> (B, C)."""
        with torch.autocast(features.device.type, enabled=False):
            x = features if features.dtype == torch.float64 else features.float()
            return x.clamp(min=self.eps).pow(self.power).mean(1).pow(1 / self.power)


class Extractor(nn.Module):
    """Images (B, 3, H, W) to embeddings (B, dim): `backbone` features, then the head.

    Args:
        backbone: the pretrained part, which freezing freezes.
        channels: C, the channels of its features.
        pool: (B, N, C) -> (B, C) over `backbone.forward_features`; None if the backbone pools itself.
        skip_tokens: of token features, the first that are left out (class and register tokens).
        dim: project to so many dimensions; None keeps C.
        bnneck: batch normalisation without bias after the projection (Luo et al. 2019).
        normalize: L2-normalise the embeddings, in float32 at least.

    Attributes:
        dim: length of an embedding.
        resolved: spec settings that building looked up, for a checkpoint that must not look them up again.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        channels: int,
        pool: nn.Module | None = None,
        skip_tokens: int = 0,
        dim: int | None = None,
        bnneck: bool = False,
        normalize: bool = True,
        resolved: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.channels = channels
        self.skip_tokens = skip_tokens
        self.projection = nn.Linear(channels, dim) if dim else None
        self.dim: int = dim or channels
        self.bnneck = nn.BatchNorm1d(self.dim) if bnneck else None
        if self.bnneck is not None:
            self.bnneck.bias.requires_grad_(False)
        self.normalize = normalize
        self.resolved = dict(resolved or {})

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, dim)."""
        try:
            x = self._features(images)
        except (AssertionError, RuntimeError, ValueError) as error:  # what backbones raise at wrong images
            if _is_of_the_machine(error):
                raise
            size = "x".join(map(str, images.shape[2:]))
            what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(
                f"the backbone does not take {len(images)} images of {size} pixels: {what}",
                hint="set the size of both transforms to its own, or extractor.model_args: {img_size: ...}; "
                "batch normalisation trains on two images or more",
            ) from None
        if not self.normalize:
            return x
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)

    def _features(self, images: Tensor) -> Tensor:
        x = self._pooled(images)
        if self.projection is not None:
            x = self.projection(x)
        return x if self.bnneck is None else self.bnneck(x)

    def _pooled(self, images: Tensor) -> Tensor:
        if self.pool is None:
            own: Tensor = self.backbone(images)
            return own
        pooled: Tensor = self.pool(self._positions(images))
        norm = getattr(self.backbone, "fc_norm", None)  # timm's place for the norm of pooled tokens
        return norm(pooled) if isinstance(norm, nn.Module) else pooled

    def _positions(self, images: Tensor) -> Tensor:
        """Unpooled features (B, N, C) of maps (B, C, H, W), (B, H, W, C) or tokens (B, N, C)."""
        found: Tensor = self.backbone.forward_features(images)  # type: ignore[operator]
        if not isinstance(found, Tensor):
            raise UsageError("the backbone gives several feature maps, not one; take pooling avg")
        if found.ndim == 3:
            return found[:, self.skip_tokens :]
        return found.flatten(1, 2) if self._channels_last else found.flatten(2).transpose(1, 2)

    @property
    def _channels_last(self) -> bool:
        return str(getattr(self.backbone, "output_fmt", "NCHW")) == "NHWC"


def _is_of_the_machine(error: Exception) -> bool:
    """Whether memory, a device or another process is at fault, not the images."""
    kinds = (torch.OutOfMemoryError, torch.AcceleratorError)
    words = ("CUDA", "CUDNN", "CUBLAS", "allocate memory", "gloo", "NCCL", "DataLoader worker")
    return isinstance(error, kinds) or any(word.lower() in str(error).lower() for word in words)


class _ClassToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


class _MeanToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1)


def timm_extractor(
    model: str,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    pooling: Pooling = "avg",
    dim: int | None = None,
    bnneck: bool = False,
    normalize: bool = True,
    offline: bool = False,
) -> Extractor:
    """An extractor over any timm model.

    `avg` is the model's own pooling and norm; of a model that pools by a class token or by attention, the
    mean of its tokens without the prefix tokens. `weights` is a local .safetensors, .pth or checkpoint of a
    run. `offline` builds from the arguments alone, for weights that come later: no file, no hub.

    Raises:
        UsageError: no such model or argument, a pooling it cannot do, or weights that cannot be downloaded.
        CheckpointError: `weights` cannot be read or do not fit; a model of a hub, `offline`.
    """
    settings = dict(model_args or {})
    if offline:
        settings = _built_from_nothing(model, settings)
    resolved: dict[str, Any] = {}
    try:
        if ":" in model:
            architecture, published = _published_model(model)
            settings = published | settings
            resolved = {"model": architecture, "model_args": settings}
        with tensors_only():
            backbone: Any = timm.create_model(model, pretrained=pretrained, num_classes=0, **settings)
    except Exception as error:  # timm raises RuntimeError, TypeError, OSError and hub errors alike
        raise UsageError(_model_problem("timm", model, pretrained, error, timm.list_models())) from None
    prefix = int(getattr(backbone, "num_prefix_tokens", 0))
    if pooling == "cls" and not prefix:
        raise UsageError(f"the timm model {model!r} has no class token; take pooling avg or gem")
    has_tokens = hasattr(backbone, "num_prefix_tokens") or hasattr(backbone, "pos_embed")
    pools_itself = pooling == "avg" and (not has_tokens or getattr(backbone, "global_pool", "avg") == "avg")
    pools: dict[Pooling, type[nn.Module]] = {"cls": _ClassToken, "avg": _MeanToken, "gem": GeM}
    extractor = Extractor(
        backbone,
        channels=int(backbone.head_hidden_size if pools_itself else backbone.num_features),
        pool=None if pools_itself else pools[pooling](),
        skip_tokens=0 if pooling == "cls" else prefix,
        dim=dim,
        bnneck=bnneck,
        normalize=normalize,
        resolved=resolved,
    )
    if weights:
        load_weights(extractor, extractor.backbone, weights)
    return extractor


def torchvision_extractor(
    model: str,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    pooling: Pooling = "avg",
    dim: int | None = None,
    bnneck: bool = False,
    normalize: bool = True,
) -> Extractor:
    """An extractor over a torchvision classification model without its last linear layer.

    `avg` is the model's own pooling (of a vision transformer: use `cls`); `gem` replaces its `avgpool`.

    Raises:
        UsageError: no such model, a pooling it cannot do, or weights that cannot be downloaded.
        CheckpointError: `weights` cannot be read or do not fit.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    try:
        with warnings.catch_warnings(), tensors_only():  # about how the inceptions draw their initial weights
            warnings.simplefilter("ignore", FutureWarning)
            backbone = torchvision.models.get_model(model, weights="DEFAULT" if pretrained else None)
    except Exception as error:
        raise UsageError(_model_problem("torchvision", model, pretrained, error, known)) from None
    for auxiliary in ("AuxLogits", "aux1", "aux2"):  # of the inceptions: outputs only training has
        if hasattr(backbone, auxiliary):
            setattr(backbone, auxiliary, None)
            backbone.aux_logits = False
    layers = [(name, layer) for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise UsageError(f"the torchvision model {model!r} ends in no linear layer that could be taken off")
    place, linear = layers[-1]
    parent = backbone.get_submodule(place.rpartition(".")[0])
    setattr(parent, place.rpartition(".")[2], nn.Identity())
    if (pooling == "cls") != hasattr(backbone, "class_token"):
        allowed = "cls" if hasattr(backbone, "class_token") else "avg or gem"
        raise UsageError(
            f"the torchvision model {model!r} cannot pool by {pooling!r}; take pooling {allowed}"
        )
    if pooling == "gem":
        own = getattr(backbone, "avgpool", None)
        if not isinstance(own, nn.AdaptiveAvgPool2d) or own.output_size not in (1, (1, 1)):
            raise UsageError(
                f"the torchvision model {model!r} has no avgpool to 1x1 that gem could replace; take avg"
            )
        backbone.avgpool = _GeM2d()
    extractor = Extractor(backbone, channels=linear.in_features, dim=dim, bnneck=bnneck, normalize=normalize)
    if weights:
        load_weights(extractor, extractor.backbone, weights)
    return extractor


def _published_model(model: str) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments of a model on the hub, `hf_hub:owner/model`."""
    source, _, name = model.partition(":")
    if source not in ("hf_hub", "hf-hub"):
        raise ValueError(f"{source!r} is no place of models, expected hf_hub:owner/model")
    _, architecture, args = timm.models.load_model_config_from_hf(name)
    return architecture, {k: v for k, v in (args or {}).items() if k not in ("num_classes", *_FILES)}


def _built_from_nothing(model: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments that shape a model, without those that read files."""
    if ":" in model:
        raise CheckpointError(
            f"the model {model!r} would have to be looked up on the hub, which no checkpoint may ask for",
            hint="give one that metricli has trained: it holds the architecture",
        )
    return {key: value for key, value in settings.items() if key not in _FILES}


class _GeM2d(GeM):
    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1)."""
        return super().forward(features.flatten(2).transpose(1, 2))[:, :, None, None].to(features.dtype)


def _model_problem(library: str, model: str, pretrained: bool, error: Exception, known: list[str]) -> str:
    from difflib import get_close_matches

    if ":" not in model and model.split(".")[0] not in known:
        near = get_close_matches(model.lower(), known, n=1)
        return f"no {library} model named {model!r}" + (f", did you mean {near[0]!r}?" if near else "")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    what = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    doing = "load the published weights of" if pretrained else "create"
    return f"cannot {doing} the {library} model {model!r}: {what}"
