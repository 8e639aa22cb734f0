from __future__ import annotations

import pytest
import timm
import torchvision
from torch import nn

from metricli.components.extractors import timm_extractor
from metricli.components.stages import frozen_stages, layer_depths, rest, rest_batch_norm, stages_of


def test_stages_of_timm_models_hold_every_parameter_once() -> None:
    for model, names in {
        "test_resnet": ["conv1 and bn1", "layer1", "layer2", "layer3", "layer4"],
        "test_vit": [
            "cls_token and pos_embed and patch_embed",
            *(f"blocks.{i}" for i in range(5)),
            "blocks.5 and norm",
        ],
    }.items():
        backbone = timm_extractor(model).backbone
        stages = stages_of(backbone)
        assert [stage.name for stage in stages] == names
        held = [id(p) for stage in stages for p in stage.parameters]
        assert sorted(held) == sorted(id(p) for p in backbone.parameters())


def test_stages_of_others_are_their_children_or_those_of_the_only_one() -> None:
    resnet = torchvision.models.resnet18()
    resnet.fc = nn.Identity()
    names = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    assert [stage.name for stage in stages_of(resnet)] == names
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    assert [stage.name for stage in stages_of(nested)] == ["0.0", "0.2"]
    assert [stage.name for stage in stages_of(nn.Linear(2, 2))] == ["weight", "bias"]
    assert [stage.name for stage in stages_of(nn.Linear(2, 2, bias=False))] == ["weight"]
    assert stages_of(nn.ReLU()) == []


@pytest.mark.parametrize(
    ("freeze", "thaw", "expected"),
    [
        (0, 0, [0, 0, 0, 0, 0, 0]),
        (2, 0, [5, 5, 0, 0, 0, 0]),
        (2, 1, [5, 5, 0, 0, 0, 0]),
        (1, 5, [5, 4, 3, 2, 1, 0]),
        (0, 2, [2, 0, 0, 0, 0, 0]),
        (1, 3, [5, 3, 1, 0, 0, 0]),
    ],
)
def test_stages_thaw_evenly(freeze: int, thaw: int, expected: list[int]) -> None:
    found = [frozen_stages(5, epoch, freeze_epochs=freeze, thaw_epochs=thaw) for epoch in range(6)]
    assert found == expected


def test_layers_are_blocks_in_the_order_of_the_forward_pass() -> None:
    backbone = timm.create_model("test_vit", num_classes=0)
    depths = layer_depths(backbone)
    found = {name: depths[id(p)] for name, p in backbone.named_parameters()}
    assert found["patch_embed.proj.weight"] == found["cls_token"] == 0
    assert [found[f"blocks.{i}.mlp.fc1.weight"] for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert found["norm.weight"] == 6
    with pytest.raises(ValueError, match="the backbone ResNet does not name its layers, as timm's do"):
        layer_depths(torchvision.models.resnet18())


def test_what_is_frozen_rests_with_all_it_holds_and_nothing_else() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2)), nn.Linear(2, 2), nn.Dropout()
    )
    rest(model, {id(p) for p in model[0].parameters()})
    assert [m.training for m in model.modules()] == [True, False, False, False, False, True, True]
    model.train()
    rest(model, {id(p) for p in model[0][0].parameters()})
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True, True]


def test_batch_norm_of_every_kind_rests() -> None:
    backbone = timm_extractor("test_resnet").backbone
    kinds = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert rest_batch_norm(backbone.train()) == len(kinds) > 1
    assert not any(m.training for m in kinds)
    assert backbone.training
