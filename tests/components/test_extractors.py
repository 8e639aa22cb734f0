from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricli.components.extractors import Extractor, GeM, timm_extractor
from metricli.errors import UsageError

TINY_SWIN = {
    "img_size": 64,
    "window_size": 2,
    "embed_dim": 24,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
}
TIMM: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "mobilenetv3_small_050": {},
    "resnet18": {},
    "swin_tiny_patch4_window7_224": TINY_SWIN,
    "test_vit": {"img_size": 64},
    "test_vit_relpos": {"img_size": 64},
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(side: int = 64, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def run(extractor: nn.Module, batch: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = extractor.eval()(images() if batch is None else batch)
    return found


def numpy_gem(positions: Tensor, power: float) -> np.ndarray:
    x = np.maximum(positions.double().numpy(), 1e-6)
    found: np.ndarray = (x**power).mean(1) ** (1 / power)
    return found


@pytest.mark.parametrize("pooling", ["avg", "gem"])
@pytest.mark.parametrize("model", TIMM)
def test_every_family_gives_rows_of_dim(model: str, pooling: Any) -> None:
    extractor = timm_extractor(model, model_args=TIMM[model], pooling=pooling)
    found = run(extractor)
    assert found.shape == (2, extractor.dim)
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-6)
    projected = timm_extractor(model, model_args=TIMM[model], pooling=pooling, dim=7, normalize=False)
    assert projected.dim == 7
    assert run(projected).shape == (2, 7)


@pytest.mark.parametrize("model", [m for m in TIMM if m != "test_vit"])
def test_avg_is_the_models_own_pooling(model: str) -> None:
    extractor = timm_extractor(model, model_args=TIMM[model], normalize=False)
    assert torch.equal(run(extractor), run(extractor.backbone))


@pytest.mark.parametrize("model", ["resnet18", "swin_tiny_patch4_window7_224", "test_vit"])
def test_gem_is_its_formula_over_all_positions(model: str) -> None:
    extractor = timm_extractor(model, model_args=TIMM[model], pooling="gem", normalize=False)
    assert isinstance(extractor.pool, GeM)
    extractor.pool.power.data.fill_(2.5)
    with torch.no_grad():
        found = extractor.eval().backbone.forward_features(images())
    if model == "resnet18":
        positions = torch.stack([found[:, :, i, j] for i in range(2) for j in range(2)], 1)
    elif model == "test_vit":
        positions = found[:, 1:]
    else:
        positions = torch.stack([found[:, i, j] for i in range(2) for j in range(2)], 1)
    np.testing.assert_allclose(run(extractor).numpy(), numpy_gem(positions, 2.5), rtol=1e-4)


def test_gem_of_power_one_is_the_mean_and_its_power_learns() -> None:
    x = torch.rand(3, 10, 4) + 0.1
    assert torch.allclose(GeM(1.0)(x), x.mean(1), atol=1e-6)
    gem = GeM(3.0)
    gem(x).sum().backward()
    assert gem.power.grad is not None
    step = 1e-3
    rise = (numpy_gem(x, 3 + step) - numpy_gem(x, 3 - step)).sum() / (2 * step)
    assert float(gem.power.grad) == pytest.approx(rise, rel=1e-4)


def test_gem_of_negative_features_is_finite_with_its_gradient() -> None:
    x = (-torch.rand(2, 5, 3)).requires_grad_()
    gem = GeM()
    gem(x).sum().backward()
    assert gem.power.grad is not None
    assert torch.isfinite(gem.power.grad)
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]


def test_tokens_by_class_token_and_by_mean_without_it() -> None:
    cls = timm_extractor("test_vit", model_args={"img_size": 64}, pooling="cls", normalize=False)
    mean = timm_extractor("test_vit", model_args={"img_size": 64}, pooling="avg", normalize=False)
    mean.load_state_dict(cls.state_dict())
    with torch.no_grad():
        tokens = cls.eval().backbone.forward_features(images())
    assert tokens.shape[1] == 1 + 16
    assert torch.equal(run(cls), tokens[:, 0])
    assert torch.allclose(run(mean), tokens[:, 1:].mean(1), atol=1e-6)


def test_register_tokens_are_left_out_too() -> None:
    args = {"img_size": 64, "reg_tokens": 3}
    extractor = timm_extractor("test_vit", model_args=args, pooling="avg", normalize=False)
    with torch.no_grad():
        tokens = extractor.eval().backbone.forward_features(images())
    assert tokens.shape[1] == 1 + 3 + 16
    assert torch.allclose(run(extractor), tokens[:, 4:].mean(1), atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "gem"])
def test_a_norm_behind_the_pooling_is_kept(pooling: Any) -> None:
    args = {"img_size": 64, "global_pool": "avg", "class_token": True}
    extractor = timm_extractor("test_vit", model_args=args, pooling=pooling, normalize=False)
    norm = extractor.backbone.fc_norm
    assert isinstance(norm, nn.LayerNorm)
    nn.init.uniform_(norm.weight)
    with torch.no_grad():
        tokens = extractor.eval().backbone.forward_features(images())
        pooled = tokens[:, 0] if pooling == "cls" else extractor.pool(tokens[:, 1:])  # type: ignore[misc]
        assert torch.allclose(run(extractor), norm(pooled), atol=1e-6)


def test_head_is_projection_then_bnneck_then_normalisation() -> None:
    extractor = timm_extractor("test_resnet", dim=5, bnneck=True)
    bnneck = extractor.bnneck
    assert bnneck is not None
    assert not bnneck.bias.requires_grad
    assert bnneck.weight.requires_grad
    assert (bnneck.bias == 0).all()
    bnneck.running_mean.copy_(torch.arange(5.0))  # type: ignore[union-attr]
    bnneck.running_var.fill_(4.0)  # type: ignore[union-attr]
    assert extractor.projection is not None
    with torch.no_grad():
        features = extractor.projection(run(extractor.backbone, images(32)))
    expected = F.normalize((features - torch.arange(5.0)) / np.sqrt(4 + 1e-5), dim=1)
    assert torch.allclose(run(extractor, images(32)), expected, atol=1e-6)


def test_rows_are_plain_without_normalisation_and_of_unit_length_with_it() -> None:
    plain = timm_extractor("test_resnet", dim=5, normalize=False)
    unit = copy.deepcopy(plain)
    unit.normalize = True
    found = run(plain)
    assert not torch.allclose(found.norm(dim=1), torch.ones(2), atol=0.1)
    assert torch.allclose(run(unit), F.normalize(found, dim=1))


def test_a_deep_copy_is_independent_and_a_state_dict_makes_the_same() -> None:
    extractor = timm_extractor("test_resnet", pooling="gem", dim=5, bnneck=True)
    before = run(extractor)
    twin = copy.deepcopy(extractor)
    for parameter in twin.parameters():
        parameter.data.add_(0.1)
    assert torch.equal(run(extractor), before)
    assert not torch.equal(run(twin), before)
    other = timm_extractor("test_resnet", pooling="gem", dim=5, bnneck=True)
    other.load_state_dict(extractor.state_dict(), strict=True)
    assert torch.equal(run(other), before)


@pytest.mark.parametrize("pooling", ["avg", "gem"])
def test_bfloat16_autocast_gives_float32_unit_rows(pooling: Any) -> None:
    extractor = timm_extractor("test_resnet", pooling=pooling, dim=5).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extractor(images(32))
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(2), atol=1e-6)
    found[:, 0].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in extractor.parameters() if p.grad is not None)


def test_float64_stays_float64() -> None:
    extractor = timm_extractor("test_resnet", pooling="gem", dim=5).double()
    assert run(extractor, images(32).double()).dtype == torch.float64


def test_half_precision_features_pool_without_overflow() -> None:
    assert torch.allclose(GeM()(torch.full((1, 4, 2), 60.0, dtype=torch.float16)), torch.tensor(60.0))


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("restnet50", "resnet50"),
        ("ResNet18", "resnet18"),
    ],
)
def test_unknown_models_get_the_nearest(model: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        timm_extractor(model)
    assert caught.value.message == f"no timm model named {model!r}, did you mean {near!r}?"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model": "test_resnet", "pooling": "cls"},
            "the timm model 'test_resnet' has no class token; take pooling avg or gem",
        ),
        (
            {"model": "test_resnet", "model_args": {"drop_pth": 0.1}},
            "cannot create the timm model 'test_resnet': ResNet.__init__() got an unexpected keyword "
            "argument 'drop_pth'",
        ),
        (
            {"model": "s3:mine/model"},
            "cannot create the timm model 's3:mine/model': 's3' is no place of models, "
            "expected hf_hub:owner/model",
        ),
    ],
)
def test_what_timm_cannot_do_is_a_usage_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        timm_extractor(**settings)
    assert caught.value.message == message


def test_a_size_that_the_model_cannot_take_is_a_usage_error() -> None:
    extractor = timm_extractor("test_vit", model_args={"dynamic_img_size": False})
    with pytest.raises(UsageError) as caught:
        run(extractor, images(64))
    start = "the backbone does not take 2 images of 64x64 pixels: Input height"
    assert caught.value.message.startswith(start)
    assert "img_size" in caught.value.hint


class Failing(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


def test_misuse_of_a_backbone_is_a_usage_error() -> None:
    neck = Extractor(nn.Flatten(), channels=12, bnneck=True).train()
    with pytest.raises(UsageError) as caught:
        neck(torch.rand(1, 3, 2, 2))
    assert caught.value.message == (
        "the backbone does not take 1 images of 2x2 pixels: "
        "Expected more than 1 value per channel when training, got input size torch.Size([1, 12])"
    )
    with pytest.raises(UsageError, match="expected input"):
        run(timm_extractor("test_resnet", model_args={"in_chans": 1}))
    for error in (RuntimeError("too small\nand more"), ValueError("too small")):
        with pytest.raises(UsageError, match="4 images of 8x6 pixels: too small;"):
            Extractor(Failing(error), channels=3)(torch.rand(4, 3, 8, 6))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 2 GiB"),
        torch.AcceleratorError("an assert of the device", 0),
        RuntimeError("CUDA error: an illegal memory access"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer"),
    ],
)
def test_faults_of_the_machine_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        Extractor(Failing(error), channels=3)(torch.rand(4, 3, 8, 6))
    assert caught.value is error


def test_several_feature_maps_are_refused_by_gem() -> None:
    class Two(nn.Module):
        def forward_features(self, x: Tensor) -> list[Tensor]:
            return [x, x]

    with pytest.raises(UsageError, match="several feature maps"):
        run(Extractor(Two(), channels=3, pool=GeM()))


def test_known_names_are_those_of_the_libraries() -> None:
    assert set(TIMM) <= set(timm.list_models())
