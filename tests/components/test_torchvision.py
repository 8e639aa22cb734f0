from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from metricli.components.extractors import torchvision_extractor
from metricli.errors import UsageError
from tests.components.test_extractors import images, numpy_gem, run


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small"])
def test_torchvision_without_its_last_layer(model: str) -> None:
    from torchvision.models import get_model

    extractor = torchvision_extractor(model, normalize=False)
    own = get_model(model, num_classes=1000)
    state = extractor.backbone.state_dict()
    missing = own.load_state_dict(state, strict=False).missing_keys
    last = {"resnet18": "fc", "mobilenet_v3_small": "classifier.3"}[model]
    assert missing == [f"{last}.weight", f"{last}.bias"]
    own.get_submodule(last).weight.data.normal_()
    found = run(extractor)
    assert found.shape == (2, extractor.dim) == (2, {"resnet18": 512, "mobilenet_v3_small": 1024}[model])
    head = own.get_submodule(last)
    with torch.no_grad():
        assert torch.allclose(run(own), head(found), atol=1e-4)


def test_torchvision_gem_replaces_the_average() -> None:
    extractor = torchvision_extractor("resnet18", pooling="gem", normalize=False)
    backbone: Any = extractor.eval().backbone
    maps = {}
    backbone.layer4.register_forward_hook(lambda _m, _i, out: maps.update(out=out.detach()))
    found = run(extractor)
    np.testing.assert_allclose(
        found.numpy(), numpy_gem(maps["out"].flatten(2).transpose(1, 2), 3.0), rtol=1e-4
    )
    extractor.train()(images()).sum().backward()
    assert backbone.avgpool.power.grad is not None


def test_torchvision_vision_transformer_gives_its_class_token(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision
    from torchvision.models import VisionTransformer

    def tiny(*_args: Any, **_kwargs: Any) -> nn.Module:
        return VisionTransformer(64, 16, 1, 2, 24, 48)

    monkeypatch.setattr(torchvision.models, "get_model", tiny)
    extractor = torchvision_extractor("vit_b_16", pooling="cls", normalize=False)
    tokens = {}
    extractor.backbone.encoder.register_forward_hook(lambda _m, _i, out: tokens.update(out=out))  # type: ignore[union-attr]
    nn.init.normal_(extractor.backbone.class_token)  # type: ignore[arg-type]
    assert torch.equal(run(extractor), tokens["out"][:, 0])
    with pytest.raises(UsageError) as caught:
        torchvision_extractor("vit_b_16", pooling="gem")
    assert caught.value.message == "the torchvision model 'vit_b_16' cannot pool by 'gem'; take pooling cls"


@pytest.mark.parametrize(
    ("model", "pooling", "message"),
    [
        ("resnet18", "cls", "cannot pool by 'cls'; take pooling avg or gem"),
        ("mobilenet_v2", "gem", "has no avgpool to 1x1 that gem could replace; take avg"),
        ("alexnet", "gem", "has no avgpool to 1x1 that gem could replace; take avg"),
        ("squeezenet1_1", "avg", "ends in no linear layer that could be taken off"),
    ],
)
def test_what_torchvision_cannot_do_is_a_usage_error(model: str, pooling: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        torchvision_extractor(model, pooling=pooling)
    assert caught.value.message == f"the torchvision model {model!r} {message}"


def test_an_inception_trains_without_its_auxiliary_outputs() -> None:
    extractor = torchvision_extractor("googlenet", dim=4).train()
    assert extractor(images(64)).shape == (2, 4)
    assert not [name for name, _ in extractor.named_parameters() if "aux" in name]


def test_an_unknown_model_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        torchvision_extractor("resnet_18")
    assert caught.value.message == "no torchvision model named 'resnet_18', did you mean 'resnet18'?"
